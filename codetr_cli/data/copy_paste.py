"""Copy-paste (arXiv 2012.07177): objects of a second image are pasted over the first.

Behaviour with masks: mmdet's CopyPaste, bit for bit. Both images come from `LsjAugmentation`, so they have the same
size. Shape letters: G objects of an image, h w the canvas' height and width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np

from codetr_cli.annotations.masks import Masks
from codetr_cli.data.sample import Sample


@dataclass(frozen=True)
class CopyPasteParams:
    """Indices of the source's objects to paste, in the order in which they are appended to the destination's."""

    selected: tuple[int, ...]


class CopyPaste:
    """Pastes some objects of a source image over a destination.

    Their number is uniform from none to all, less than `max_pasted`; they are sampled without replacement.

    With "masks", only the objects' own pixels are pasted. Destination objects lose the covered pixels and get the tight
    box of the rest; they are kept if no side of the box moved by more than 10 pixels or more than 300 pixels remain.

    With "boxes", for data sets without masks, whole boxes are pasted, including the background in them. Only objects
    whose box fills at most a quarter of the canvas are candidates, so that much of the destination remains. A source
    object that was not selected but is at least half inside the pasted area is added too, with the box of its visible
    part. A destination object keeps its box if none of it is covered, gets the tight box of its visible part if that is
    at least half, and is removed otherwise.

    Args:
        cut: "masks" or "boxes".
        max_pasted: fewer objects than this are pasted.
    """

    MAX_SHIFT_PX = 10
    MIN_REMAINING_PX = 300
    MAX_BOX_SHARE = 0.25
    MIN_VISIBLE = 0.5

    def __init__(self, *, cut: Literal["masks", "boxes"], max_pasted: int = 100) -> None:
        self.cut = cut
        self.max_pasted = max_pasted

    def __call__(self, destination: Sample, source: Sample, rng: np.random.Generator) -> Sample:
        """Samples the parameters and applies them."""
        return self.apply(destination, source, self.make_params(rng, source))

    def make_params(self, rng: np.random.Generator, source: Sample) -> CopyPasteParams:
        """Samples the number of objects and then their indices."""
        candidates = self._candidates(source)
        count = int(rng.integers(min(len(candidates) + 1, self.max_pasted)))
        chosen = rng.choice(len(candidates), size=count, replace=False) if count else np.zeros(0, np.int64)
        return CopyPasteParams(selected=tuple(candidates[chosen].tolist()))

    def apply(self, destination: Sample, source: Sample, params: CopyPasteParams) -> Sample:
        """Pastes the selected objects over the destination, of the same size; without any, returns it unchanged."""
        if not params.selected:
            return destination
        selected = np.array(params.selected)
        if self.cut == "boxes":
            return self._by_boxes(destination, source, selected)
        if destination.masks is None or source.masks is None:
            raise ValueError("pasting by masks needs samples with masks")
        pasted = source.select(selected)
        covered = source.masks.select(selected).union()
        remaining = destination.masks.without(covered)
        boxes = remaining.tight_boxes()
        keep = (np.abs(boxes - destination.boxes) <= self.MAX_SHIFT_PX).all(axis=1) | (
            remaining.areas() > self.MIN_REMAINING_PX
        )
        return _composed(replace(destination, boxes=boxes, masks=remaining).select(keep), pasted, covered)

    def _candidates(self, source: Sample) -> np.ndarray:
        """Indices of the objects that can be pasted."""
        if self.cut == "masks":
            return np.arange(len(source.labels))
        height, width = source.size
        areas = (source.boxes[:, 2] - source.boxes[:, 0]) * (source.boxes[:, 3] - source.boxes[:, 1])
        return np.flatnonzero((areas > 0) & (areas <= self.MAX_BOX_SHARE * height * width))

    def _by_boxes(self, destination: Sample, source: Sample, selected: np.ndarray) -> Sample:
        covered = Masks.from_boxes(source.boxes[selected], source.size).union()
        unselected = np.setdiff1d(np.arange(len(source.labels)), selected)
        partly = self._visible_objects(source.select(unselected), 1 - covered)
        return _composed(self._visible_objects(destination, covered), _joined(source.select(selected), partly), covered)

    def _visible_objects(self, sample: Sample, hidden: np.ndarray) -> Sample:
        """The objects with at least half of their box outside `hidden` (h, w), with the boxes of the visible parts."""
        rectangles = Masks.from_boxes(sample.boxes, sample.size)
        remaining, areas = rectangles.without(hidden), rectangles.areas()
        visible = remaining.areas()
        boxes = np.where((visible == areas)[:, None], sample.boxes, remaining.tight_boxes())
        masks = None if sample.masks is None else sample.masks.without(hidden)
        return replace(sample, boxes=boxes, masks=masks).select((areas > 0) & (visible >= self.MIN_VISIBLE * areas))


def _composed(destination: Sample, pasted: Sample, covered: np.ndarray) -> Sample:
    """The pasted objects' pixels over the destination's, and the objects of both."""
    image = destination.image.copy()
    cv2.copyTo(pasted.image, covered, image)
    return replace(_joined(destination, pasted), image=image)


def _joined(first: Sample, second: Sample) -> Sample:
    """The first sample with the objects of both."""
    masks = None if first.masks is None or second.masks is None else first.masks.joined(second.masks)
    return replace(
        first,
        boxes=np.concatenate([first.boxes, second.boxes]),
        labels=np.concatenate([first.labels, second.labels]),
        iscrowd=np.concatenate([first.iscrowd, second.iscrowd]),
        area=np.concatenate([first.area, second.area]),
        masks=masks,
    )
