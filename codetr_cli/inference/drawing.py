"""Draws detections onto images: masks and outlines in one stable colour per class, and a chip with class and score.

A chip stays inside the image and moves to another edge of its box rather than cover another chip; one that would still
hide others is not drawn, only its box. Sizes scale with the image, so that a thumbnail is as legible as a photograph of
50 megapixels.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from codetr_cli.annotations.outlines import decode

Colour = tuple[int, int, int]

PALETTE: tuple[Colour, ...] = (
    *((230, 57, 70), (29, 127, 216), (255, 183, 3), (42, 157, 80), (155, 81, 224), (255, 122, 26)),
    *((0, 180, 190), (240, 98, 180), (139, 195, 50), (141, 95, 60), (96, 110, 240), (200, 30, 120)),
)
"""Colours of the first classes; neighbours in the list differ in hue and lightness."""

HALO: Colour = (20, 20, 20)
MIN_FONT_PX, MAX_FONT_PX = 10, 64
SMALL_TEXT = 0.75
"""Factor of the text height for boxes that are small compared to their chip."""
MASK_OPACITY = 0.45
"""Opacity of a mask's colour over the image."""
MAX_COVER = 0.25
"""A chip that would cover other chips with more than this share of its area is not drawn."""

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Chip:
    """A label on a coloured background; `area` is (left, top, right, bottom) in pixels, right and bottom excluded."""

    text: str
    area: tuple[int, int, int, int]
    colour: Colour
    font: Font


def class_colour(label: int) -> Colour:
    """The colour of a class index: the palette first, then hues spread by the golden ratio."""
    if label < len(PALETTE):
        return PALETTE[label]
    hue = (label * 0.618033988749895) % 1.0
    lightness = (0.42, 0.55, 0.68)[label % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.75)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_detections(
    image: NDArray[np.uint8],
    boxes_xyxy: NDArray[np.float32],
    scores: NDArray[np.float32],
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    masks: Sequence[dict[str, Any]] | None = None,
) -> Image.Image:
    """Draws masks, boxes and labels on a copy of the image.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes_xyxy: (N, 4) in pixels of this image.
        scores: (N,) in [0, 1].
        labels: (N,) class indices; they choose the colours.
        class_names: N names, one per box.
        masks: N masks of the image's size in COCO's run-length encoding.
    """
    colours = [class_colour(label) for label in labels.tolist()]
    best_first = np.argsort(-np.asarray(scores), kind="stable")
    line = line_width(image.shape[1], image.shape[0])
    if masks is not None:
        image = image.copy()
        sides = boxes_xyxy[best_first, 2:] - boxes_xyxy[best_first, :2]
        small_first = np.argsort(sides[:, 0] * sides[:, 1], kind="stable")
        for index in best_first[small_first[::-1]]:  # small masks are drawn last, on top of large ones
            _fill(image, masks[index], colours[index], line)
    canvas = Image.fromarray(np.ascontiguousarray(image))
    pen = ImageDraw.Draw(canvas)
    for index in best_first[::-1]:  # the best box is drawn last, on top
        _outline(pen, boxes_xyxy[index], colours[index], line, canvas.size)
    chips: list[Chip] = []
    for index in best_first:  # and its chip gets the best place
        text = f"{class_names[index]} {scores[index]:.2f}"
        chip = _place(text, boxes_xyxy[index], colours[index], canvas.size, chips)
        chips += [chip] if chip else []
    for chip in reversed(chips):
        _draw_chip(pen, chip)
    return canvas


def line_width(width: int, height: int) -> int:
    """Outline width in pixels for an image of this size: 2 for a small photograph, 3 at 1333x800."""
    return max(1, round(math.sqrt(width * height) / 330))


def font_size(width: int, height: int) -> int:
    """Text height in pixels for an image of this size."""
    return min(max(round(math.sqrt(width * height) / 45), MIN_FONT_PX), MAX_FONT_PX)


_font = lru_cache(maxsize=8)(ImageFont.load_default)


def _fill(image: NDArray[np.uint8], mask: dict[str, Any], colour: Colour, line: int) -> None:
    """Tints the mask's pixels in place and draws its edge."""
    block = decode(mask, (image.shape[0], image.shape[1]))
    height, width = block.pixels.shape
    if not block.pixels.size:
        return
    window = image[block.top : block.top + height, block.left : block.left + width]
    inside = block.pixels != 0
    # Outside the window is background, so that masks that reach the image's border have an edge there too.
    framed = cv2.copyMakeBorder(block.pixels, line, line, line, line, cv2.BORDER_CONSTANT, value=0)
    core = cv2.erode(framed, np.ones((2 * line + 1, 2 * line + 1), np.uint8))[line:-line, line:-line] != 0
    tint = (1 - MASK_OPACITY) * window[inside].astype(np.float32) + MASK_OPACITY * np.array(colour, np.float32)
    window[inside] = tint.round().astype(np.uint8)
    window[inside & ~core] = colour


def _outline(
    pen: ImageDraw.ImageDraw, box: NDArray[np.float32], colour: Colour, line: int, size: tuple[int, int]
) -> None:
    """A rectangle in the class's colour between two thin dark ones, visible on any background."""
    left, top, right, bottom = _inside(box, size)
    if line > 1:
        pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=HALO, width=1)
        if right - left > 4 * line and bottom - top > 4 * line:
            pen.rectangle((left + line, top + line, right - line, bottom - line), outline=HALO, width=1)
    pen.rectangle((left, top, right, bottom), outline=colour, width=line)


def _inside(box: NDArray[np.float32], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The box in integer pixels inside an image (width, height), at least one pixel wide and high."""
    width, height = size
    left, right = (round(min(max(float(value), 0.0), width - 1)) for value in (box[0], box[2]))
    top, bottom = (round(min(max(float(value), 0.0), height - 1)) for value in (box[1], box[3]))
    return left, top, max(left, right), max(top, bottom)


def _place(
    text: str, box: NDArray[np.float32], colour: Colour, size: tuple[int, int], placed: Sequence[Chip]
) -> Chip | None:
    """The chip at the first place that covers other chips least; None if it would hide other chips everywhere."""
    width, height = size
    left, top, right, bottom = _inside(box, size)
    text_px = font_size(width, height)
    if min(right - left, bottom - top) < 3 * text_px:
        text_px = max(round(SMALL_TEXT * text_px), MIN_FONT_PX)
    font = _font(text_px)
    chip_width, chip_height = _chip_size(text, font, line_width(width, height), size)
    end = right - chip_width + 1
    corners = (
        *((left, top - chip_height), (left, top), (left, bottom + 1), (left, bottom - chip_height + 1)),
        *((end, top - chip_height), (end, top), (end, bottom + 1), (end, bottom - chip_height + 1)),
    )
    areas = []
    for x, y in corners:
        x0 = min(max(x, 0), width - chip_width)
        y0 = min(max(y, 0), height - chip_height)
        areas.append((x0, y0, x0 + chip_width, y0 + chip_height))
    covered = [sum(_overlap(area, chip.area) for chip in placed) for area in areas]
    # A place that was moved back into the image comes after those that fit.
    best = min(range(len(areas)), key=lambda i: (covered[i], areas[i][:2] != corners[i], i))
    if covered[best] > MAX_COVER * chip_width * chip_height:
        return None
    return Chip(text, areas[best], colour, font)


def _chip_size(text: str, font: Font, line: int, size: tuple[int, int]) -> tuple[int, int]:
    """Width and height of a chip in pixels; all chips of one font have the same height."""
    left, _, right, _ = font.getbbox(text)
    _, upper, _, lower = font.getbbox("Ag|")
    pad = max(2, line)
    return min(round(right - left) + 2 * pad, size[0]), min(round(lower - upper) + 2 * pad, size[1])


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> int:
    """Pixels that two areas share."""
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def _draw_chip(pen: ImageDraw.ImageDraw, chip: Chip) -> None:
    left, top, right, bottom = chip.area
    pen.rectangle((left, top, right - 1, bottom - 1), fill=chip.colour)
    red, green, blue = chip.colour
    ink = (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)
    pen.text(((left + right) / 2, (top + bottom) / 2), chip.text, fill=ink, font=chip.font, anchor="mm")
