"""Draws detections against annotated objects: hits, misses and false alarms in three colours, with a legend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from codetr_cli.errors import counted
from codetr_cli.inference.draw_options import DrawOptions
from codetr_cli.inference.drawing import Shape, draw_shapes, draw_text, font_size, label_texts
from codetr_cli.inference.fonts import text_size
from codetr_cli.inference.palette import Colour
from codetr_cli.inference.prediction import Prediction
from codetr_cli.prediction.comparison import Comparison

View = Literal["side", "overlay"]
Pixels = NDArray[np.uint8]

HIT: Colour = (0, 170, 235)
MISS: Colour = (255, 205, 0)
FALSE_ALARM: Colour = (225, 50, 10)
CROWD: Colour = (150, 150, 150)
BACKGROUND: Colour = (32, 32, 32)
INK: Colour = (240, 240, 240)
SMALLEST_PANEL = 480
"""Pixels of the longer side of an image that is enlarged to about this size, so that labels fit on it."""


@dataclass(frozen=True)
class Entry:
    """An entry of a legend."""

    text: str
    colour: Colour | None = None


def draw_comparison(
    image: Pixels, prediction: Prediction, comparison: Comparison, options: DrawOptions, view: View = "side"
) -> Pixels:
    """A picture of an image (H, W, 3) uint8 RGB with its detections against its annotated objects.

    Args:
        image: the predicted one, or at another size.
        prediction: its detections.
        comparison: of these detections.
        options: how objects are drawn.
        view: "side": annotated objects on the left, detections on the right; "overlay": misses and detections on one.
    """
    enlarged = max(SMALLEST_PANEL // max(image.shape[:2]), 1)
    if enlarged > 1:
        size = (image.shape[1] * enlarged, image.shape[0] * enlarged)
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC), np.uint8)
    height, width = prediction.image_size
    scale = np.array([image.shape[1] / width, image.shape[0] / height] * 2)
    legend = _legend(comparison)
    annotated = _annotated_shapes(comparison, options, scale)
    detected = _detected_shapes(prediction, comparison, options, scale)
    if view == "overlay":
        misses = _annotated_shapes(comparison, options, scale, hits=False)
        return _with_header(draw_shapes(image, [*misses, *detected], options), legend)
    gap = np.full((image.shape[0], max(4, image.shape[1] // 150), 3), BACKGROUND, np.uint8)
    panels = [draw_shapes(image, annotated, options), gap, draw_shapes(image, detected, options)]
    titles = [Entry(f"Annotated: {_counted(comparison, annotated)}"), Entry(f"Detected: {len(detected)}")]
    font_px = font_size(image.shape[1], image.shape[0])
    headed = [
        _with_header(panel, [title], font_px) for panel, title in zip((panels[0], panels[2]), titles, strict=True)
    ]
    gap = np.full((headed[0].shape[0], gap.shape[1], 3), BACKGROUND, np.uint8)
    return _with_header(np.concatenate([headed[0], gap, headed[1]], axis=1), legend, font_px)


def _counted(comparison: Comparison, shapes: Sequence[Shape]) -> str:
    crowds = int(comparison.truth.iscrowd.sum())
    return f"{len(shapes) - crowds}" + (f" and {counted(crowds, 'crowd')}" if crowds else "")


def _legend(comparison: Comparison) -> list[Entry]:
    counts = comparison.counts()
    return [
        Entry(f"Hits {counts['hits']}", HIT),
        Entry(f"Misses {counts['misses']}", MISS),
        Entry(f"False alarms {counts['false_alarms']}", FALSE_ALARM),
    ]


def _annotated_shapes(
    comparison: Comparison, options: DrawOptions, scale: NDArray[np.float64], *, hits: bool = True
) -> list[Shape]:
    """The annotated objects, misses first."""
    truth = comparison.truth
    found = {number for _, number in comparison.hits}
    shapes = []
    for i in (*comparison.misses, *np.flatnonzero(truth.iscrowd).tolist(), *(sorted(found) if hits else ())):
        colour = CROWD if truth.iscrowd[i] else HIT if i in found else MISS
        texts = label_texts(truth.class_names[i], None, options)
        shapes.append(Shape(_scaled(truth.boxes[i], scale), colour, texts, is_dashed=colour != HIT))
    return shapes


def _detected_shapes(
    prediction: Prediction, comparison: Comparison, options: DrawOptions, scale: NDArray[np.float64]
) -> list[Shape]:
    """The detections that count, false alarms first."""
    shapes = []
    for i, colour in (*((i, FALSE_ALARM) for i in comparison.false_alarms), *((i, HIT) for i, _ in comparison.hits)):
        category_id = int(prediction.category_ids[i])
        texts = label_texts(prediction.class_names[i], float(prediction.scores[i]), options, category_id)
        shapes.append(Shape(_scaled(prediction.boxes[i], scale), colour, texts))
    return shapes


def _scaled(box: NDArray[np.floating], scale: NDArray[np.float64]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = (box * scale).tolist()
    return x1, y1, x2, y2


def _with_header(picture: Pixels, entries: Sequence[Entry], font_px: int | None = None) -> Pixels:
    """A picture below a bar with entries, in as many lines as they need."""
    height, width = picture.shape[:2]
    font_px = font_px or font_size(width, height)
    rows = text_size("Ag", font_px)[1]
    margin = max(font_px // 2, 3)
    places: list[tuple[int, int, Entry]] = []
    x, line = margin, 0
    for entry in entries:
        wide = text_size(entry.text, font_px)[0] + (rows + margin if entry.colour else 0)
        if x > margin and x + wide + margin > width:
            x, line = margin, line + 1
        places.append((x, line, entry))
        x += wide + 2 * margin
    bar = np.full(((line + 1) * (rows + margin) + margin, width, 3), BACKGROUND, np.uint8)
    for x, line, entry in places:
        top = margin + line * (rows + margin)
        if entry.colour:
            bar[top : top + rows, x : x + rows] = entry.colour
            x += rows + margin
        draw_text(bar, entry.text, (x, top + rows / 2), font_px, BACKGROUND, INK)
    return np.concatenate([bar, picture])
