"""Brightness, contrast and sharpness of images, and groups of images by these, by size and by number of objects.

Pixels are read once, reduced, and of a random sample where there are many images: three numbers an image are all that
is kept. Images that are missing or broken are skipped; where none can be read, these groups have a reason instead.
Shape letters: I evaluated images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.analysis.slices import ImageGroups, objects_per_image
from codetr_cli.errors import DatasetError
from codetr_cli.images.decoder import decode_image, read_file
from codetr_cli.images.headers import header_of

MAX_IMAGES = 1000
MAX_PIXELS = 600_000_000
"""Of the sample: about 5 s of decoding."""
JPEG_FRACTIONS = {
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    1: cv2.IMREAD_GRAYSCALE,
}
REDUCED_SIDE = 240
"""Images are decoded at the smallest fraction of their size whose shorter side is at least this."""
QUANTILES = 4
LEAST_RATIO = 1.2
"""Of the largest to the smallest of sizes of images that are divided."""
LEAST_IMAGES = 20
"""A group of fewer images has an AP that means nothing."""
MORE_DIGITS = 4
"""Of the ends of ranges that would look the same."""


@dataclass(frozen=True, eq=False)
class ImageProperties:
    """What images look like, NaN for those that were not read.

    Attributes:
        brightness: (I,) mean of the grey values, in [0, 1].
        contrast: (I,) standard deviation of the grey values, in [0, 0.5].
        sharpness: (I,) variance of the Laplacian of the reduced image over the variance of its grey values.
        read: number of images that were read.
        sampled: number of images that were tried, at random where it is not all of them.
    """

    brightness: NDArray[np.float64]
    contrast: NDArray[np.float64]
    sharpness: NDArray[np.float64]
    read: int
    sampled: int


def image_properties(inputs: AnalysisInputs) -> ImageProperties:
    """Reads a sample of the images, in random order, the same for the same number of images."""
    count = len(inputs.image_ids)
    columns = np.full((3, count), np.nan)
    rule, folder = inputs.paths.names, str(inputs.paths.images_dir.absolute())
    pixels = read = tried = 0
    for image in np.random.default_rng(0).permutation(count)[:MAX_IMAGES].tolist():
        if pixels >= MAX_PIXELS:
            break
        tried += 1
        if not (rule.allow_outside or rule.is_inside(inputs.file_name(image), folder)):
            continue
        content = _content(inputs.image_path(image))
        if content is None:
            continue
        pixels += content.pixels
        grey = _reduced(content)
        if grey is None:
            continue
        read += 1
        values = grey.astype(np.float32) / 255
        variance = float(values.var())
        laplacian = cv2.Laplacian(values, cv2.CV_32F)
        columns[:, image] = values.mean(), variance**0.5, laplacian.var() / variance if variance > 0 else 0.0
    brightness, contrast, sharpness = columns
    return ImageProperties(brightness, contrast, sharpness, read, tried)


@dataclass(frozen=True)
class _Content:
    """The bytes of an image file, and its size (height, width) by its header."""

    path: Path
    content: bytes
    is_jpeg: bool
    size: tuple[int, int]

    @property
    def pixels(self) -> int:
        return self.size[0] * self.size[1]


def _content(path: Path) -> _Content | None:
    """None if it is no image, or one of so many pixels that it would be the whole sample."""
    try:
        content = read_file(path, max_pixels=MAX_PIXELS)
        header = header_of(content)
    except (DatasetError, OSError, ValueError):
        return None
    found = _Content(path, content, header.format == "jpeg", header.size)
    return found if found.pixels <= MAX_PIXELS else None


def _reduced(file: _Content) -> NDArray[np.uint8] | None:
    """The grey values of an image at a fraction of its size; None if it is broken."""
    fraction = next((f for f in (8, 4, 2) if min(file.size) >= f * REDUCED_SIDE), 1)
    try:
        if file.is_jpeg:  # its decoder makes the smaller image at a fraction of the time
            decoded = cv2.imdecode(np.frombuffer(file.content, np.uint8), JPEG_FRACTIONS[fraction])
            return None if decoded is None else decoded.astype(np.uint8)
        image = decode_image(file.content, file.path, max_pixels=MAX_PIXELS)
    except (DatasetError, ValueError, cv2.error):
        return None
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    size = (max(1, grey.shape[1] // fraction), max(1, grey.shape[0] // fraction))
    return cv2.resize(grey, size, interpolation=cv2.INTER_AREA).astype(np.uint8)


def groups_of_images(inputs: AnalysisInputs, properties: ImageProperties) -> tuple[list[ImageGroups], dict[str, str]]:
    """Groups of images by each property that divides them.

    Returns:
        the groups, and by the key of each property that has none the reason, a clause.
    """
    sides = inputs.ground_truth.sizes[inputs.file_rows].astype(np.float64)
    side = np.where((sides > 0).all(axis=1), np.sqrt(sides.prod(axis=1).clip(min=0)), np.nan)
    unread = (
        f"none of {properties.sampled:,} images could be read in {inputs.paths.images_dir}"
        if not properties.read
        else ""
    )
    sampled = f" Measured on {properties.read:,} of {len(side):,} images." if properties.read < len(side) else ""
    found: list[ImageGroups] = []
    reasons = {}
    for key, title, text, values, digits in (
        (
            "brightness",
            "Brightness",
            f"Mean of the grey values: 0 is black, 1 is white.{sampled}",
            properties.brightness,
            2,
        ),
        ("contrast", "Contrast", f"Standard deviation of the grey values.{sampled}", properties.contrast, 2),
        (
            "sharpness",
            "Sharpness",
            f"Strength of edges (variance of the Laplacian, of the image made smaller); blurred and plain images have "
            f"low values.{sampled}",
            properties.sharpness,
            3,
        ),
        ("image-size", "Size of the image", "The side of a square with the image's area, in pixels.", side, 0),
    ):
        groups = {} if _hardly_differ(values, key) else _quantile_groups(values, digits)
        if len(groups) > 1:
            found.append(ImageGroups(key, title, text, groups))
        else:
            is_pixels = key != "image-size"
            reasons[key] = unread if unread and is_pixels else _reason(values)
    number = _objects_groups(inputs)
    if len(number) > 1:
        text = "Annotated objects of the image without crowds. Images without objects are in no group."
        found.append(ImageGroups("objects-per-image", "Objects per image", text, number))
    else:
        reasons["objects-per-image"] = "fewer than two groups have objects"
    return found, reasons


def _reason(values: NDArray[np.float64]) -> str:
    known = values[~np.isnan(values)]
    if not len(known):
        return "the annotations have no sizes of images"
    if len(known) < 2 * LEAST_IMAGES:
        return f"{len(known):,} images are too few for groups of {LEAST_IMAGES}"
    return "nearly all images have about the same value"


def _hardly_differ(values: NDArray[np.float64], key: str) -> bool:
    """Whether nearly all images have about the same size, which says nothing about sizes."""
    known = values[~np.isnan(values)]
    if key != "image-size" or not len(known):
        return False
    low, high = np.quantile(known, [0.05, 0.95]).tolist()
    return bool(high < LEAST_RATIO * low)


def _quantile_groups(values: NDArray[np.float64], digits: int) -> dict[str, tuple[NDArray[np.int64], float, float]]:
    """Groups of about equal numbers of images; equal values stay together."""
    known = np.flatnonzero(~np.isnan(values))
    count = min(QUANTILES, len(known) // LEAST_IMAGES)
    if count < 2:
        return {}
    edges = np.unique(np.quantile(values[known], np.arange(1, count) / count))
    place = np.searchsorted(edges, values[known], "left")
    parts = []
    for number in range(len(edges) + 1):
        members = known[place == number]
        if len(members) >= LEAST_IMAGES:
            parts.append((members, float(values[members].min()), float(values[members].max())))
    labels = _range_labels([(low, high) for _, low, high in parts], digits)
    return dict(zip(labels, parts, strict=True))


def _range_labels(ranges: Sequence[tuple[float, float]], digits: int) -> list[str]:
    """A label for each range, with as many digits as it takes for them to differ."""
    for precision in range(digits, digits + MORE_DIGITS + 1):
        ends = [(f"{low:,.{precision}f}", f"{high:,.{precision}f}") for low, high in ranges]
        if len(set(ends)) == len(ends) and all(
            shown[0] != shown[1] or low == high for shown, (low, high) in zip(ends, ranges, strict=True)
        ):
            return [f"{low} to {high}" for low, high in ends]
    return [f"{low!r} to {high!r}" for low, high in ranges]


def _objects_groups(inputs: AnalysisInputs) -> dict[str, tuple[NDArray[np.int64], float, float]]:
    """Images by their number of objects, those without any in no group: their AP is not defined."""
    counts = objects_per_image(inputs)
    groups = {}
    for low, high, label in (
        (1, 1, "1"),
        (2, 4, "2 to 4"),
        (5, 9, "5 to 9"),
        (10, 19, "10 to 19"),
        (20, 49, "20 to 49"),
        (50, np.inf, "50 and more"),
    ):
        members = np.flatnonzero((counts >= low) & (counts <= high))
        if len(members):
            groups[label] = (members, float(low), float(counts[members].max()))
    return groups
