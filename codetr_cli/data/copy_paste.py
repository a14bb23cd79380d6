"""Copy-paste (arXiv 2012.07177): objects of a second image are put over the first.

Behaviour with masks: mmdet's CopyPaste, to the last bit. Both images come from `LsjAugmentation`, so that they are of
one size. Shape letters: G objects of an image, h w the canvas' height and width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np

from codetr_cli.data.masks import Masks
from codetr_cli.data.transforms import Sample


@dataclass(frozen=True)
class CopyPasteParams:
    """Indices of the source's objects to paste, in the order in which they follow the destination's."""

    selected: tuple[int, ...]


class CopyPaste:
    """Pastes some objects of a source image over a destination.

    How many is drawn evenly from none to all, fewer than `max_pasted`; which, without replacement.

    By "masks", only the objects' own pixels are pasted. Those of the destination lose the pixels that are covered now
    and get the tight box of the rest; they stay if no side of the box moved by more than 10 pixels or more than 300
    pixels are left.

    By "boxes", for data sets without masks, whole boxes are pasted with what is around the object in them. Chosen are
    only objects whose box fills at most a quarter of the canvas, so that much of the destination stays. A source object
    that was not chosen but lies at least half within the pasted area comes along, with the box of the part that is
    seen. A destination object of whose box nothing is covered keeps its box; of which at least half is seen, gets the
    tight box of the part that is seen; any other is no longer annotated.

    Args:
        cut: "masks" or "boxes".
        max_pasted: fewer objects than this are pasted.
    """

    MOVED_PX = 10
    LEFT_PX = 300
    LARGEST = 0.25
    SEEN = 0.5

    def __init__(self, *, cut: Literal["masks", "boxes"], max_pasted: int = 100) -> None:
        self.cut = cut
        self.max_pasted = max_pasted

    def __call__(self, destination: Sample, source: Sample, rng: np.random.Generator) -> Sample:
        """Draws and applies."""
        return self.apply(destination, source, self.draw(rng, source))

    def draw(self, rng: np.random.Generator, source: Sample) -> CopyPasteParams:
        """Draws the number of objects and then which of them."""
        candidates = self._candidates(source)
        count = int(rng.integers(min(len(candidates) + 1, self.max_pasted)))
        chosen = rng.choice(len(candidates), size=count, replace=False) if count else np.zeros(0, np.int64)
        return CopyPasteParams(selected=tuple(candidates[chosen].tolist()))

    def apply(self, destination: Sample, source: Sample, choices: CopyPasteParams) -> Sample:
        """The destination with the chosen objects over it; as it is when there are none.

        Args:
            destination: what is pasted on.
            source: of the same size.
            choices: indices of the source's objects.
        """
        if not choices.selected:
            return destination
        selected = np.array(choices.selected)
        if self.cut == "boxes":
            return self._by_boxes(destination, source, selected)
        if destination.masks is None or source.masks is None:
            raise ValueError("pasting by masks needs samples with masks")
        pasted = source.select(selected)
        covered = source.masks.select(selected).union()
        left = destination.masks.without(covered)
        boxes = left.tight_boxes()
        keep = (np.abs(boxes - destination.boxes) <= self.MOVED_PX).all(axis=1) | (left.areas() > self.LEFT_PX)
        return _composed(replace(destination, boxes=boxes, masks=left).select(keep), pasted, covered)

    def _candidates(self, source: Sample) -> np.ndarray:
        """Indices of the objects that may be pasted."""
        if self.cut == "masks":
            return np.arange(len(source.labels))
        height, width = source.size
        areas = (source.boxes[:, 2] - source.boxes[:, 0]) * (source.boxes[:, 3] - source.boxes[:, 1])
        return np.flatnonzero((areas > 0) & (areas <= self.LARGEST * height * width))

    def _by_boxes(self, destination: Sample, source: Sample, selected: np.ndarray) -> Sample:
        covered = Masks.from_boxes(source.boxes[selected], source.size).union()
        others = np.setdiff1d(np.arange(len(source.labels)), selected)
        along = self._what_is_seen(source.select(others), 1 - covered)
        return _composed(self._what_is_seen(destination, covered), _joined(source.select(selected), along), covered)

    def _what_is_seen(self, sample: Sample, hidden: np.ndarray) -> Sample:
        """The objects at least half of whose box is outside `hidden` (h, w), with the boxes of what is seen of them."""
        rectangles = Masks.from_boxes(sample.boxes, sample.size)
        left, areas = rectangles.without(hidden), rectangles.areas()
        seen = left.areas()
        boxes = np.where((seen == areas)[:, None], sample.boxes, left.tight_boxes())
        masks = None if sample.masks is None else sample.masks.without(hidden)
        return replace(sample, boxes=boxes, masks=masks).select((areas > 0) & (seen >= self.SEEN * areas))


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
