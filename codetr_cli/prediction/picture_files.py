"""Pictures of detections, and pictures as files: JPEG, PNG or WebP, encoded without Python's global lock."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from codetr_cli.errors import ResourceError
from codetr_cli.images.regions import ArrayRegions, ImageRegions
from codetr_cli.inference.draw_options import DrawOptions
from codetr_cli.inference.prediction import Prediction

MAX_DRAWN_SIDE = 4000
"""Pixels of the longer side of a picture whose image is read in parts."""
SIDE_LIMITS = {".jpg": 65_500, ".jpeg": 65_500, ".png": 1_000_000, ".webp": 16_383}
"""Pixels of the longer side by the file's suffix; larger pictures are reduced."""


def drawn_on(image: ImageRegions, prediction: Prediction, options: DrawOptions) -> NDArray[np.uint8]:
    """The picture (H, W, 3) uint8 RGB of the detections in an image: of its size, smaller if it is read in parts.

    Raises:
        BrokenImageError: the image's file is damaged.
    """
    pixels = drawable(image)
    size = (pixels.shape[0], pixels.shape[1])
    return (prediction if size == prediction.image_size else prediction.resized(size)).drawn_on(pixels, options)


def drawable(image: ImageRegions) -> NDArray[np.uint8]:
    """The pixels (H, W, 3) uint8 RGB that are drawn on: of the image, or of a smaller one if it is read in parts.

    Raises:
        BrokenImageError: the image's file is damaged.
    """
    return image.pixels if isinstance(image, ArrayRegions) else image.reduced(*fitted(image.size, MAX_DRAWN_SIDE))


def fitted(size: tuple[int, int], side_px: int) -> tuple[int, int]:
    """The largest (height, width) of the same shape with no side above a number of pixels; at most the given one."""
    factor = min(1.0, side_px / max(size))
    return max(round(size[0] * factor), 1), max(round(size[1] * factor), 1)


def write_picture(path: Path, pixels: NDArray[np.uint8], suffix: str, quality: int) -> None:
    """Writes a picture (H, W, 3) uint8 RGB.

    Args:
        path: the file, whatever its name is.
        pixels: of the picture; reduced if a side is longer than the format allows.
        suffix: of the format, a key of `SIDE_LIMITS` in small or capital letters.
        quality: of JPEG and WebP files, 1 to 100.

    Raises:
        ResourceError: the picture cannot be encoded.
    """
    path.write_bytes(encode_picture(pixels, suffix, quality))


def encode_picture(pixels: NDArray[np.uint8], suffix: str, quality: int) -> bytes:
    """The content of the file that `write_picture` writes."""
    suffix = suffix.lower()
    height, width = pixels.shape[:2]
    factor = SIDE_LIMITS[suffix] / max(height, width)
    if factor < 1:
        size = (max(int(width * factor), 1), max(int(height * factor), 1))
        pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
    parameters = {
        ".png": [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE],
        ".webp": [cv2.IMWRITE_WEBP_QUALITY, quality],
    }.get(suffix, [cv2.IMWRITE_JPEG_QUALITY, quality])
    try:
        is_done, content = cv2.imencode(suffix, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), parameters)
    except cv2.error as error:
        raise ResourceError(f"a picture of {width} x {height} pixels cannot be encoded as {suffix}: {error}") from error
    if not is_done:
        raise ResourceError(f"a picture of {width} x {height} pixels cannot be encoded as {suffix}: use another format")
    return content.tobytes()
