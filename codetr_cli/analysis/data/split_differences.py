"""How a split differs from the training images: shares of classes, sizes, and classes that only one of them has.

The measure is the total variation distance: the share of the objects, or images, that would have to be others for the
two to be alike; 0: they are, 1: they have nothing in common. A small split differs by chance, too: how much is measured
by dividing the images of both at random. Shape letters: K classes of either split.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, vstack

from codetr_cli.analysis.data.statistics import COUNT_EDGES, SIDE_EDGES
from codetr_cli.annotations.objects import Annotations
from codetr_cli.class_names import storable_class_name

DIVISIONS = 40
"""Random divisions of the images that show what chance does."""
LEVEL = 0.95


@dataclass(frozen=True)
class Distance:
    """A total variation distance.

    Attributes:
        value: from 0 to 1.
        by_chance: which 95 % of random divisions of the same images do not exceed.
    """

    value: float
    by_chance: float

    @property
    def is_more_than_chance(self) -> bool:
        """Whether the splits differ more than random divisions do."""
        return self.value > self.by_chance

    @property
    def verdict(self) -> str:
        """The same in words."""
        return "more than chance" if self.is_more_than_chance else "no more than chance"


@dataclass(frozen=True)
class ClassShares:
    """Shares of a class among the objects of the two splits."""

    name: str
    first: float
    second: float


@dataclass(frozen=True)
class SplitDifference:
    """How a split differs from another one.

    Attributes:
        first: name of the split that is compared with, "train".
        second: name of the other one.
        classes: distance of the shares of classes among objects.
        sizes: distance of the sizes of objects, in the bins of `DataStatistics.object_sides`.
        per_image: distance of the number of objects of an image, in the bins of `DataStatistics.per_image`.
        missing: classes with objects in the first only, by the number of objects there.
        extra: classes with objects in the second only.
        shares: classes whose shares differ most, the largest difference first.
    """

    first: str
    second: str
    classes: Distance
    sizes: Distance
    per_image: Distance
    missing: list[tuple[str, int]]
    extra: list[tuple[str, int]]
    shares: list[ClassShares]

    @property
    def distances(self) -> list[tuple[str, Distance]]:
        """What differs, and by how much."""
        return [
            ("shares of classes", self.classes),
            ("sizes of objects", self.sizes),
            ("numbers of objects per image", self.per_image),
        ]


@dataclass(frozen=True, eq=False)
class _Counts:
    """Objects of each image: by class, by size, and a one for their number; rows are images."""

    classes: csr_array
    sizes: csr_array
    per_image: csr_array


def split_difference(
    first: Annotations, second: Annotations, *, names: tuple[str, str] = ("train", "val"), shown: int = 10
) -> SplitDifference | None:
    """Compares two splits; None if one of them has no objects.

    Args:
        first: the training images, usually.
        second: the other split. Its classes are those of the same names.
        names: of the splits.
        shown: classes whose shares are listed.
    """
    known = _class_columns([*first.class_names, *second.class_names])
    one, other = _counts(first, known), _counts(second, known)
    objects, others = _sums(one.classes), _sums(other.classes)
    if not objects.sum() or not others.sum():
        return None
    shares, other_shares = objects / objects.sum(), others / others.sum()
    labels = list(known)
    order = np.argsort(-np.abs(shares - other_shares), kind="stable")[:shown]
    return SplitDifference(
        first=names[0],
        second=names[1],
        classes=_distance(one.classes, other.classes),
        sizes=_distance(one.sizes, other.sizes),
        per_image=_distance(one.per_image, other.per_image),
        missing=_only(objects, others, labels),
        extra=_only(others, objects, labels),
        shares=[
            ClassShares(labels[row], float(shares[row]), float(other_shares[row]))
            for row in order.tolist()
            if shares[row] != other_shares[row]
        ],
    )


def total_variation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Half the sum of the differences of two lists of shares; counts are made shares. NaN without counts."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.abs(first / first.sum() - second / second.sum()).sum() / 2)


def _class_columns(names: Sequence[str]) -> dict[str, int]:
    """Class names as checkpoints hold them -> a column for each."""
    return {name: column for column, name in enumerate(dict.fromkeys(map(storable_class_name, names)))}


def _counts(annotations: Annotations, columns: dict[str, int]) -> _Counts:
    found = annotations.usable_objects(np.arange(len(annotations.image_ids)), with_crowd=False)
    per_image = np.diff(found.offsets)
    column_of_label = np.array([columns[storable_class_name(name)] for name in annotations.class_names], np.int64)
    labels = column_of_label[found.labels] if len(column_of_label) else found.labels
    sides = np.sqrt((found.boxes[:, 2:] - found.boxes[:, :2]).prod(axis=1))
    rows = np.arange(len(per_image) + 1)
    return _Counts(
        classes=_table(labels, found.offsets, len(columns)),
        sizes=_table(np.searchsorted(SIDE_EDGES, sides, side="right"), found.offsets, len(SIDE_EDGES) + 1),
        per_image=_table(np.searchsorted(COUNT_EDGES, per_image, side="right"), rows, len(COUNT_EDGES) + 1),
    )


def _table(columns: NDArray[np.int64], offsets: NDArray[np.int64], width: int) -> csr_array:
    """A sparse table with ones, or their sums, in the given columns of each row."""
    table = csr_array((np.ones(len(columns)), columns, offsets), shape=(len(offsets) - 1, width), copy=True)
    table.sum_duplicates()  # in place, also in the arrays of offsets, which other tables need
    return table


def _sums(table: csr_array) -> NDArray[np.float64]:
    return np.asarray(table.sum(axis=0), np.float64)


def _distance(first: csr_array, second: csr_array) -> Distance:
    """The distance of two splits, and that of random divisions of all images in parts of these sizes."""
    table = vstack([first, second], format="csr")
    total = _sums(table)
    random = np.random.default_rng(0)
    found = []
    for _ in range(DIVISIONS):
        chosen = np.zeros(table.shape[0])
        chosen[random.choice(table.shape[0], second.shape[0], replace=False)] = 1
        part = np.asarray(table.T @ chosen)
        found.append(total_variation(total - part, part))
    known = [value for value in found if np.isfinite(value)]
    by_chance = float(np.quantile(known, LEVEL)) if known else 1.0
    return Distance(total_variation(_sums(first), _sums(second)), by_chance)


def _only(first: NDArray[np.float64], second: NDArray[np.float64], labels: Sequence[str]) -> list[tuple[str, int]]:
    """Classes that only the first has, with its objects, most first."""
    counts = Counter({labels[row]: int(first[row]) for row in np.flatnonzero((first > 0) & (second == 0)).tolist()})
    return counts.most_common()
