"""Which images are copies of others, within a split and across splits: equal files, and pictures that look the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from codetr_cli.formats.similar import similar_groups

EXAMPLES = 100


@dataclass(frozen=True)
class Copy:
    """An image and the first one that it is a copy of."""

    split: str
    name: str
    first_split: str
    first_name: str


@dataclass(frozen=True)
class CopiedImages:
    """Copies among the images of all splits.

    Attributes:
        images: that were compared, without those that cannot be read.
        unreadable: images that are not there or cannot be read: whether they are copies is not known.
        is_compared: whether their pixels were; of very many images only names were, which shows the
            augmented copies that Roboflow makes.
        within: copies of an image of the same split.
        across: copies of an image of another split.
        examples: the first copies, those across splits before the others.
    """

    images: int
    unreadable: int
    is_compared: bool
    within: int
    across: int
    examples: list[Copy]


def find_copies(
    splits: Sequence[tuple[str, Sequence[str], Sequence[Path]]], advance: Callable[[int], object] | None = None
) -> CopiedImages:
    """Compares images with each other; files that cannot be read are copies of none.

    Args:
        splits: name of each split, and names and paths of its images.
        advance: called with the number of images that were read since the last call.
    """
    entries = [(split, name) for split, names, _ in splits for name in names]
    paths = [path for _, _, paths in splits for path in paths]
    found = similar_groups(paths, advance)
    within: list[Copy] = []
    across: list[Copy] = []
    for index, first in enumerate(found.copies):
        if index == first:
            continue
        copy = Copy(*entries[index], *entries[first])
        (within if copy.split == copy.first_split else across).append(copy)
    return CopiedImages(
        images=len(paths) - found.unreadable,
        unreadable=found.unreadable,
        is_compared=found.is_compared,
        within=len(within),
        across=len(across),
        examples=[*across, *within][:EXAMPLES],
    )
