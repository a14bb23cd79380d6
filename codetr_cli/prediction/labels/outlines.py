"""Masks of detections as polygons, for layouts that have no masks."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from codetr_cli.annotations.outlines import decode

SMALLEST_PART = 0.05
"""Of the mask's area: smaller parts are specks, which a label does not need."""
TOLERANCE_PX = 0.5
"""The polygon's distance from the edge of the mask, at most."""


def mask_polygons(mask: dict[str, Any]) -> list[list[float]]:
    """The outer edges of a mask's parts, x, y, x, y, ... in pixels, the largest first; holes are filled.

    Args:
        mask: in COCO's compressed run-length encoding.
    """
    height, width = mask["size"]
    top, left, pixels = decode(mask, (height, width))
    if not pixels.any():
        return []
    # Contours run through the centres of pixels: of pixels of half the size they are nearer to the edge.
    doubled = np.ascontiguousarray(pixels.repeat(2, 0).repeat(2, 1))
    contours, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    total = float(pixels.sum())
    parts = []
    for contour in contours:
        points = cv2.approxPolyDP(contour, 2 * TOLERANCE_PX, closed=True).reshape(-1, 2)
        area = cv2.contourArea(contour) / 4
        if len(points) >= 3 and area >= SMALLEST_PART * total:
            parts.append((area, (points / 2 + 0.25 + (left, top)).round(2)))
    parts.sort(key=lambda part: -part[0])
    return [part.ravel().tolist() for _, part in parts]
