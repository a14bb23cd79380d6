"""Pictures of a report, up to a number of bytes: images are read when they are needed, and may be absent."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.errors import CodetrError
from codetr_cli.images.decoder import read_image
from codetr_cli.report.pictures import Box, DrawnBox, picture, picture_pair

logger = logging.getLogger(__name__)

CROP_SIDE = 200
KEPT_IMAGES = 8
"""Decoded images that are kept: sections come back to the same ones."""


class Thumbnails:
    """Pictures of evaluated images.

    Args:
        inputs: the images.
        budget: bytes of all pictures.

    Attributes:
        skipped: number of pictures that exceed the budget.
        unreadable: names of images that could not be read.
    """

    def __init__(self, inputs: AnalysisInputs, budget: int) -> None:
        self._inputs, self._left = inputs, budget
        self._decoded: dict[int, NDArray[np.uint8] | None] = {}
        self.skipped = 0
        self.unreadable: list[str] = []

    def pair(
        self,
        image: int,
        left: tuple[str, Sequence[DrawnBox]],
        right: tuple[str, Sequence[DrawnBox]],
        caption: str,
        *,
        key: str,
        crop: Box | None = None,
    ) -> Markup | None:
        """A `picture_pair` of the evaluated image number `image`; None where there is no image or no budget left."""
        return self._within_budget(image, lambda pixels: picture_pair(pixels, left, right, caption, key=key, crop=crop))

    def crop(self, image: int, box: Box, boxes: Sequence[DrawnBox], caption: str) -> Markup | None:
        """A picture of the surroundings of a box in pixels of the image; None as for `pair`."""
        return self._within_budget(
            image, lambda pixels: picture(pixels, boxes, caption, crop=box, longest_side=CROP_SIDE)
        )

    def remark(self) -> str:
        """Why pictures are missing, a sentence; empty if none is."""
        texts = []
        if self.unreadable:
            texts.append(f"Images that could not be read: {len(self.unreadable):,}, e.g. {self.unreadable[0]}.")
        if self.skipped:
            texts.append(f"Pictures that are not shown, to keep this file small: {self.skipped:,}.")
        return " ".join(texts)

    def _within_budget(self, image: int, draw: Callable[[NDArray[np.uint8]], Markup]) -> Markup | None:
        if self._left <= 0:
            self.skipped += 1
            return None
        pixels = self._pixels(image)
        if pixels is None:
            return None
        drawn = draw(pixels)
        self._left -= len(drawn)
        return drawn

    def _pixels(self, image: int) -> NDArray[np.uint8] | None:
        if image not in self._decoded:
            while len(self._decoded) >= KEPT_IMAGES:
                self._decoded.pop(next(iter(self._decoded)))
            self._decoded[image] = self._read(image)
        return self._decoded[image]

    def _read(self, image: int) -> NDArray[np.uint8] | None:
        name = self._inputs.file_name(image)
        try:
            if self._inputs.may_read(image):
                return read_image(self._inputs.image_path(image))
            logger.debug("no picture: %s is not inside the data set", name)
        except (CodetrError, OSError, ValueError) as error:
            logger.debug("no picture: %s", error)
        if name not in self.unreadable:
            self.unreadable.append(name)
        return None
