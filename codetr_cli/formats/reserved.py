"""Which images are reserved for validation in a data set that has neither validation nor test images.

The choice depends on the names, classes and pixels of the images only, so it is the same for all verbs and machines:
similar images stay together (see `similar`), each class is in both parts where it can be, and within that the groups
with the smallest hashes of their names are taken. Leading folders that all images share do not count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from codetr_cli.errors import listed
from codetr_cli.formats.intermediate import SHOWN, ParsedDataset
from codetr_cli.formats.similar import MAX_COMPARED, name_order, similar_groups

MIN_RUN = 5
"""Frames of the longest runs that are tried first, where the reserved part is small."""
TOLERANCE = 1.25
"""The reserved part may be larger by this factor, or by `MIN_RUN` - 1 images, so that classes and groups fit."""


class Candidate(NamedTuple):
    """An image: its name relative to the data set's folder, its file, and the names of its classes."""

    name: str
    path: Path
    classes: frozenset[str]


def choose_validation(images: Sequence[Candidate], fraction: float) -> tuple[set[int], str]:
    """The images to reserve.

    Args:
        images: of the data set.
        fraction: share to reserve, 0 to 1.

    Returns:
        indices of the images, at least one and not all, or none of a single image; and a note on how they were chosen.
    """
    if len(images) < 2 or not fraction:
        return set(), ""
    similar = similar_groups([image.path for image in images])
    copies, frames, is_compared = similar.copies, similar.frames, similar.is_compared
    if len(set(copies)) == 1:  # nothing but copies, which then have to be divided
        copies = list(range(len(images)))
    units = [_Unit.of(group, images) for group in _by_number(copies)]
    chains = _chains(units, frames, images)
    target = min(max(1, round(len(images) * fraction)), len(images) - 1)
    choice = _choose(chains, units, target, fraction)
    chosen = {index for number in choice.taken for unit in choice.groups[number] for index in units[unit].images}
    return chosen, _note(images, chosen, len(images) - len(choice.groups), is_compared=is_compared)


def _note(images: Sequence[Candidate], chosen: set[int], together: int, *, is_compared: bool) -> str:
    note = (
        f"there are neither validation nor test images: {len(chosen):,} of the {len(images):,} images "
        f"{'is' if len(chosen) == 1 else 'are'} reserved for validation, always the same, chosen by the hash of "
        "their names"
    )
    if together:
        note += (
            f"; {together:,} images that are nearly the same as others are in the same part as these"
            if together > 1
            else "; 1 image that is nearly the same as another is in the same part as that"
        )
    if not is_compared:
        note += f"; with more than {MAX_COMPARED:,} images, similar ones are recognised by their names only"
    parts = [set[str](), set[str]()]
    for index, image in enumerate(images):
        parts[index in chosen] |= image.classes
    for absent, place in ((parts[0] - parts[1], "validation"), (parts[1] - parts[0], "training")):
        if absent:
            note += f"; no image of {place} has the classes {listed(sorted(absent), SHOWN)}"
    return note


def reserve(parsed: ParsedDataset, fraction: float) -> None:
    """Moves images of the training part of a parsed data set to a validation part, if it has only a training part."""
    if set(parsed.splits) != {"train"}:
        return
    images = parsed.splits["train"]
    chosen, note = choose_validation(
        [
            Candidate(
                image.file_name,
                parsed.images_dir / image.file_name,
                frozenset(parsed.class_names[box.label] for box in image.boxes),
            )
            for image in images
        ],
        fraction,
    )
    if not chosen:
        return
    parsed.splits["train"] = [image for index, image in enumerate(images) if index not in chosen]
    parsed.splits["val"] = [image for index, image in enumerate(images) if index in chosen]
    parsed.places["val"] = reserved_place(parsed.places["train"])
    parsed.notes.append(note)


def reserved_place(place: str) -> str:
    """The name of the reserved part of a file or folder, for messages."""
    return f"{place} (reserved)"


class _Unit(NamedTuple):
    """Copies of one picture, which are never divided: their indices, and their classes."""

    images: list[int]
    classes: frozenset[str]

    @classmethod
    def of(cls, group: list[int], images: Sequence[Candidate]) -> _Unit:
        return cls(group, frozenset[str]().union(*(images[index].classes for index in group)))


class _Choice(NamedTuple):
    """Groups of units, and the numbers of those that are taken."""

    groups: list[list[int]]
    taken: list[int]


def _by_number(numbers: Sequence[int]) -> list[list[int]]:
    groups: dict[int, list[int]] = {}
    for index, number in enumerate(numbers):
        groups.setdefault(number, []).append(index)
    return list(groups.values())


def _chains(units: Sequence[_Unit], frames: Sequence[int], images: Sequence[Candidate]) -> list[list[int]]:
    """The units of each video in the order of their names; the videos in the order of the hashes of their names."""
    hashes = list(map(_hash, _without_shared([image.name for image in images])))
    chains = _by_number([frames[unit.images[0]] for unit in units])
    for chain in chains:
        chain.sort(key=lambda unit: min(name_order(images[index].path) for index in units[unit].images))
    return sorted(chains, key=lambda chain: min(hashes[index] for unit in chain for index in units[unit].images))


def _choose(chains: list[list[int]], units: Sequence[_Unit], target: int, fraction: float) -> _Choice:
    """The groups to reserve: whole videos or, where classes or the size ask for it, ever shorter runs of frames."""
    length = max(target // 2, MIN_RUN)
    while True:
        groups = [run for chain in chains for run in _runs(chain, units, length)]
        taken, is_complete = _take(groups, units, target, fraction)
        if is_complete or length == 1:
            return _Choice(groups, taken)
        length = max(1, length // 2)


def _runs(chain: list[int], units: Sequence[_Unit], length: int) -> list[list[int]]:
    """The units of a chain in runs of not more than `length` images, as far as copies allow."""
    runs: list[list[int]] = [[]]
    size = 0
    for unit in chain:
        count = len(units[unit].images)
        if runs[-1] and size + count > length:
            runs.append([])
            size = 0
        runs[-1].append(unit)
        size += count
    return runs


def _take(groups: list[list[int]], units: Sequence[_Unit], target: int, fraction: float) -> tuple[list[int], bool]:
    """The groups that are taken: for each class, the rarest first, then for the rest.

    Returns:
        their numbers; and whether each class that several units have is among them, and their size close to the target.
    """
    sizes = [sum(len(units[unit].images) for unit in group) for group in groups]
    total = sum(sizes)
    classes = [frozenset[str]().union(*(units[unit].classes for unit in group)) for group in groups]
    counts: dict[str, dict[int, int]] = {}
    copies: dict[str, int] = {}
    for number, group in enumerate(groups):
        for unit in group:
            for label in units[unit].classes:
                counts.setdefault(label, {}).setdefault(number, 0)
                counts[label][number] += len(units[unit].images)
                copies[label] = copies.get(label, 0) + 1
    left = {label: len(numbers) for label, numbers in counts.items()}
    taken: dict[int, None] = {}
    size = 0

    def take(number: int, limit: int) -> bool:
        nonlocal size
        fits = size + sizes[number] <= min(limit, total - 1)
        if number in taken or not fits or any(left[label] == 1 for label in classes[number]):
            return False  # a class would have no image for training
        taken[number] = None
        size += sizes[number]
        for label in classes[number]:
            left[label] -= 1
        return True

    limit = max(target, int(TOLERANCE * target))
    for label in sorted(counts, key=lambda label: (sum(counts[label].values()), label)):
        wanted = max(1, round(sum(counts[label].values()) * fraction))
        have = sum(count for number, count in counts[label].items() if number in taken)
        for number, more in counts[label].items():
            if have >= wanted:
                break
            if (not have or have + more <= wanted) and take(number, limit):
                have += more
    for number in range(len(groups)):
        take(number, target)
    if not taken:  # every group is larger than the part to reserve, or is the only one with its class
        smallest = min(
            range(len(groups)), key=lambda number: (sum(left[label] == 1 for label in classes[number]), sizes[number])
        )
        taken[smallest], size = None, sizes[smallest]
    found = frozenset[str]().union(*(classes[number] for number in taken))
    is_close = target / TOLERANCE - 1 <= size <= min(max(limit, target + MIN_RUN - 1), total - 1)
    return list(taken), is_close and all(label in found for label, count in copies.items() if count > 1)


def _without_shared(names: list[str]) -> list[str]:
    """Names without the leading folders that all share: the same for a data set, an archive of it and its images."""
    parts = [name.replace("\\", "/").split("/") for name in names]
    first, last = min(parts), max(parts)
    length = min(map(len, parts)) - 1
    shared = next((index for index in range(length) if first[index] != last[index]), length)
    return ["/".join(each[shared:]) for each in parts]


def _hash(name: str) -> bytes:
    return hashlib.sha1(name.encode(errors="surrogateescape"), usedforsecurity=False).digest()
