"""Which classes are in the same images. Shape letters: P pairs of an image and a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_PAIRED_CLASSES = 200
"""Classes whose co-occurrence is counted, the most frequent ones: work grows with the square."""
SHOWN_PAIRS = 20
SHOWN_CLASSES = 12


@dataclass(frozen=True)
class ClassPair:
    """Two classes that are in the same images.

    Attributes:
        first: the more frequent class.
        second: the other one.
        images: with both.
        share: of the images of the second class, those that have the first, too.
        lift: how many times more images have both than if the classes were independent.
    """

    first: str
    second: str
    images: int
    share: float
    lift: float


@dataclass(frozen=True)
class CoOccurrence:
    """Classes that are in the same images.

    Attributes:
        pairs: that are in most images, and more often together than by chance.
        class_names: the classes with the most images, up to `SHOWN_CLASSES`.
        shares: of the images of the row's class, those that have the column's, for these; from 0 to 1.
    """

    pairs: list[ClassPair]
    class_names: list[str]
    shares: list[list[float]]


def co_occurrence(presence: NDArray[np.int64], class_names: Sequence[str], number: int) -> CoOccurrence:
    """Which classes are together.

    Args:
        presence: (P, 2) different pairs (image, class), ascending.
        class_names: of all classes.
        number: of images, with those that have no objects.
    """
    images = np.bincount(presence[:, 1], minlength=len(class_names))
    chosen = np.argsort(-images, kind="stable")[:MAX_PAIRED_CLASSES]
    chosen = chosen[images[chosen] > 0]
    if not len(chosen):
        return CoOccurrence([], [], [])
    column = np.full(len(images), -1)
    column[chosen] = np.arange(len(chosen))
    rows, columns = presence[:, 0], column[presence[:, 1]]
    rows, columns = np.unique(rows[columns >= 0], return_inverse=True)[1], columns[columns >= 0]
    both = np.zeros((len(chosen), len(chosen)))
    for start in range(0, int(rows.max()) + 1, 50_000):  # bounded memory
        part = (rows >= start) & (rows < start + 50_000)
        matrix = np.zeros((50_000, len(chosen)), np.float32)
        matrix[rows[part] - start, columns[part]] = 1
        both += matrix.T @ matrix
    own = both.diagonal()
    names = [class_names[label] for label in chosen.tolist()]
    with np.errstate(divide="ignore", invalid="ignore"):
        lift = both * number / np.outer(own, own)
    candidates = np.argwhere(np.triu(both > 0, 1) & (lift > 1))
    best = candidates[np.argsort(-both[tuple(candidates.T)], kind="stable")[:SHOWN_PAIRS]]
    pairs = [
        ClassPair(names[i], names[j], int(both[i, j]), float(both[i, j] / own[j]), float(lift[i, j]))
        for i, j in best.tolist()
    ]
    few = min(len(chosen), SHOWN_CLASSES)
    return CoOccurrence(pairs, names[:few], (both[:few, :few] / own[:few, None]).tolist())
