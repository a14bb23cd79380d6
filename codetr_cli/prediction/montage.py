"""A montage of the first images with their detections, from thumbnails that are drawn while images are predicted."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from codetr_cli.errors import ConfigError
from codetr_cli.images.decoder import BrokenImageError, read_image
from codetr_cli.images.regions import ArrayRegions, ImageRegions
from codetr_cli.inference.draw_options import DrawOptions
from codetr_cli.inference.drawing import MIN_FONT_PX, draw_text
from codetr_cli.inference.fonts import text_size
from codetr_cli.inference.palette import Colour
from codetr_cli.inference.prediction import Prediction
from codetr_cli.prediction.picture_files import fitted

Pixels = NDArray[np.uint8]

MAX_CELLS = 400
CANVAS_PX = 3200
"""Width and height that a montage has about, if its cells are not too small or large then."""
MIN_CELL_PX, MAX_CELL_PX = 120, 640
BACKGROUND: Colour = (255, 255, 255)
INK: Colour = (60, 60, 60)
_ROWS_COLUMNS = re.compile(r"(\d{1,4})[xX](\d{1,4})")


@dataclass(frozen=True)
class GridShape:
    """Rows and columns of a montage; `count` images are in it, at most rows times columns."""

    rows: int
    columns: int
    count: int

    @classmethod
    def parse(cls, text: str) -> GridShape:
        """`9` images in as many rows as columns, or `2x5`: 2 rows and 5 columns.

        Raises:
            ConfigError: neither of them, or of too many images.
        """
        match = _ROWS_COLUMNS.fullmatch(text)
        if match:
            rows, columns = int(match[1]), int(match[2])
            count = rows * columns
        elif re.fullmatch(r"\d{1,6}", text):
            count = int(text)
            columns = math.ceil(math.sqrt(count))
            rows = math.ceil(count / columns) if columns else 0
        else:
            raise ConfigError(f"--grid {text}: give a number of images, 9, or rows and columns, 2x5")
        if not 1 <= count <= MAX_CELLS:
            raise ConfigError(f"--grid {text}: a montage has 1 to {MAX_CELLS} images")
        return cls(rows, columns, count)

    @property
    def cell_px(self) -> int:
        """The longer side of a thumbnail in pixels."""
        return min(max(CANVAS_PX // max(self.rows, self.columns), MIN_CELL_PX), MAX_CELL_PX)


def draw_thumbnail(image: ImageRegions, prediction: Prediction, options: DrawOptions, side_px: int) -> Pixels:
    """An image at most `side_px` wide and high, (h, w, 3) uint8 RGB, with its detections in lines of that size.

    Args:
        image: the predicted one; a smaller one is not enlarged.
        prediction: its detections.
        options: how; `thickness` and `font_size` are those of large images and do not count.
        side_px: of the thumbnail.

    Raises:
        BrokenImageError: the image's file is damaged.
    """
    size = fitted(image.size, side_px)
    if isinstance(image, ArrayRegions):
        small = np.asarray(cv2.resize(image.pixels, size[::-1], interpolation=cv2.INTER_AREA), np.uint8)
    else:
        small = image.reduced(*size)
    return prediction.resized(size).drawn_on(small, replace(options, thickness=None, font_size=None))


def draw_montage(thumbnails: Sequence[tuple[str, Pixels | None]], shape: GridShape) -> Pixels:
    """All thumbnails in one picture, row by row, each above its caption.

    Args:
        thumbnails: caption and picture; None: the image cannot be read.
        shape: of the montage; rows without any thumbnail are not drawn.
    """
    shown = list(thumbnails)[: shape.count]
    columns = min(shape.columns, max(len(shown), 1))
    rows = max(math.ceil(len(shown) / shape.columns), 1)
    side = max((max(picture.shape[:2]) for _, picture in shown if picture is not None), default=shape.cell_px)
    side = min(max(side, MIN_CELL_PX), shape.cell_px)
    tall = max((picture.shape[0] for _, picture in shown if picture is not None), default=side)
    font_px = max(side // 26, MIN_FONT_PX + 1)
    gap = max(side // 32, 4)
    caption_px = text_size("Ag", font_px)[1] + gap
    canvas = np.full((rows * (tall + caption_px + gap) + gap, columns * (side + gap) + gap, 3), BACKGROUND, np.uint8)
    for number, (caption, picture) in enumerate(shown):
        left = gap + number % shape.columns * (side + gap)
        top = gap + number // shape.columns * (tall + caption_px + gap)
        if picture is not None:
            height, width = picture.shape[:2]
            y, x = top + (tall - height) // 2, left + (side - width) // 2
            canvas[y : y + height, x : x + width] = picture
        text = _ending(caption if picture is not None else f"{caption}: unreadable", font_px, side)
        draw_text(canvas, text, (left, top + tall + caption_px / 2), font_px, BACKGROUND, INK)
    return canvas


def _ending(text: str, font_px: int, limit_px: int) -> str:
    """A name, or as much of its end as fits: the beginnings of file names are alike."""
    text = "".join(char if char.isprintable() else "?" for char in text[-300:])
    first = 0
    while first < len(text) and text_size(text[first:] if not first else "…" + text[first:], font_px)[0] > limit_px:
        first += max((len(text) - first) // 16, 1)
    return text if not first else "…" + text[first:]


def read_thumbnail(path: Path) -> Pixels | None:
    """A thumbnail that was written as a picture; None if it is missing or incomplete."""
    try:
        pixels: Any = read_image(path, max_pixels=MAX_CELL_PX**2)
    except (BrokenImageError, OSError):
        return None
    return np.asarray(pixels, np.uint8)
