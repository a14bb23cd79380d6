"""What results of several runs have in common: images, classes and the objects annotated there.

Numbers of different images, or of images that were annotated again, are not comparable. Results are compared on the
images and the classes that all have; on these, the annotations must be the same.
Shape letters: I images, N detections, G objects.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.annotations.objects import Annotations
from codetr_cli.class_names import storable_class_name
from codetr_cli.errors import DatasetError, listed

BOX_DIGITS = 2
"""Of boxes in a fingerprint."""
TOLERANCE_PX = 0.05
"""Between boxes that are the same: tools round pixels, or sides relative to the image's."""


@dataclass(frozen=True)
class CommonGround:
    """Results that can be compared.

    Attributes:
        inputs: of each side, in the order given: all with the annotations and images of the first.
        notes: on what is not compared, sentences without a full stop.
        fingerprint: digest of the images and objects that are compared.
    """

    inputs: list[AnalysisInputs]
    notes: list[str] = field(default_factory=list)
    fingerprint: str = ""


def common_ground(sides: Sequence[AnalysisInputs], names: Sequence[str]) -> CommonGround:
    """The results of all sides on what they have in common.

    Args:
        sides: at least two; those that share their annotations share the object.
        names: of the sides, for messages.

    Raises:
        DatasetError: there is no common image or class, or the annotations of the common ones differ.
    """
    notes: list[str] = []
    classes = _common_classes([side.ground_truth for side in sides], names, notes)
    restricted = [_with_classes(side, chosen) for side, chosen in zip(sides, classes, strict=True)]
    first = restricted[0]
    aligned = [first]
    for original, side, name in zip(sides[1:], restricted[1:], names[1:], strict=True):
        is_same = original.ground_truth is sides[0].ground_truth
        aligned.append(
            replace(side, ground_truth=first.ground_truth) if is_same else _moved(first, side, (names[0], name))
        )
    shared = aligned[0].image_ids
    for side in aligned[1:]:
        shared = np.intersect1d(shared, side.image_ids)
    if not len(shared):
        raise DatasetError(
            f"{_and(names)} were evaluated on different images, none of which all have: evaluate them on the "
            "same images, with `codetr eval --data`"
        )
    if max(len(side.image_ids) for side in sides) > len(shared):
        counts = ", ".join(f"{name} {len(side.image_ids):,}" for name, side in zip(names, sides, strict=True))
        notes.append(
            f"not all were evaluated on the same images ({counts}): compared are the {len(shared):,} common ones"
        )
    inputs = [
        AnalysisInputs(first.ground_truth, side.detections.of_images(shared.tolist()), shared, first.paths)
        for side in aligned
    ]
    return CommonGround(inputs, notes, fingerprint(inputs[0]))


def fingerprint(inputs: AnalysisInputs) -> str:
    """A digest of the images and objects that detections are compared with; the file they are in does not matter."""
    truth, rows = inputs.ground_truth, inputs.object_rows
    order = _order(truth, rows)
    digest = hashlib.sha256()
    for text in (*(inputs.file_name(image) for image in range(len(inputs.image_ids))), *truth.class_names):
        digest.update(text.encode("utf-8", "surrogateescape") + b"\0")
    names = np.array(truth.file_names, object)[truth.image_rows[rows[order]]]
    digest.update("\0".join(names.tolist()).encode("utf-8", "surrogateescape"))
    for column in (truth.labels, truth.iscrowd, truth.boxes_xywh.round(BOX_DIGITS) + 0.0):
        digest.update(np.ascontiguousarray(column[rows[order]]).tobytes())
    return digest.hexdigest()


def _order(truth: Annotations, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices of objects `rows` by name of the image, class, crowd and box: no matter where they are in a file."""
    places = np.empty(len(truth.file_names), np.int64)
    places[np.array(sorted(range(len(places)), key=truth.file_names.__getitem__), np.int64)] = np.arange(len(places))
    boxes = truth.boxes_xywh[rows].round(BOX_DIGITS)
    return np.lexsort((*boxes.T[::-1], truth.iscrowd[rows], truth.labels[rows], places[truth.image_rows[rows]]))


# --------------------------------------------------------------------------------------- annotations of several files


def _common_classes(truths: Sequence[Annotations], names: Sequence[str], notes: list[str]) -> list[list[int]]:
    """Indices of the classes of all sides in each, in the order of the first; adds notes on the others."""
    if len({truth.is_lvis for truth in truths}) > 1:
        raise DatasetError(
            f"some of {_and(names)} were evaluated by the rules of LVIS and others by those of COCO: evaluate "
            "all on the same annotations, with `codetr eval --data`"
        )
    lists = [[storable_class_name(name) for name in truth.class_names] for truth in truths]
    if all(each == lists[0] for each in lists):
        return [list(range(len(each))) for each in lists]
    # A name that is given twice could be either class.
    unique = [{name for name, count in Counter(each).items() if count == 1} for each in lists]
    common = [name for name in lists[0] if all(name in each for each in unique)]
    if not common:
        raise DatasetError(
            f"{_and(names)} have no class in common ({'; '.join(listed(each, 3) for each in lists[:3])}): they "
            "cannot be compared"
        )
    for each, name in zip(lists, names, strict=True):
        if other := [class_name for class_name in each if class_name not in common]:
            notes.append(f"not all have the classes {listed(other, 8)} of {name}: they are not compared")
    return [[each.index(name) for name in common] for each in lists]


def _with_classes(side: AnalysisInputs, chosen: Sequence[int]) -> AnalysisInputs:
    """A side with some classes, numbered from 1 in the order of their indices `chosen`; unchanged with all in order."""
    truth = side.ground_truth
    if list(chosen) == list(range(len(truth.class_names))):
        return side
    label = np.full(len(truth.class_names), -1)
    label[list(chosen)] = np.arange(len(chosen))
    keep = label[truth.labels] >= 0
    restricted = replace(
        truth,
        class_names=[truth.class_names[row] for row in chosen],
        category_ids=list(range(1, len(chosen) + 1)),
        image_rows=truth.image_rows[keep],
        labels=label[truth.labels[keep]],
        boxes_xywh=truth.boxes_xywh[keep],
        area=truth.area[keep],
        iscrowd=truth.iscrowd[keep],
        ignore=truth.ignore[keep],
        outlines=None if truth.outlines is None else truth.outlines.select(np.flatnonzero(keep)),
        frequencies=[truth.frequencies[row] for row in chosen] if truth.is_lvis else [],
        neg_category_ids=_renumbered(truth.neg_category_ids, truth, chosen),
        not_exhaustive_category_ids=_renumbered(truth.not_exhaustive_category_ids, truth, chosen),
    )
    number = {truth.category_ids[row]: number for number, row in enumerate(chosen, 1)}
    found = side.detections.select(np.isin(side.detections.category_ids, list(number)))
    ids = np.array([number[each] for each in found.category_ids.tolist()], np.int64)
    return AnalysisInputs(restricted, replace(found, category_ids=ids), side.image_ids, side.paths)


def _renumbered(lists: Sequence[Sequence[int]], truth: Annotations, chosen: Sequence[int]) -> list[list[int]]:
    """LVIS's lists of category ids, with the numbers of the chosen classes."""
    numbers = {truth.category_ids[row]: number for number, row in enumerate(chosen, 1)}
    return [[numbers[each] for each in ids if each in numbers] for ids in lists]


def _moved(first: AnalysisInputs, second: AnalysisInputs, names: tuple[str, str]) -> AnalysisInputs:
    """The second side with the annotations and the ids of the first, which has the same classes in the same order."""
    both = " and ".join(names)
    ids = _image_ids(first, second, both)
    left = AnalysisInputs.of(first.ground_truth, first.detections, first.paths, ids.values())
    right = AnalysisInputs.of(second.ground_truth, second.detections, second.paths, ids)
    _check_same_objects(left, right, both)
    known, found = right.image_ids, right.detections
    targets = np.array([ids[image_id] for image_id in known.tolist()], np.int64)
    categories = dict(zip(second.ground_truth.category_ids, first.ground_truth.category_ids, strict=True))
    moved = replace(
        found,
        image_ids=targets[np.searchsorted(known, found.image_ids)],
        category_ids=np.array([categories[each] for each in found.category_ids.tolist()], np.int64),
    )
    return replace(first, detections=moved, image_ids=np.sort(targets))


def _image_ids(first: AnalysisInputs, second: AnalysisInputs, both: str) -> dict[int, int]:
    """Ids of the second side -> those of the same images of the first, of the images that both were evaluated on.

    Images are the same that have the same name: two tools may number them differently.
    """
    sides = []
    for side in (first, second):
        names = side.ground_truth.file_names
        sides.append(dict(zip(names, side.ground_truth.image_ids.tolist(), strict=True)))
        if len(sides[-1]) < len(names):
            raise DatasetError(
                f"{both} were evaluated on two annotation files, and several images of one of them have the same name, "
                "so that they cannot be matched: give the annotations with --data or --ann"
            )
    left, right = sides
    evaluated, others = set(first.image_ids.tolist()), set(second.image_ids.tolist())
    found = {right[name]: left[name] for name in left if left[name] in evaluated and right.get(name) in others}
    if not found:
        raise DatasetError(
            f"{both} were evaluated on different images, none of which both have, to judge by the names of their "
            "files: evaluate them on the same images, with `codetr eval --data`"
        )
    return found


def _check_same_objects(left: AnalysisInputs, right: AnalysisInputs, both: str) -> None:
    """Raises a DatasetError if the objects of the common images differ."""
    tables = [_objects_by_image(side) for side in (left, right)]
    changed = [
        name
        for name in sorted({*tables[0], *tables[1]})
        if not _are_same(tables[0].get(name, []), tables[1].get(name, []))
    ]
    if changed:
        name = changed[0]
        counts = [len(table.get(name, [])) for table in tables]
        raise DatasetError(
            f"the annotations of {both} differ in {len(changed):,} of {len(left.image_ids):,} common images, e.g. "
            f"{name} ({counts[0]} and {counts[1]} objects): numbers measured on different annotations cannot be "
            "compared. Give the annotations that both shall be scored against with --data or --ann"
        )


def _objects_by_image(side: AnalysisInputs) -> dict[str, list[tuple[float, ...]]]:
    """By name of the image, its objects, sorted: class, crowd, box."""
    truth, rows = side.ground_truth, side.object_rows
    rows = rows[_order(truth, rows)]
    table: dict[str, list[tuple[float, ...]]] = {}
    columns = (truth.labels[rows], truth.iscrowd[rows], *truth.boxes_xywh[rows].T)
    for image, *values in zip(truth.image_rows[rows].tolist(), *(column.tolist() for column in columns), strict=True):
        table.setdefault(truth.file_names[image], []).append(tuple(values))
    return table


def _are_same(left: Sequence[tuple[float, ...]], right: Sequence[tuple[float, ...]]) -> bool:
    """Whether each object of one list is in the other, whose boxes may be rounded."""
    if left == right or len(left) != len(right):
        return left == right
    rest = np.array(right)
    for each in np.array(left):
        near = np.abs(rest - each).max(axis=1) <= TOLERANCE_PX
        if not near.any():
            return False
        rest = np.delete(rest, int(near.argmax()), axis=0)
    return True


def _and(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
