"""What is in the annotations of a split: sizes, shapes, classes, crowding, and how large objects are for a network.

Only the objects that are trained on and evaluated count: no crowds, none that the published rules exclude.
hotcoco's `COCO.stats` counts objects and images of each class, with which a test compares; it has no others of these.
Shape letters: I images, N objects, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from codetr_cli.analysis.data.co_occurrence import CoOccurrence, co_occurrence
from codetr_cli.analysis.data.crowding import largest_overlaps
from codetr_cli.analysis.data.input_size import NetworkLimits, input_scales, tiled_scales
from codetr_cli.annotations.objects import Annotations, Objects
from codetr_cli.data.oversampling import repeated_images

SIDE_EDGES = (8.0, 16.0, 32.0, 64.0, 96.0, 192.0, 384.0)
"""Pixels, of square roots of areas: COCO calls objects below 32 small, and from 96 on large."""
IMAGE_EDGES = (320.0, 640.0, 1024.0, 1333.0, 2048.0, 4096.0)
"""Pixels, of the longer sides of images."""
ASPECT_EDGES = (1 / 8, 1 / 4, 1 / 2, 4 / 5, 5 / 4, 2.0, 4.0, 8.0)
COUNT_EDGES = (1.0, 2.0, 3.0, 6.0, 11.0, 21.0, 51.0, 101.0, 301.0, 901.0)
OVERLAP_EDGES = (0.001, 0.2, 0.5, 0.8, 0.95)
"""Of the largest IoU of an object with another one of its image."""
SMALL = 32.0
"""Pixels: COCO's limit of small objects."""
INPUT_FACTORS = (0.5, 1.5, 2.0)
"""Other sizes of the input that objects are counted at."""
TINY_CELLS = 2
"""An object is tiny for a network if its side is shorter than so many cells of the finest map."""
COUNTED_BY_AP = 100
"""Detections of an image and class that COCO's AP counts."""
GRID = 8
"""Rows and columns of the map of the objects' centres."""


@dataclass(frozen=True)
class Spread:
    """The lowest, the 5th percentile, the median, the 95th percentile and the largest of some values."""

    minimum: float
    low: float
    median: float
    high: float
    maximum: float

    @classmethod
    def of(cls, values: NDArray[np.generic]) -> Spread | None:
        """Those of the finite values; None if there are none."""
        known = np.asarray(values, np.float64)
        known = known[np.isfinite(known)]
        return cls(*np.quantile(known, (0.0, 0.05, 0.5, 0.95, 1.0)).tolist()) if len(known) else None


@dataclass(frozen=True)
class Histogram:
    """How many values are between edges.

    Attributes:
        edges: E ascending edges; the first bin is below the first, the last from the last one on.
        labels: E + 1 texts.
        counts: E + 1 numbers of values.
        spread: of the values; None if there are none.
    """

    edges: tuple[float, ...]
    labels: tuple[str, ...]
    counts: tuple[int, ...]
    spread: Spread | None

    @property
    def total(self) -> int:
        """Number of values."""
        return sum(self.counts)


@dataclass(frozen=True)
class ClassCount:
    """A class: its objects, the images with any, and the median side (square root of the area) in pixels."""

    name: str
    category_id: int
    objects: int
    images: int
    median_side: float | None
    frequency: str | None = None


@dataclass(frozen=True)
class OtherInput:
    """Objects at another size of the input.

    Attributes:
        factor: of the sides.
        words: options that choose it.
        tiny: objects with a side below `AtInput.tiny_below`.
        small: objects with a side below `SMALL` pixels.
    """

    factor: float
    words: str
    tiny: int
    small: int


@dataclass(frozen=True)
class Oversampling:
    """What repeating the images of rare classes would do, see `data.oversampling`.

    Attributes:
        threshold: of `data.oversample_threshold`; with it the rarest class is repeated up to 4 times.
        repeated_classes: classes whose images are repeated.
        images: of an epoch then.
        images_before: of an epoch without.
    """

    threshold: float
    repeated_classes: int
    images: int
    images_before: int


@dataclass(frozen=True)
class AtInput:
    """A split as a network sees it.

    Attributes:
        input_size: HEIGHTxWIDTH in pixels.
        scales: factors by which images are resized.
        sides: of objects, in pixels of the input.
        tiny_below: pixels of the input: sides below are tiny, see `TINY_CELLS`.
        tiny: number of tiny objects.
        tiny_in_tiles: of them with `--tiles auto`.
        cut_images: images that `--tiles auto` cuts.
        num_queries: of the network.
        over_queries: images with more objects than queries.
        max_detections: of an image.
        over_detections: images with more objects.
        over_counted: images with more than `COUNTED_BY_AP` objects of one class.
        nms_iou: threshold of NMS; None: no NMS.
        over_nms: objects that overlap another one of their class by more.
        other_inputs: objects at `INPUT_FACTORS` times the input.
    """

    input_size: str
    scales: Spread | None
    sides: Histogram
    tiny_below: float
    tiny: int
    tiny_in_tiles: int
    cut_images: int
    num_queries: int
    over_queries: int
    max_detections: int
    over_detections: int
    over_counted: int
    nms_iou: float | None
    over_nms: int
    other_inputs: list[OtherInput]


@dataclass(frozen=True, eq=False)
class DataStatistics:
    """The numbers of one split.

    Attributes:
        split: its name.
        images: of the file.
        objects: that count.
        crowds: regions of several objects.
        excluded: objects that the published rules do not use: marked `ignore`, without area, thinner than a pixel,
            or outside their image.
        empty_images: without objects that count.
        classes: all, by category id.
        common_sizes: the most frequent sizes of images, "WIDTHxHEIGHT", with the number of images.
        different_sizes: of images.
        image_sides: longer sides of images in pixels.
        image_aspects: width over height of images.
        object_sides: square roots of the objects' areas (width times height) in pixels.
        object_shares: of the image's area that objects cover, from 0 to 1.
        object_aspects: width over height of objects.
        per_image: objects of an image.
        most_objects: the image with the most objects and their number; None without objects.
        classes_per_image: different classes of an image.
        overlaps: largest IoU of an object with another one of its image.
        compared_objects: objects of the images that were compared for `overlaps`; see `crowding.MAX_PAIRS`.
        centres: (GRID, GRID) number of objects by the place of their centre, rows from above.
        together: which classes are in the same images.
        oversampling: of rare classes; None where all are about as frequent.
        at_input: as a network sees it.
    """

    split: str
    images: int
    objects: int
    crowds: int
    excluded: int
    empty_images: int
    classes: list[ClassCount]
    common_sizes: list[tuple[str, int]]
    different_sizes: int
    image_sides: Histogram
    image_aspects: Histogram
    object_sides: Histogram
    object_shares: Spread | None
    object_aspects: Histogram
    per_image: Histogram
    most_objects: tuple[str, int] | None
    classes_per_image: Spread | None
    overlaps: Histogram
    compared_objects: int
    centres: NDArray[np.int64]
    together: CoOccurrence
    oversampling: Oversampling | None
    at_input: AtInput

    @property
    def used_classes(self) -> list[ClassCount]:
        """Classes with objects, the one with the most first."""
        return sorted((each for each in self.classes if each.objects), key=lambda each: -each.objects)

    @property
    def most_in_image(self) -> int:
        """Objects of the image with the most."""
        return self.most_objects[1] if self.most_objects else 0

    @property
    def counts(self) -> tuple[str, int, int, int, int, int]:
        """Its name, images, those without objects, objects, crowds, and excluded ones: cells of a table of splits."""
        return self.split, self.images, self.empty_images, self.objects, self.crowds, self.excluded


def data_statistics(
    annotations: Annotations, limits: NetworkLimits | None = None, *, split: str = "train"
) -> DataStatistics:
    """The numbers of the annotations of a split.

    Args:
        annotations: of all of its images.
        limits: of the network that `at_input` is about; None: those of the default settings.
        split: its name.
    """
    if limits is None:
        from codetr_cli.config.schema import Settings

        limits = NetworkLimits.of(Settings(name="default"))
    found = annotations.usable_objects(np.arange(len(annotations.image_ids)), with_crowd=False)
    crowds = int((annotations.iscrowd != 0).sum())
    sizes = annotations.sizes
    images = np.repeat(np.arange(len(sizes)), np.diff(found.offsets))
    per_image = np.diff(found.offsets)
    wide, high = (found.boxes[:, 2:] - found.boxes[:, :2]).astype(np.float64).T
    sides = np.sqrt(wide * high)
    presence = _presence(images, found.labels, len(annotations.class_names))
    largest, in_class = largest_overlaps(found)
    together = co_occurrence(presence, annotations.class_names, len(sizes))
    unique, counts = np.unique(sizes, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:5]
    most = int(per_image.argmax()) if len(found.labels) else None
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.minimum(wide * high / sizes.prod(axis=1)[images], 1.0)
        aspects = sizes[:, 1] / sizes[:, 0]
    return DataStatistics(
        split=split,
        images=len(sizes),
        objects=len(found.labels),
        crowds=crowds,
        excluded=len(annotations.labels) - len(found.labels) - crowds,
        empty_images=int((per_image == 0).sum()),
        classes=_classes(annotations, found.labels, sides, presence),
        common_sizes=[(f"{unique[row][1]}x{unique[row][0]}", int(counts[row])) for row in order.tolist()],
        different_sizes=len(unique),
        image_sides=histogram(sizes.max(axis=1, initial=0), IMAGE_EDGES),
        image_aspects=histogram(aspects, ASPECT_EDGES, aspect_text),
        object_sides=histogram(sides, SIDE_EDGES),
        object_shares=Spread.of(shares),
        object_aspects=histogram(wide / high, ASPECT_EDGES, aspect_text),
        per_image=histogram(per_image, COUNT_EDGES, whole=True),
        most_objects=None if most is None else (annotations.file_names[most], int(per_image[most])),
        classes_per_image=Spread.of(np.bincount(presence[:, 0], minlength=len(sizes))),
        overlaps=histogram(largest[np.isfinite(largest)], OVERLAP_EDGES),
        compared_objects=int(np.isfinite(largest).sum()),
        centres=_centres(found, sizes[images]),
        together=together,
        oversampling=_oversampling(annotations, presence, limits.data.filter_empty),
        at_input=_at_input(sizes, images, found, sides, in_class, limits),
    )


def histogram(
    values: NDArray[np.generic],
    edges: Sequence[float],
    text: Callable[[float], str] | None = None,
    *,
    whole: bool = False,
) -> Histogram:
    """The histogram of finite values.

    Args:
        values: any number of them.
        edges: of its bins.
        text: shows an edge; None: as a number.
        whole: whether values are whole numbers: bins are named by the first and last.
    """
    known = np.asarray(values, np.float64)
    known = known[np.isfinite(known)]
    counts = np.bincount(np.searchsorted(edges, known, side="right"), minlength=len(edges) + 1)
    show = text or number_text
    inner = pairwise(edges)
    if whole:
        between = [show(low) if high == low + 1 else f"{show(low)}-{show(high - 1)}" for low, high in inner]
        labels = ["0" if edges[0] == 1 else f"< {show(edges[0])}", *between, f">= {show(edges[-1])}"]
    else:
        between = [f"{show(low)} to {show(high)}" for low, high in inner]
        labels = [f"< {show(edges[0])}", *between, f">= {show(edges[-1])}"]
    return Histogram(tuple(edges), tuple(labels), tuple(counts.tolist()), Spread.of(known))


def number_text(value: float) -> str:
    """A number of at most four digits."""
    return f"{value:.4g}" if value < 10_000 else f"{value:,.0f}"


def sizes_text(statistics: DataStatistics) -> str:
    """The most frequent sizes of images, and how many others there are."""
    shown = statistics.common_sizes[:3]
    others = statistics.different_sizes - len(shown)
    text = ", ".join(f"{size} ({count:,})" for size, count in shown)
    return f"{text} and {others:,} other sizes" if others > 0 else text


def aspect_text(value: float) -> str:
    """Width over height as a ratio: "2:1", "1:4"."""
    if value <= 0:
        return "0:1"
    return f"{value:.3g}:1" if value >= 1 else f"1:{1 / value:.3g}"


# ---------------------------------------------------------------------------------------------------------------- parts


def _presence(images: NDArray[np.int64], labels: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Which classes are in which images: (P, 2) different pairs (image, class), ascending."""
    keys = np.unique(images * max(classes, 1) + labels)
    return np.stack(np.divmod(keys, max(classes, 1)), axis=1)


def _classes(
    annotations: Annotations, labels: NDArray[np.int64], sides: NDArray[np.float64], presence: NDArray[np.int64]
) -> list[ClassCount]:
    number = len(annotations.class_names)
    objects = np.bincount(labels, minlength=number)
    images = np.bincount(presence[:, 1], minlength=number)
    order = np.lexsort((sides, labels))  # the middle of each class is its median
    starts = np.concatenate([[0], np.cumsum(objects)])
    medians = [
        float((sides[order[(start + end - 1) // 2]] + sides[order[(start + end) // 2]]) / 2) if end > start else None
        for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)
    ]
    frequencies: list[str] | list[None] = annotations.frequencies or [None] * number
    return [
        ClassCount(*values)
        for values in zip(
            annotations.class_names,
            annotations.category_ids,
            objects.tolist(),
            images.tolist(),
            medians,
            frequencies,
            strict=True,
        )
    ]


def _centres(found: Objects, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    if not len(found.labels):
        return np.zeros((GRID, GRID), np.int64)
    centres = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2 / np.maximum(sizes[:, ::-1], 1)
    columns, rows = (centres * GRID).astype(np.int64).clip(0, GRID - 1).T
    return np.bincount(rows * GRID + columns, minlength=GRID * GRID).reshape(GRID, GRID)


def _at_input(
    sizes: NDArray[np.int64],
    images: NDArray[np.int64],
    found: Objects,
    sides: NDArray[np.float64],
    in_class: NDArray[np.float64],
    limits: NetworkLimits,
) -> AtInput:
    scales = input_scales(sizes, limits.test)
    in_tiles, is_cut = tiled_scales(sizes, limits.test)
    scaled = sides * scales[images]
    tiny = float(TINY_CELLS * limits.finest_stride)
    per_image = np.diff(found.offsets)
    keys, counts = np.unique(
        images * (int(found.labels.max(initial=0)) + 1) + found.labels, return_counts=True
    )  # objects of an image and class
    crowded = np.unique(keys[counts > COUNTED_BY_AP] // (int(found.labels.max(initial=0)) + 1))
    return AtInput(
        input_size=limits.input_text,
        scales=Spread.of(scales),
        sides=histogram(scaled, SIDE_EDGES),
        tiny_below=tiny,
        tiny=int((scaled < tiny).sum()),
        tiny_in_tiles=int((sides * in_tiles[images] < tiny).sum()),
        cut_images=int(is_cut.sum()),
        num_queries=limits.num_queries,
        over_queries=int((per_image > limits.num_queries).sum()),
        max_detections=limits.max_detections,
        over_detections=int((per_image > limits.max_detections).sum()),
        over_counted=len(crowded),
        nms_iou=limits.nms_iou,
        over_nms=0 if limits.nms_iou is None else int((in_class > limits.nms_iou).sum()),
        other_inputs=[_other_input(sides, sizes, images, limits.enlarged(factor), factor) for factor in INPUT_FACTORS],
    )


def _other_input(
    sides: NDArray[np.float64],
    sizes: NDArray[np.int64],
    images: NDArray[np.int64],
    limits: NetworkLimits,
    factor: float,
) -> OtherInput:
    scaled = sides * input_scales(sizes, limits.test)[images]
    tiny = int((scaled < TINY_CELLS * limits.finest_stride).sum())
    return OtherInput(factor, limits.settings_words(), tiny, int((scaled < SMALL).sum()))


def _oversampling(annotations: Annotations, presence: NDArray[np.int64], filter_empty: bool) -> Oversampling | None:
    counts = np.bincount(presence[:, 1])
    counts = counts[counts > 0]
    if len(counts) < 2:
        return None
    rows = np.flatnonzero(annotations.annotated_images()) if filter_empty else np.arange(len(annotations.image_ids))
    shares = counts / len(rows)
    lowest = float(shares.min())
    # A class is repeated sqrt(threshold / share) times. More than four times, its few images are learned by heart.
    threshold = _rounded_down(min(16 * lowest, float(np.median(shares)), 1.0))
    repeated = int((shares < threshold).sum())
    if not repeated:
        return None
    # As a training repeats them: images without objects are a class of their own, and crowds count.
    epoch = repeated_images(annotations.image_rows, annotations.labels, rows, threshold, count_empty=not filter_empty)
    return Oversampling(threshold, repeated, len(epoch), len(rows))


def _rounded_down(value: float) -> float:
    """A positive number of two digits that is not larger."""
    digits = 1 - math.floor(math.log10(value))
    return round(math.floor(value * 10**digits + 1e-6) / 10**digits, max(digits, 0))
