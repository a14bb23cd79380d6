"""How detections are drawn, and in which files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Labels = Literal["none", "class", "score"]
ImageFormat = Literal["same", "jpg", "png", "webp"]
LABELS: tuple[Labels, ...] = ("none", "class", "score")
MAX_PX = 1000
"""Of lines and text."""


@dataclass(frozen=True, kw_only=True)
class DrawOptions:
    """How detections are drawn.

    Attributes:
        labels: "none", "class" (the name) or "score" (name and score).
        thickness: of lines in pixels; None: by the size of the image, thinner for small objects of large images.
        font_size: of labels in pixels; None: by the size of the image, smaller for small objects of large images.
        image_format: of files: "same" as the image, or PNG where that is not written, "jpg", "png" or "webp".
        quality: of JPEG and WebP files, 1 to 100.
    """

    labels: Labels = "score"
    thickness: int | None = None
    font_size: int | None = None
    image_format: ImageFormat = "same"
    quality: int = 92
