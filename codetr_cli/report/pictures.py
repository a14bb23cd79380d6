"""Small pictures of images with boxes over them: WebP inside the page, the boxes as lines that stay sharp."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from codetr_cli.report.markup import element, joined

Kind = Literal["hit", "miss", "alarm", "crowded", "annotated", "suspected", "detected", "proposed"]
KINDS: dict[Kind, str] = {
    "hit": "found: detection of an annotated object",
    "miss": "annotated, not found",
    "alarm": "detected, not annotated",
    "crowded": "annotated crowd, does not count",
    "annotated": "annotated",
    "suspected": "annotated, in question",
    "detected": "detected",
    "proposed": "proposed correction",
}
"""Kinds of boxes -> what they mean, for legends."""

LONGEST_SIDE = 320
"""Pixels of the longer side of a picture."""
QUALITY = 70
MAX_BOXES, MAX_TEXTS = 80, 12
"""Of a picture: boxes that are drawn, and those that its text for screen readers names."""
MARGIN = 0.6
"""Around a crop, as a part of its box's longer side."""

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels of the image."""


@dataclass(frozen=True)
class DrawnBox:
    """A box over a picture, in pixels of the image, with a text for those who point at it or do not see it."""

    box: Box
    kind: Kind
    text: str


def picture(
    image: NDArray[np.uint8],
    boxes: Sequence[DrawnBox],
    caption: str,
    *,
    crop: Box | None = None,
    longest_side: int = LONGEST_SIDE,
    key: str | None = None,
) -> Markup:
    """A figure of an image, or a part of it, with boxes.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes: in pixels of the image.
        caption: below the picture.
        crop: the part that is shown, with a margin around it; None: all.
        longest_side: pixels of the picture; smaller images keep their size.
        key: its address within the page; None: none.
    """
    part = _Part.of(image, crop)
    drawn = element("image", href=_webp(image, part, longest_side), width=part.width, height=part.height)
    svg = part.svg(drawn, boxes, caption)
    return element("figure", svg, element("figcaption", element("bdi", caption)), class_="picture", id=key)


def picture_pair(
    image: NDArray[np.uint8],
    left: tuple[str, Sequence[DrawnBox]],
    right: tuple[str, Sequence[DrawnBox]],
    caption: str,
    *,
    key: str,
    crop: Box | None = None,
    longest_side: int = LONGEST_SIDE,
) -> Markup:
    """A figure of an image twice, side by side, with a title and boxes for each; the page has its pixels once.

    Args:
        image: (H, W, 3) uint8 RGB.
        left: title and boxes, in pixels of the image.
        right: as `left`.
        caption: below the pictures.
        key: the figure's address within the page.
        crop: the part that is shown, with a margin around it; None: all.
        longest_side: pixels of each picture.
    """
    part = _Part.of(image, crop)
    place = {"width": part.width, "height": part.height}
    drawn = element("image", href=_webp(image, part, longest_side), id=f"{key}-pixels", **place)
    again = element("use", href=f"#{key}-pixels")
    sides = [
        element("div", element("p", title), part.svg(pixels, boxes, f"{caption}, {title}"))
        for (title, boxes), pixels in ((left, drawn), (right, again))
    ]
    return element(
        "figure",
        element("div", joined(sides), class_="pair"),
        element("figcaption", element("bdi", caption)),
        class_="picture",
        id=key,
    )


@dataclass(frozen=True)
class _Part:
    """A part of an image in whole pixels."""

    left: int
    top: int
    width: int
    height: int

    @classmethod
    def of(cls, image: NDArray[np.uint8], crop: Box | None) -> _Part:
        height, width = image.shape[:2]
        left, top, right, bottom = (0, 0, width, height) if crop is None else _around(crop, (height, width))
        return cls(left, top, right - left, bottom - top)

    def svg(self, pixels: Markup, boxes: Sequence[DrawnBox], caption: str) -> Markup:
        """The part with boxes over it; more than `MAX_BOXES` would hide it."""
        shapes: list[Markup] = []
        for drawn in boxes[:MAX_BOXES]:
            x1, y1, x2, y2 = drawn.box
            place = {"x": x1 - self.left, "y": y1 - self.top, "width": max(x2 - x1, 0.0), "height": max(y2 - y1, 0.0)}
            shapes.append(element("rect", class_="under", **place))
            shapes.append(element("rect", element("title", drawn.text), class_=f"box {drawn.kind}", **place))
        texts = "; ".join(drawn.text for drawn in boxes[:MAX_TEXTS])
        return element(
            "svg",
            pixels,
            joined(shapes),
            viewBox=f"0 0 {self.width} {self.height}",
            role="img",
            aria_label=f"{caption}. {texts}",
        )


def _webp(image: NDArray[np.uint8], part: _Part, longest_side: int) -> str:
    """The pixels of a part as an address."""
    pixels = image[part.top : part.top + part.height, part.left : part.left + part.width]
    scale = min(longest_side / max(pixels.shape[:2]), 1.0)
    size = (max(round(pixels.shape[1] * scale), 1), max(round(pixels.shape[0] * scale), 1))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) if scale < 1 else pixels
    ok, content = cv2.imencode(".webp", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_WEBP_QUALITY, QUALITY])
    assert ok
    return f"data:image/webp;base64,{base64.b64encode(content.tobytes()).decode('ascii')}"


def gallery(pictures: Sequence[Markup], *, small: bool = False) -> Markup:
    """Pictures side by side; small ones are crops."""
    return element("ul", joined(element("li", each) for each in pictures), class_="crops" if small else "pictures")


def legend(kinds: Sequence[Kind]) -> Markup:
    """What the lines of boxes mean."""
    entries = [
        element(
            "li",
            element(
                "span",
                element(
                    "svg",
                    element("rect", x=1, y=1, width=24, height=10, class_="under"),
                    element("rect", x=1, y=1, width=24, height=10, class_=f"box {kind}"),
                    viewBox="0 0 26 12",
                    aria_hidden="true",
                ),
                class_="picture key",
            ),
            f" {KINDS[kind]}",
        )
        for kind in kinds
    ]
    return element("ul", joined(entries), class_="legend")


def _around(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A part of an image with a box and a margin: whole pixels, never empty."""
    height, width = size
    x1, y1, x2, y2 = box
    margin = MARGIN * max(x2 - x1, y2 - y1, 16.0)
    left = int(np.clip(np.floor(x1 - margin), 0, width - 1))
    top = int(np.clip(np.floor(y1 - margin), 0, height - 1))
    right = int(np.clip(np.ceil(x2 + margin), left + 1, width))
    bottom = int(np.clip(np.ceil(y2 + margin), top + 1, height))
    return left, top, right, bottom
