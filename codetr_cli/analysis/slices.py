"""AP of parts of the data: of objects by size, shape, crowding and place, and of images by what they look like.

COCO's rule for small, medium and large objects serves for any property of a box: objects outside of a range are
ignored, and so are detections outside of it that find nothing.
Images form groups of their own: AP of a group counts the objects and the detections of its images alone.
An interval is that of a normal distribution with the standard deviation of AP among resamples of all images; its
quantiles would need many more of them.
Shape letters: G objects, N detections, I images, K classes, S resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from codetr_cli.analysis.bootstrap import FEWEST_IMAGES, image_weights, mean_of_classes, weighted_average_precision
from codetr_cli.analysis.classes import known
from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.analysis.matches import Matches, inside, match_pairs
from codetr_cli.analysis.overlaps import PlacedBoxes, overlap_counts
from codetr_cli.analysis.pairs import PairedDetections

SAMPLES = 60
"""Resamples of the images: with these, the width of an interval is known to 10 %."""
NORMAL_95 = 1.959964
"""Standard deviations on each side of the mean that 95 % of a normal distribution are within."""
BORDER = 0.01
"""A box is cut by the border of its image if it is within this share of the image's side of it."""


@dataclass(frozen=True)
class Slice:
    """Scores of a part of the data, None without an object to find.

    Attributes:
        label: which part.
        low: least value of the property; None: there is no limit.
        high: largest value of the property; None: there is no limit.
        images: images of the group; with such an object, where objects are grouped.
        objects: to find.
        ap: over IoU 0.50:0.95 at 100 detections of an image and class (LVIS: 300 of an image), in [0, 1].
        ap50: at IoU 0.50.
        recall: mean share of the objects found at IoU 0.50:0.95 (AR), mean over the classes.
        ap_interval: 95 % interval of `ap`; None where such objects are in fewer than `FEWEST_IMAGES`.
    """

    label: str
    low: float | None
    high: float | None
    images: int
    objects: int
    ap: float | None
    ap50: float | None
    recall: float | None
    ap_interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class SliceGroup:
    """Slices by one property.

    Attributes:
        key: of letters, digits and "-".
        title: the property.
        how_to_read: one or two sentences on what the groups are.
        slices: in the order of the property.
        of_images: whether images form the groups, not objects.
    """

    key: str
    title: str
    how_to_read: str
    slices: list[Slice]
    of_images: bool = False


@dataclass(frozen=True)
class Ranges:
    """How a property of boxes is divided.

    Attributes:
        key: see `SliceGroup`.
        title: see `SliceGroup`.
        how_to_read: see `SliceGroup`.
        edges: ascending, between the ranges.
        labels: of the ranges: one more than edges.
    """

    key: str
    title: str
    how_to_read: str
    edges: tuple[float, ...]
    labels: tuple[str, ...]

    def limits(self) -> dict[str, tuple[float, float]]:
        """The ranges by label. A value on an edge belongs to both, as in COCO."""
        bounds = (-math.inf, *self.edges, math.inf)
        return {label: (bounds[i], bounds[i + 1]) for i, label in enumerate(self.labels)}


SIZE = Ranges(
    "size",
    "Size of the object",
    "The side of a square with the object's area, in pixels of the image. COCO calls objects up to 32 small and from "
    "96 on large. Low AP of small objects asks for a larger input or for tiles.",
    (16.0**2, 32.0**2, 96.0**2, 288.0**2),
    ("up to 16 px", "16 to 32 px", "32 to 96 px", "96 to 288 px", "over 288 px"),
)
ASPECT = Ranges(
    "aspect",
    "Shape of the box",
    "Width over height of the box. Unusual shapes are rare in training and hard to place precisely.",
    tuple(np.log([1 / 3, 1 / 1.5, 1.5, 3]).tolist()),
    ("tall, over 1:3", "tall, 1:1.5 to 1:3", "about square", "wide, 1.5:1 to 3:1", "wide, over 3:1"),
)
CROWDING = Ranges(
    "crowding",
    "Crowding",
    "The number of other annotated objects whose boxes overlap the object's box. Low AP of crowded objects comes from "
    "hidden parts, from duplicates, and from too few queries.",
    (0.5, 2.5, 5.5, 10.5),
    ("none", "1 or 2", "3 to 5", "6 to 10", "over 10"),
)
POSITION = Ranges(
    "position",
    "Position in the image",
    "The distance of the box's centre from the image's centre: 0 is the centre, 1 a corner.",
    (0.25, 0.5, 0.75),
    ("up to 0.25", "0.25 to 0.5", "0.5 to 0.75", "over 0.75"),
)
CUT = Ranges(
    "border",
    "At the border",
    "Whether the box reaches the border of its image, within 1 % of the side: a part of such an object is not visible.",
    (0.5,),
    ("inside the image", "at the border"),
)
RANGES = (SIZE, ASPECT, CROWDING, POSITION, CUT)


def object_slices(paired: PairedDetections) -> list[SliceGroup]:
    """AP by size, shape, crowding, and, where all images have a size, by position of the objects.

    Args:
        paired: boxes, by the rules of AP.
    """
    values = object_values(paired)
    return [sliced_by(paired, ranges, *values[ranges.key]) for ranges in RANGES if ranges.key in values]


def object_values(paired: PairedDetections) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """The properties of each object, (G,), and of each detection of the inputs, (N,), by the key of their `Ranges`."""
    inputs, truth = paired.inputs, paired.inputs.ground_truth
    sides = _sides(paired)
    values = {
        SIZE.key: (truth.area[inputs.object_rows], sides[1].boxes_xywh[:, 2:].prod(axis=1)),
        ASPECT.key: (_log_aspect(sides[0].boxes_xywh), _log_aspect(sides[1].boxes_xywh)),
        CROWDING.key: _crowding(sides[0], sides[1], paired.crowds),
    }
    image_sides = truth.sizes[inputs.file_rows][:, ::-1].astype(np.float64)  # (I, 2) width, height
    if (image_sides > 0).all():
        placed = [(side.boxes_xywh, image_sides[side.images]) for side in sides]
        values[POSITION.key] = (_distance(*placed[0]), _distance(*placed[1]))
        values[CUT.key] = (_at_border(*placed[0]), _at_border(*placed[1]))
    return values


def _sides(paired: PairedDetections) -> tuple[PlacedBoxes, PlacedBoxes]:
    """All objects and all detections of the inputs, in the order of their rows."""
    inputs = paired.inputs
    truth, found = inputs.ground_truth, inputs.detections
    images = np.searchsorted(inputs.image_ids, found.image_ids).astype(np.int64)
    labels = np.searchsorted(np.array(truth.category_ids, np.int64), found.category_ids).astype(np.int64)
    objects = PlacedBoxes(truth.boxes_xywh[inputs.object_rows], paired.object_images, paired.object_labels)
    return objects, PlacedBoxes(found.boxes_xywh, images, labels)


def sliced_by(
    paired: PairedDetections, ranges: Ranges, of_objects: NDArray[np.float64], of_detections: NDArray[np.float64]
) -> SliceGroup:
    """AP of the objects in each range of a property.

    Args:
        paired: objects and detections.
        ranges: of the property.
        of_objects: (G,) the property of each object.
        of_detections: (N,) the property of each detection of the inputs; decides where it counts if it finds nothing.
    """
    weights = _weights(len(paired.inputs.image_ids))
    slices = []
    for label, limits in ranges.limits().items():
        matches = match_pairs(paired, inside(of_objects, limits), inside(of_detections, limits)).without_ignored()
        low, high = (limit if math.isfinite(limit) else None for limit in limits)
        slices.append(_scored(matches, weights, label, low, high))
    return SliceGroup(ranges.key, ranges.title, ranges.how_to_read, slices)


def _weights(images: int) -> NDArray[np.float64]:
    """(1 + S, I) how often each image counts: once, and then in each resample."""
    return np.concatenate([np.ones((1, images)), image_weights(images, SAMPLES, 0)])


def _scored(
    matches: Matches,
    weights: NDArray[np.float64],
    label: str,
    low: float | None,
    high: float | None,
    *,
    group: NDArray[np.int64] | None = None,
) -> Slice:
    """A part of the data: the objects that are not ignored, of all images or those of a group."""
    is_object, images = ~matches.object_ignored, matches.object_images
    if group is not None:
        is_member = np.zeros(matches.num_images, bool)
        is_member[group] = True
        is_object &= is_member[images]
        matches = replace(matches.select(is_member[matches.images]), object_ignored=~is_object)
        weights = weights * is_member
    ap = weighted_average_precision(matches, weights)  # (1 + S, 10, K)
    of_all, ap50 = mean_of_classes(ap.mean(axis=1)), mean_of_classes(ap[:1, 0])
    with_objects = len(np.unique(images[is_object]))
    interval = None
    if with_objects >= FEWEST_IMAGES:
        half = NORMAL_95 * float(np.nanstd(of_all[1:], ddof=1))
        interval = (max(float(of_all[0]) - half, 0.0), min(float(of_all[0]) + half, 1.0))
    return Slice(
        label=label,
        low=low,
        high=high,
        images=with_objects if group is None else len(group),
        objects=int(is_object.sum()),
        ap=known(float(of_all[0])),
        ap50=known(float(ap50[0])),
        recall=_average_recall(matches, is_object),
        ap_interval=interval,
    )


def _average_recall(matches: Matches, is_object: NDArray[np.bool_]) -> float | None:
    """Share of the objects that are found, mean over the IoUs and the classes; None without objects."""
    totals = np.bincount(matches.object_labels[is_object], minlength=matches.num_classes)
    if not totals.any():
        return None
    found = [np.bincount(matches.labels[matches.hits(level)], minlength=len(totals)) for level in range(10)]
    return float((np.mean(found, axis=0)[totals > 0] / totals[totals > 0]).mean())


def _log_aspect(boxes_xywh: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) logarithm of width over height; a side of zero counts as a hundredth of a pixel."""
    sides = boxes_xywh[:, 2:].clip(min=0.01)
    aspect: NDArray[np.float64] = np.log(sides[:, 0] / sides[:, 1])
    return aspect


def _distance(boxes_xywh: NDArray[np.float64], sides: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) distance of the box's centre from that of the image, whose (N, 2) sides are given: 0 to 1 in its corner."""
    offsets = ((boxes_xywh[:, :2] + boxes_xywh[:, 2:] / 2) / sides - 0.5) * 2
    return np.asarray(np.hypot(offsets[:, 0], offsets[:, 1]) / np.sqrt(2))


def _at_border(boxes_xywh: NDArray[np.float64], sides: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) 1 where the box reaches the border of the image, whose (N, 2) sides are given, else 0."""
    start, end = boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]
    reaches = (start <= BORDER * sides) | (end >= (1 - BORDER) * sides)
    return np.asarray(reaches.any(axis=1), np.float64)


def _crowding(
    objects: PlacedBoxes, detections: PlacedBoxes, crowds: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(G,) and (N,) number of other annotated objects that each box overlaps.

    One of those that a detection overlaps is the object that it may be about.
    """
    others = objects.select(~crowds)
    is_itself = ~crowds & (objects.boxes_xywh[:, 2:] > 0).all(axis=1)
    around = overlap_counts(objects, others) - is_itself
    return around.astype(np.float64), (overlap_counts(detections, others) - 1).clip(min=0).astype(np.float64)


@dataclass(frozen=True)
class ImageGroups:
    """Images by one property.

    Attributes:
        key: see `SliceGroup`.
        title: see `SliceGroup`.
        how_to_read: see `SliceGroup`.
        groups: by label, the numbers of the evaluated images and the least and the largest value.
    """

    key: str
    title: str
    how_to_read: str
    groups: Mapping[str, tuple[NDArray[np.int64], float, float]]


def image_slices(matches: Matches, properties: Sequence[ImageGroups]) -> list[SliceGroup]:
    """AP of the images of each group of each property.

    Args:
        matches: of boxes, by the rules of AP.
        properties: groups of the images.
    """
    weights = _weights(matches.num_images)
    return [
        SliceGroup(
            each.key,
            each.title,
            each.how_to_read,
            [
                _scored(matches, weights, label, low, high, group=images)
                for label, (images, low, high) in each.groups.items()
            ],
            of_images=True,
        )
        for each in properties
    ]


def objects_per_image(inputs: AnalysisInputs) -> NDArray[np.int64]:
    """(I,) objects of each evaluated image, without crowds."""
    truth, rows = inputs.ground_truth, inputs.object_rows
    rows = rows if truth.is_lvis else rows[truth.iscrowd[rows] == 0]
    numbers = np.searchsorted(inputs.image_ids, truth.image_ids[truth.image_rows[rows]])
    return np.bincount(numbers, minlength=len(inputs.image_ids))
