"""The images that a checkpoint and its exported file are compared on: landscape, upright and square ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from codetr_cli.data.demo import draw_picture
from codetr_cli.formats.resolve import DataPaths
from codetr_cli.images.decoder import read_image
from codetr_cli.images.image_header import Size

MIN_IMAGES = 8
SHAPES = ("landscape", "upright", "square")


@dataclass(frozen=True, eq=False)
class VerifyImage:
    """An image (h, w, 3) uint8 RGB, what it is, and its shape: one of `SHAPES`."""

    name: str
    pixels: NDArray[np.uint8]

    @property
    def shape(self) -> str:
        """One of `SHAPES`."""
        height, width = self.pixels.shape[:2]
        return "square" if height == width else "landscape" if height < width else "upright"


def synthetic_images(side: int) -> list[VerifyImage]:
    """Nine images: of every shape two pictures of `codetr prepare --demo`, and one that shows nothing but noise.

    Args:
        side: the long side in pixels. Square images have half of it, so that they are enlarged.
    """
    short = max(8, side * 3 // 4)
    sizes: dict[str, Size] = {"landscape": (short, side), "upright": (side, short), "square": (max(8, side // 2),) * 2}
    images = []
    for number, (shape, (height, width)) in enumerate(sizes.items()):
        for index in range(2):
            picture, _ = draw_picture(np.random.default_rng([7, number, index]), max(side, 64))
            pixels = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
            images.append(VerifyImage(f"demo picture {index + 1}, {shape}", np.asarray(pixels, np.uint8)))
        noise = np.random.default_rng([8, number]).integers(96, 160, (height, width, 3), dtype=np.uint8)
        images.append(VerifyImage(f"noise, {shape}", noise))
    return images


def data_images(
    paths: DataPaths, file_names: Sequence[str], *, max_pixels: int, count: int = MIN_IMAGES
) -> list[VerifyImage]:
    """Images of a data set, evenly chosen, and turned or cut ones where a shape is missing.

    Args:
        paths: where the images are.
        file_names: of all of them, as the annotations give them.
        max_pixels: of an image.
        count: images to choose.

    Raises:
        DatasetError: an image is missing or damaged.
    """
    if not file_names:
        return []
    chosen = [file_names[row] for row in np.unique(np.linspace(0, len(file_names) - 1, count).round().astype(int))]
    images = [VerifyImage(name, read_image(paths.images_dir / name, max_pixels=max_pixels)) for name in chosen]
    derived: list[tuple[str, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]]] = [
        ("turned", lambda pixels: np.ascontiguousarray(np.rot90(pixels))),
        ("cut to a square", _square),
    ]
    for how, change in derived:
        more = [VerifyImage(f"{image.name}, {how}", change(image.pixels)) for image in images[:2]]
        missing = set(SHAPES) - {image.shape for image in images}
        images += [image for image in more if image.shape in missing]
    while len(images) < count:  # of small data sets
        image = images[len(images) % len(chosen)]
        images.append(VerifyImage(f"{image.name}, mirrored", np.ascontiguousarray(image.pixels[:, ::-1])))
    return images


def _square(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    side = min(pixels.shape[:2])
    return np.ascontiguousarray(pixels[:side, :side])
