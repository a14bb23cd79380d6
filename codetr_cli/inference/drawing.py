"""Draws objects onto images: masks, boxes and chips with labels, legible on a thumbnail and on 100 megapixels.

A chip stays inside the image and moves to another edge of its box rather than cover another chip; one that would still
hide others is not drawn, only its box. Lines and text follow the size of the image; where that is large, those of small
objects are smaller. All work is on arrays, most of it without Python's global lock: threads draw side by side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from codetr_cli.annotations.masks import Block
from codetr_cli.annotations.outlines import decode
from codetr_cli.inference.draw_options import DrawOptions
from codetr_cli.inference.fonts import GAP, is_drawable, text_patch, text_size
from codetr_cli.inference.palette import Colour, class_colour, ink_on

Pixels = NDArray[np.uint8]
Area = tuple[int, int, int, int]

DARK_HALO: Colour = (20, 20, 20)
LIGHT_HALO: Colour = (235, 235, 235)
MIN_FONT_PX = 10
SMALL_FONT_PX, SMALL_LINE_PX = 22, 3
"""Text and lines of small objects are not smaller, where those of the image are larger."""
MAX_HALO = 8
"""Pixels of the lines beside the lines of a box."""
SMALL_TEXT = 0.75
"""Factor of the text height for small objects of usual images."""
MASK_OPACITY = 0.45
"""Opacity of a mask's colour over the image."""
MAX_COVER = 0.25
"""A chip that would cover other chips with more than this share of its area is not drawn."""
WIDEST_CHIP = 0.6
"""Share of the width of the image that a chip may have, if its box is not wider."""
MAX_TEXT = 120
"""Characters of a label."""


@dataclass(frozen=True)
class Shape:
    """What is drawn of an object.

    Attributes:
        box: (x1, y1, x2, y2) in pixels.
        colour: of the mask, the box and the chip.
        texts: of the chip, the first one that fits is drawn; empty: no chip.
        mask: its pixels, if it has any.
        is_dashed: whether the lines of the box are.
    """

    box: tuple[float, float, float, float]
    colour: Colour
    texts: tuple[str, ...] = ()
    mask: Block | None = None
    is_dashed: bool = False


@dataclass(frozen=True)
class Chip:
    """A label on a coloured background; `area` is (left, top, right, bottom) in pixels, right and bottom excluded."""

    text: str
    area: Area
    colour: Colour
    font_px: int


def draw_detections(
    image: Pixels,
    boxes_xyxy: NDArray[np.float32],
    scores: NDArray[np.float32],
    class_names: Sequence[str],
    masks: Sequence[dict[str, Any]] | None = None,
    *,
    category_ids: Sequence[int] | None = None,
    colours: Mapping[str, Colour] | None = None,
    options: DrawOptions | None = None,
) -> Pixels:
    """A copy of the image (H, W, 3) uint8 RGB with masks, boxes and labels.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes_xyxy: (N, 4) in pixels of this image.
        scores: (N,) in [0, 1].
        class_names: N names, one per box.
        masks: N masks of the image's size in COCO's run-length encoding.
        category_ids: N ids, drawn instead of names that no font of the machine can draw.
        colours: of the classes by name; None: each has that of its name.
        options: how.
    """
    options = options or DrawOptions()
    size = (image.shape[0], image.shape[1])
    shapes = []
    for i in np.argsort(-np.asarray(scores), kind="stable").tolist():
        name = class_names[i]
        colour = (colours or {}).get(name) or class_colour(name)
        texts = label_texts(name, float(scores[i]), options, None if category_ids is None else int(category_ids[i]))
        mask = None if masks is None else decode(masks[i], size)
        shapes.append(Shape(tuple(boxes_xyxy[i].tolist()), colour, texts, mask))
    return draw_shapes(image, shapes, options)


def label_texts(
    name: str, score: float | None, options: DrawOptions, category_id: int | None = None
) -> tuple[str, ...]:
    """The label of an object, and shorter ones for where it does not fit."""
    if options.labels == "none":
        return ()
    text = "".join(char if char.isprintable() else " " for char in name[:MAX_TEXT]).strip()
    if not is_drawable(text):
        text = "?" if category_id is None else f"(category {category_id})"
    return (text,) if options.labels == "class" or score is None else (f"{text}{GAP}{score:.2f}", text)


def draw_shapes(image: Pixels, shapes: Sequence[Shape], options: DrawOptions) -> Pixels:
    """A copy of an image (H, W, 3) uint8 RGB with shapes; the first ones are drawn on top and have the best labels."""
    canvas = np.array(image, order="C")
    height, width = canvas.shape[:2]
    large_first = sorted(range(len(shapes)), key=lambda i: (-_area(shapes[i].box), -i))
    for shape in (shapes[i] for i in large_first):  # small masks are drawn last, on top of large ones
        if shape.mask is not None:
            _fill(canvas, shape.mask, shape.colour, _line(shape, (width, height), options))
    for shape in reversed(shapes):
        line = _line(shape, (width, height), options)
        _outline(canvas, inside(shape.box, (width, height)), shape.colour, line, dashed=shape.is_dashed)
    chips: list[Chip] = []
    for shape in shapes:
        chip = _place(shape, (width, height), options, chips)
        chips += [chip] if chip else []
    for chip in reversed(chips):
        draw_chip(canvas, chip)
    return canvas


def line_width(width: int, height: int) -> int:
    """Outline width in pixels for an image of this size: 2 for a small photograph, 3 at 1333x800."""
    return max(1, round(math.sqrt(width * height) / 330))


def font_size(width: int, height: int) -> int:
    """Text height in pixels for an image of this size."""
    return max(round(math.sqrt(width * height) / 45), MIN_FONT_PX)


def _area(box: tuple[float, float, float, float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _line(shape: Shape, size: tuple[int, int], options: DrawOptions) -> int:
    """Width of a shape's lines in an image (width, height)."""
    if options.thickness is not None:
        return options.thickness
    x1, y1, x2, y2 = shape.box
    return int(min(line_width(*size), max(SMALL_LINE_PX, min(x2 - x1, y2 - y1) // 16)))


def _font_px(shape: Shape, size: tuple[int, int], options: DrawOptions) -> int:
    """Height of a shape's text in an image (width, height)."""
    if options.font_size is not None:
        return options.font_size
    usual = font_size(*size)
    least = max(min(SMALL_FONT_PX, SMALL_TEXT * usual), MIN_FONT_PX)
    found = round(min(usual, max(least, math.sqrt(max(_area(shape.box), 0)) / 3)))
    return found if found <= 16 else found // 4 * 4  # so that few sizes are loaded


def _fill(canvas: Pixels, block: Block, colour: Colour, line: int) -> None:
    """Tints the mask's pixels in place and draws its edge."""
    height, width = block.pixels.shape
    if not block.pixels.size:
        return
    window = canvas[block.top : block.top + height, block.left : block.left + width]
    tint = np.empty_like(window)
    tint[:] = colour
    mixed = cv2.addWeighted(window, 1 - MASK_OPACITY, tint, MASK_OPACITY, 0)
    window[:] = cv2.copyTo(mixed, block.pixels, np.ascontiguousarray(window))
    # Along the border of the image there are no neighbours outside: background is added, so that edges are closed.
    framed = cv2.copyMakeBorder(block.pixels, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    contours, _ = cv2.findContours(framed, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_TC89_L1)
    cv2.drawContours(canvas, contours, -1, colour, line, cv2.LINE_AA, offset=(block.left - 1, block.top - 1))


def _outline(canvas: Pixels, box: Area, colour: Colour, line: int, *, dashed: bool = False) -> None:
    """A rectangle in the class's colour between two thin ones that contrast with it, visible on any background."""
    left, top, right, bottom = box
    contrast = halo_of(colour)
    halo = min(max(1, round(line / 5)), MAX_HALO) if line > 1 else 0
    if halo:
        _frame(canvas, (left - halo, top - halo, right + halo, bottom + halo), contrast, halo)
        if right - left > 4 * line and bottom - top > 4 * line:
            _frame(canvas, (left + line, top + line, right - line, bottom - line), contrast, halo)
    _frame(canvas, box, contrast if dashed else colour, line)
    if dashed:
        _dashes(canvas, box, colour, line)


def halo_of(colour: Colour) -> Colour:
    """The colour around lines of another one: dark around light ones, light around dark ones."""
    return DARK_HALO if ink_on(colour) == (0, 0, 0) else LIGHT_HALO


def _frame(canvas: Pixels, box: Area, colour: Colour, line: int) -> None:
    """The pixels of a box, all four sides included, that are less than `line` away from its sides."""
    left, top, right, bottom = box
    for x0, y0, x1, y1 in (
        (left, top, right + 1, min(top + line, bottom + 1)),
        (left, max(bottom + 1 - line, top), right + 1, bottom + 1),
        (left, top, min(left + line, right + 1), bottom + 1),
        (max(right + 1 - line, left), top, right + 1, bottom + 1),
    ):
        canvas[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = colour


def _dashes(canvas: Pixels, box: Area, colour: Colour, line: int) -> None:
    left, top, right, bottom = box
    dash = max(3 * line, 4)
    for x in range(left, right + 1, 2 * dash):
        end = min(x + dash, right + 1)
        canvas[top : min(top + line, bottom + 1), x:end] = colour
        canvas[max(bottom + 1 - line, top) : bottom + 1, x:end] = colour
    for y in range(top, bottom + 1, 2 * dash):
        end = min(y + dash, bottom + 1)
        canvas[y:end, left : min(left + line, right + 1)] = colour
        canvas[y:end, max(right + 1 - line, left) : right + 1] = colour


def inside(box: Sequence[float], size: tuple[int, int]) -> Area:
    """The box in integer pixels inside an image (width, height), at least one pixel wide and high."""
    width, height = size
    left, right = (round(min(max(float(value), 0.0), width - 1)) for value in (box[0], box[2]))
    top, bottom = (round(min(max(float(value), 0.0), height - 1)) for value in (box[1], box[3]))
    return left, top, max(left, right), max(top, bottom)


def _place(shape: Shape, size: tuple[int, int], options: DrawOptions, placed: Sequence[Chip]) -> Chip | None:
    """The chip at the first place that covers other chips least; None if it would hide other chips everywhere."""
    width, height = size
    left, top, right, bottom = inside(shape.box, size)
    font_px = _font_px(shape, size, options)
    pad = chip_padding(font_px)
    text = _fitting(shape.texts, font_px, min(max(right - left + 1, round(WIDEST_CHIP * width)), width) - 2 * pad)
    if not text:
        return None
    chip_width, chip_height = text_size(text, font_px)[0] + 2 * pad, chip_rows(text, font_px)
    if chip_height > height:
        return None
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
    covered = _covered(areas, placed)
    # A place that was moved back into the image comes after those that fit.
    best = min(range(len(areas)), key=lambda i: (covered[i], areas[i][:2] != corners[i], i))
    if covered[best] > MAX_COVER * chip_width * chip_height:
        return None
    return Chip(text, areas[best], shape.colour, font_px)


def _fitting(texts: Sequence[str], font_px: int, limit_px: int) -> str:
    """The first text that is narrow enough, else the beginning of the last one; empty if not even that fits."""
    for text in texts:
        if text and text_size(text, font_px)[0] <= limit_px:
            return text
    last = texts[-1] if texts else ""
    short, long = 0, len(last)  # characters that fit, and that do not
    while long - short > 1:
        middle = (short + long) // 2
        fits = text_size(last[:middle] + "…", font_px)[0] <= limit_px
        short, long = (middle, long) if fits else (short, middle)
    return last[:short] + "…" if short else ""


def chip_padding(font_px: int) -> int:
    """Pixels around the text of a chip."""
    return max(2, font_px // 6)


def chip_rows(text: str, font_px: int) -> int:
    """The height of a chip with a text."""
    return text_size(text, font_px)[1] + 2 * chip_padding(font_px)


def _covered(areas: Sequence[Area], placed: Sequence[Chip]) -> list[int]:
    """Pixels of chips under each area."""
    if not placed:
        return [0] * len(areas)
    own, others = np.array(areas)[:, None], np.array([chip.area for chip in placed])
    sides = np.minimum(own[..., 2:], others[:, 2:]) - np.maximum(own[..., :2], others[:, :2])
    sides = sides.clip(min=0)
    covered: list[int] = (sides[..., 0] * sides[..., 1]).sum(axis=1).tolist()
    return covered


def draw_chip(canvas: Pixels, chip: Chip) -> None:
    """Draws a chip in place; what is beyond the edges of the image is cut off."""
    left, top, right, bottom = chip.area
    canvas[top:bottom, left:right] = chip.colour
    draw_text(canvas, chip.text, (left + chip_padding(chip.font_px), (top + bottom) / 2), chip.font_px, chip.colour)


def draw_text(
    canvas: Pixels, text: str, place: tuple[int, float], font_px: int, background: Colour, ink: Colour | None = None
) -> None:
    """Writes a text on a background of one colour, in place.

    Args:
        canvas: (H, W, 3).
        text: in one line.
        place: its left side and the middle of its height.
        font_px: its size.
        background: colour of the pixels there.
        ink: its colour; None: black or white.
    """
    opacities = text_patch(text, font_px)
    left, top = place[0], round(place[1] - opacities.shape[0] / 2)
    opacities = opacities[max(-top, 0) : canvas.shape[0] - top, : max(canvas.shape[1] - left, 0)]
    top = max(top, 0)
    pixels = np.take(_steps(background, ink or ink_on(background)), opacities, axis=0)
    canvas[top : top + opacities.shape[0], left : left + opacities.shape[1]] = pixels


@lru_cache(maxsize=256)
def _steps(background: Colour, ink: Colour) -> Pixels:
    """The colours (256, 3) from the background to the ink, by opacity."""
    return np.linspace(background, ink, 256).round().astype(np.uint8)
