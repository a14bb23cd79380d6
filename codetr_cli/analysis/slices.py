"""AP of parts of the data: of objects by size, shape, crowding and place, and of images by what they look like.

COCO's rule for small, medium and large objects serves for any property of a box: objects outside of a range are
ignored, and so are detections outside of it that find nothing. Only the column `area` changes, the matching is COCO's.
Images form groups of their own: AP of a group counts the objects and the detections of its images alone.
Shape letters: G objects, N detections, I images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codetr_cli.analysis.classes import known
from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.analysis.overlaps import PlacedBoxes, overlap_counts
from codetr_cli.evaluation.backends import HotcocoInputs, Instances, ScoringInputs
from codetr_cli.evaluation.scoring import LVIS_MAX_DETS, scoring_inputs

MAX_DETS = 100
"""Detections of an image and class that count, as in AP; LVIS has its own number."""
EVERYTHING = (-1e12, 1e12)
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
    """

    label: str
    low: float | None
    high: float | None
    images: int
    objects: int
    ap: float | None
    ap50: float | None
    recall: float | None


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
        bounds = (EVERYTHING[0], *self.edges, EVERYTHING[1])
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


def object_slices(loaded: HotcocoInputs, scored: ScoringInputs) -> list[SliceGroup]:
    """AP by size, shape, crowding, and, where all images have a size, by position of the objects.

    Args:
        loaded: of `scored`; its areas are replaced.
        scored: from `slice_inputs`.
    """
    crowding = _crowding(scored)
    groups = [
        sliced_by(loaded, scored, SIZE, scored.objects.area, scored.detections.area),
        sliced_by(loaded, scored, ASPECT, _log_aspect(scored.objects), _log_aspect(scored.detections)),
        sliced_by(loaded, scored, CROWDING, *crowding),
    ]
    if all(height > 0 and width > 0 for _, height, width in scored.images):
        groups.append(sliced_by(loaded, scored, POSITION, *(_distance(scored, side) for side in _sides(scored))))
        groups.append(sliced_by(loaded, scored, CUT, *(_at_border(scored, side) for side in _sides(scored))))
    return groups


def slice_inputs(inputs: AnalysisInputs) -> ScoringInputs:
    """What is scored in each slice: boxes, by the rules of AP."""
    limit = LVIS_MAX_DETS if inputs.ground_truth.is_lvis else MAX_DETS
    return scoring_inputs(inputs.ground_truth, inputs.image_ids, inputs.object_rows, inputs.detections, [limit])


def sliced_by(
    loaded: HotcocoInputs,
    scored: ScoringInputs,
    ranges: Ranges,
    of_objects: NDArray[np.float64],
    of_detections: NDArray[np.float64],
) -> SliceGroup:
    """AP of the objects in each range of a property.

    Args:
        loaded: of `scored`; its areas are replaced.
        scored: objects and detections.
        ranges: of the property.
        of_objects: (G,) the property of each object.
        of_detections: (N,) the property of each detection; decides where it counts if it finds nothing.
    """
    limits = ranges.limits()
    loaded.set_areas(of_objects, of_detections)
    evaluation = loaded.evaluate(limits)
    evaluation.accumulate()
    tables = evaluation.eval
    assert tables is not None
    precision, recall = np.asarray(tables["precision"]), np.asarray(tables["recall"])
    slices = []
    for number, (label, (low, high)) in enumerate(limits.items()):
        inside = (of_objects >= low) & (of_objects <= high) & (scored.objects.iscrowd == 0)
        slices.append(
            Slice(
                label=label,
                low=None if low == EVERYTHING[0] else low,
                high=None if high == EVERYTHING[1] else high,
                images=len(np.unique(scored.objects.image_ids[inside])),
                objects=int(inside.sum()),
                ap=_mean(precision[:, :, :, number, -1]),
                ap50=_mean(precision[0, :, :, number, -1]),
                recall=_mean(recall[:, :, number, -1]),
            )
        )
    return SliceGroup(ranges.key, ranges.title, ranges.how_to_read, slices)


def _mean(table: NDArray[np.float64]) -> float | None:
    values = table[table > -1]
    return float(values.mean()) if values.size else None


def _sides(scored: ScoringInputs) -> tuple[Instances, Instances]:
    return scored.objects, scored.detections


def _log_aspect(instances: Instances) -> NDArray[np.float64]:
    """(N,) logarithm of width over height; a side of zero counts as a hundredth of a pixel."""
    sides = instances.boxes_xywh[:, 2:].clip(min=0.01)
    aspect: NDArray[np.float64] = np.log(sides[:, 0] / sides[:, 1])
    return aspect


def _image_sides(scored: ScoringInputs, instances: Instances) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(N,) number of the image, and (N, 2) its width and height."""
    images = np.array(scored.images, np.int64).reshape(-1, 3)
    numbers = np.searchsorted(images[:, 0], instances.image_ids)
    return numbers, images[numbers][:, [2, 1]].astype(np.float64)


def _distance(scored: ScoringInputs, instances: Instances) -> NDArray[np.float64]:
    """(N,) distance of the box's centre from that of the image: 0 to 1 in its corner."""
    _, sides = _image_sides(scored, instances)
    centres = instances.boxes_xywh[:, :2] + instances.boxes_xywh[:, 2:] / 2
    offsets = (centres / sides - 0.5) * 2
    return np.asarray(np.hypot(offsets[:, 0], offsets[:, 1]) / np.sqrt(2))


def _at_border(scored: ScoringInputs, instances: Instances) -> NDArray[np.float64]:
    """(N,) 1 where the box reaches the border of the image, else 0."""
    _, sides = _image_sides(scored, instances)
    start, end = instances.boxes_xywh[:, :2], instances.boxes_xywh[:, :2] + instances.boxes_xywh[:, 2:]
    reaches = (start <= BORDER * sides) | (end >= (1 - BORDER) * sides)
    return np.asarray(reaches.any(axis=1), np.float64)


def _crowding(scored: ScoringInputs) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(G,) and (N,) number of other annotated objects that each box overlaps.

    One of those that a detection overlaps is the object that it may be about.
    """
    objects, detections = (
        PlacedBoxes(side.boxes_xywh, _image_sides(scored, side)[0], side.category_ids) for side in _sides(scored)
    )
    others = objects.select(scored.objects.iscrowd == 0)
    is_itself = (scored.objects.iscrowd == 0) & (scored.objects.boxes_xywh[:, 2:] > 0).all(axis=1)
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


def image_slices(loaded: HotcocoInputs, inputs: AnalysisInputs, properties: Sequence[ImageGroups]) -> list[SliceGroup]:
    """AP of the images of each group of each property.

    Args:
        loaded: of `slice_inputs`.
        inputs: objects and images.
        properties: groups of the images.
    """
    if not properties or not any(group.groups for group in properties):
        return []
    evaluation = loaded.evaluate({"all": EVERYTHING})
    names = {
        f"{group.key} {label}": (images + 1).tolist()  # hotcoco's images are numbered from 1
        for group in properties
        for label, (images, _, _) in group.groups.items()
    }
    scores = evaluation.slice_by(names)
    objects = objects_per_image(inputs)
    return [
        SliceGroup(
            group.key,
            group.title,
            group.how_to_read,
            [
                Slice(
                    label, low, high, len(images), int(objects[images].sum()), *_metrics(scores[f"{group.key} {label}"])
                )
                for label, (images, low, high) in group.groups.items()
            ],
            of_images=True,
        )
        for group in properties
    ]


def objects_per_image(inputs: AnalysisInputs) -> NDArray[np.int64]:
    """(I,) objects of each evaluated image, without crowds."""
    truth, rows = inputs.ground_truth, inputs.object_rows
    rows = rows if truth.is_lvis else rows[truth.iscrowd[rows] == 0]
    numbers = np.searchsorted(inputs.image_ids, truth.image_ids[truth.image_rows[rows]])
    return np.bincount(numbers, minlength=len(inputs.image_ids))


def _metrics(scores: Mapping[str, float]) -> Iterable[float | None]:
    """AP, AP50 and the average recall at the number of detections that count."""
    limits = {name: name.removeprefix("AR").removeprefix("@") for name in scores if name.startswith("AR")}
    recalls = {int(limit): name for name, limit in limits.items() if limit.isdigit()}  # "AR100", of LVIS "AR@300"
    return [known(scores["AP"]), known(scores["AP50"]), known(scores[recalls[max(recalls)]])]
