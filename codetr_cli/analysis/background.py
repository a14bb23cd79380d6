"""How rarely annotated objects look like background to a network, which says whether a box is of nothing.

A network that misses an object and an annotation of nothing look the same: no detection is near the box. How often the
first happens is not known, since the annotations are the only truth there is. But it is known how often annotated boxes
are without detections, and how often boxes of the same shape are that lie where nothing is annotated. Annotations of
nothing are at most as frequent as the first of these divided by the second.
Shape letters: G annotated objects of an image, B boxes of background.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.analysis.label_evidence import MOST_ERRORS, Floats, ImageEvidence, overlaps

NEAR_IOU = 0.25
"""IoU from which a detection says that something is there, of whatever class and shape."""
MOST_COVERED = 0.25
"""Share of a box that is on annotated objects, from which it is no background."""
OTHER_IMAGES = 2
"""Images in which each annotated box is compared with what is there."""
MOST_SIZES, BOXES_OF_A_SIZE = 5, 1000
"""Groups of boxes by size, and annotated boxes in each at least, so that their ratios differ by more than chance."""


@dataclass(frozen=True, eq=False)
class Ratio:
    """How many times as many annotated boxes as boxes of background have a detection of some sureness near them.

    Attributes:
        sureness: (S,) ascending: lowest one of each step.
        ratios: (S,) ascending.
    """

    sureness: Floats
    ratios: Floats

    @classmethod
    def of(cls, annotated: Floats, background: Floats) -> Ratio:
        """Isotonic regression; each step as if one box of each kind more were on it, so that few boxes prove nothing.

        Args:
            annotated: (N,) the surest detections near annotated boxes.
            background: (M,) those near boxes of background.
        """
        values, index = np.unique(np.concatenate([annotated, background, [0.0]]), return_inverse=True)
        counts = [
            np.bincount(part, minlength=len(values)).astype(np.float64)
            for part in (index[: len(annotated)], index[len(annotated) : -1])
        ]
        both = np.maximum(counts[0] + counts[1], 1e-9)
        starts = isotonic_regression(counts[0] / both, weights=both).blocks[:-1]
        shares = [(np.add.reduceat(count, starts) + 1) / (count.sum() + 1) for count in counts]
        return cls(values[starts], np.maximum.accumulate(shares[0] / shares[1]))

    def __call__(self, sureness: float) -> float:
        """The ratio at some sureness."""
        return float(self.ratios[max(int(np.searchsorted(self.sureness, sureness, side="right")) - 1, 0)])


@dataclass(frozen=True, eq=False)
class Background:
    """What annotated boxes and boxes of background have near them, over a data set.

    Attributes:
        by_size: for each group of sizes.
        by_class: for each class index.
        limits: between these groups: roots of shares of an image.
        areas: (I,) pixels of each evaluated image.
    """

    by_size: list[Ratio]
    by_class: list[Ratio]
    limits: Floats
    areas: Floats

    @classmethod
    def of(cls, inputs: AnalysisInputs, images: Sequence[ImageEvidence]) -> Background:
        """Compares the annotated boxes with what is in their places in the next images."""
        sizes = inputs.ground_truth.sizes[inputs.file_rows].astype(np.float64)
        sizes[sizes <= 0] = sizes.max(initial=1.0)  # of an image whose size is not in the annotations
        areas = sizes.prod(1)
        annotated = _joined(_annotated(each, areas) for each in images)
        background = _joined(_background(images, areas, sizes))
        count = min(max(len(annotated) // BOXES_OF_A_SIZE, 1), MOST_SIZES)
        limits = np.quantile(annotated[:, 1], np.arange(1, count) / count) if count > 1 else np.zeros(0)
        groups = [np.searchsorted(limits, each[:, 1], side="right") for each in (annotated, background)]
        return cls(
            [
                Ratio.of(annotated[groups[0] == number, 0], background[groups[1] == number, 0])
                for number in range(count)
            ],
            [
                Ratio.of(annotated[annotated[:, 2] == label, 0], background[background[:, 2] == label, 0])
                for label in range(len(inputs.ground_truth.class_names))
            ],
            limits,
            areas,
        )

    def ratio(self, each: ImageEvidence, number: int, sureness: float) -> float:
        """The ratio of boxes of an object's size, or that of its class where it is higher.

        Args:
            each: the image.
            number: of the object in it.
            sureness: of the surest detection near the object, see `surest_near`.
        """
        size = np.sqrt(_area(each.object_boxes[[number]])[0] / self.areas[each.image])
        of_size = self.by_size[int(np.searchsorted(self.limits, size, side="right"))]
        return max(of_size(sureness), self.by_class[int(each.object_labels[number])](sureness))

    def suspicion(self, ratio: float) -> float:
        """How likely an annotation is of nothing, in [0, 0.5].

        By Bayes' rule it is the share of annotations of nothing divided by the ratio. The share is not known: it is
        taken to be the same for all sizes, so that it is at most the ratio of boxes without detections of the size
        where this is lowest, and hardly more than `MOST_ERRORS`. Half of that is expected.
        """
        return 0.5 * min(MOST_ERRORS, *(of_size(0.0) for of_size in self.by_size)) / ratio


def surest_near(each: ImageEvidence, boxes: Floats) -> Floats:
    """(B,) sureness of the surest detection of any class near each box xywh; 0: none is near."""
    near = overlaps(each.boxes, boxes) >= NEAR_IOU
    found: Floats = np.where(near, each.sureness[:, None], 0.0).max(0, initial=0.0)
    return found


def _annotated(each: ImageEvidence, areas: Floats) -> Floats:
    """(G, 3) of annotated objects: the surest detection near them, root of the share of the image, class index."""
    single = ~each.crowd
    boxes = each.object_boxes[single]
    size = np.sqrt(_area(boxes) / areas[each.image])
    return np.stack([surest_near(each, boxes), size, each.object_labels[single].astype(np.float64)], 1)


def _background(images: Sequence[ImageEvidence], areas: Floats, sizes: Floats) -> Iterator[Floats]:
    """The same of boxes in the next images, in the places of annotated ones: where nothing is annotated there."""
    for step in range(1, min(OTHER_IMAGES, len(images) - 1) + 1):
        for each, other in zip(images, [*images[step:], *images[:step]], strict=True):
            single = ~each.crowd
            scale = np.tile((sizes[other.image] / sizes[each.image])[::-1], 2)
            boxes = each.object_boxes[single] * scale
            free = ~(overlaps(boxes, other.object_boxes, inside=True) >= MOST_COVERED).any(1)
            boxes, labels = boxes[free], each.object_labels[single][free]
            size = np.sqrt(_area(boxes) / areas[other.image])
            yield np.stack([surest_near(other, boxes), size, labels.astype(np.float64)], 1)


def _joined(parts: Iterator[Floats]) -> Floats:
    return np.concatenate([np.zeros((0, 3)), *parts])


def _area(boxes: Floats) -> NDArray[np.float64]:
    area: NDArray[np.float64] = boxes[:, 2] * boxes[:, 3]
    return area
