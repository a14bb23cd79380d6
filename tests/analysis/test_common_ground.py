from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from codetr_cli.analysis.bootstrap import average_precision
from codetr_cli.analysis.common_ground import common_ground, fingerprint
from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.analysis.matches import match_detections
from codetr_cli.annotations.objects import Annotations
from codetr_cli.errors import DatasetError
from codetr_cli.inference.detections import DetectionTable
from tests.analysis.run_samples import annotations, detections, inputs

PER_OBJECT = ("image_rows", "labels", "boxes_xywh", "area", "iscrowd", "ignore")


def renumbered(truth: Annotations, table: DetectionTable) -> tuple[Annotations, DetectionTable]:
    """The same data set as another tool writes it: other ids and orders of images, objects and classes."""
    images, classes = np.random.default_rng(0).permutation(len(truth.image_ids)), [2, 0, 1]
    row = np.argsort(images)
    objects = np.random.default_rng(1).permutation(len(truth.labels))
    columns = {name: getattr(truth, name)[objects] for name in PER_OBJECT}
    columns["image_rows"] = row[columns["image_rows"]]
    columns["labels"] = np.argsort(classes)[columns["labels"]]
    moved = replace(
        truth,
        **columns,
        class_names=[truth.class_names[each] for each in classes],
        category_ids=[1, 2, 3],
        image_ids=np.arange(len(images)) + 500,
        file_names=[truth.file_names[each] for each in images],
    )
    place = dict(zip(truth.image_ids.tolist(), row.tolist(), strict=True))
    number = {truth.category_ids[each]: place + 1 for place, each in enumerate(classes)}
    return moved, replace(
        table,
        image_ids=np.array([place[each] + 500 for each in table.image_ids.tolist()]),
        category_ids=np.array([number[each] for each in table.category_ids.tolist()]),
    )


def ap(side: AnalysisInputs) -> float:
    return average_precision(match_detections(side))


def without_classes(truth: Annotations, names: set[str]) -> Annotations:
    """The annotations without some classes, with ids as they were."""
    kept = [index for index, name in enumerate(truth.class_names) if name not in names]
    keep = np.isin(truth.labels, kept)
    columns = {name: getattr(truth, name)[keep] for name in PER_OBJECT}
    columns["labels"] = np.searchsorted(kept, columns["labels"])
    return replace(
        truth,
        **columns,
        class_names=[truth.class_names[index] for index in kept],
        category_ids=[truth.category_ids[index] for index in kept],
    )


@pytest.fixture
def truth() -> Annotations:
    return annotations(30, crowds=2)


def test_the_same_annotations_are_not_changed(truth):
    sides = [inputs(truth, detections(truth, seed=seed)) for seed in (1, 2)]
    ground = common_ground(sides, ["A", "B"])
    assert ground.notes == []
    for before, after in zip(sides, ground.inputs, strict=True):
        assert after.ground_truth is truth
        assert after.detections is before.detections
    assert ground.fingerprint == fingerprint(sides[0])


def test_a_copy_with_other_numbers_has_the_same_objects_and_ap(truth):
    table = detections(truth, seed=1)
    other = inputs(*renumbered(truth, table))
    ground = common_ground([inputs(truth, table), other], ["A", "B"])
    first, second = ground.inputs
    assert ground.notes == []
    assert second.ground_truth is first.ground_truth
    assert ap(first) == pytest.approx(ap(other), abs=1e-9)
    assert ap(second) == pytest.approx(ap(first), abs=1e-12)
    assert fingerprint(inputs(truth, table)) != fingerprint(inputs(truth, table, [10, 11]))


def test_the_fingerprint_is_of_the_content(truth):
    table = detections(truth, seed=1)
    objects = np.random.default_rng(1).permutation(len(truth.labels))
    shuffled = replace(truth, **{name: getattr(truth, name)[objects] for name in PER_OBJECT})
    assert fingerprint(inputs(shuffled, table)) == fingerprint(inputs(truth, table))
    moved = replace(truth, boxes_xywh=truth.boxes_xywh + np.array([0.1, 0, 0, 0]))
    assert fingerprint(inputs(moved, table)) != fingerprint(inputs(truth, table))
    renamed = replace(truth, class_names=["disc", "ring", "other"])
    assert fingerprint(inputs(renamed, table)) != fingerprint(inputs(truth, table))


def test_common_images_are_compared_with_a_note(truth):
    table = detections(truth, seed=1)
    ids = truth.image_ids.tolist()
    sides = [inputs(truth, table, ids[:20]), inputs(*renumbered(truth, table)), inputs(truth, table, ids[5:])]
    ground = common_ground(sides, ["A", "B", "C"])
    assert [side.image_ids.tolist() for side in ground.inputs] == [ids[5:20]] * 3
    assert ground.notes == [
        "not all were evaluated on the same images (A 20, B 30, C 25): compared are the 15 common ones"
    ]
    expected = ap(inputs(truth, table, ids[5:20]))
    assert [ap(side) for side in ground.inputs] == pytest.approx([expected] * 3)


def test_other_images_cannot_be_compared(truth):
    table = detections(truth, seed=1)
    ids = truth.image_ids.tolist()
    with pytest.raises(DatasetError, match="A and B were evaluated on different images, none of which all have"):
        common_ground([inputs(truth, table, ids[:5]), inputs(truth, table, ids[5:])], ["A", "B"])
    renamed = replace(truth, file_names=[f"x{name}" for name in truth.file_names])
    with pytest.raises(DatasetError, match="to judge by the names of their files"):
        common_ground([inputs(truth, table), inputs(renamed, table)], ["A", "B"])


def test_annotations_that_were_changed_cannot_be_compared(truth):
    table = detections(truth, seed=1)
    boxes = truth.boxes_xywh.copy()
    boxes[0] += 3
    moved = replace(truth, boxes_xywh=boxes)
    with pytest.raises(DatasetError, match=r"differ in 1 of 30 common images, e\.g\. 0000\.jpg .*--data or --ann"):
        common_ground([inputs(truth, table), inputs(moved, table)], ["A", "B"])
    rounded = replace(truth, boxes_xywh=truth.boxes_xywh.round(3))
    assert len(common_ground([inputs(truth, table), inputs(rounded, table)], ["A", "B"]).inputs) == 2


def test_images_with_the_same_name_cannot_be_matched(truth):
    table = detections(truth, seed=1)
    doubled = replace(truth, file_names=["same.jpg", "same.jpg", *truth.file_names[2:]])
    with pytest.raises(DatasetError, match="several images of one of them have the same name"):
        common_ground([inputs(truth, table), inputs(doubled, table)], ["A", "B"])


def test_common_classes_are_compared_with_a_note(truth):
    table = detections(truth, seed=1)
    fewer = without_classes(truth, {"disc"})
    own = table.select(table.category_ids != 1)
    ground = common_ground([inputs(truth, table), inputs(fewer, own), inputs(truth, table)], ["A", "B", "C"])
    assert ground.notes == [
        "not all have the classes disc of A: they are not compared",
        "not all have the classes disc of C: they are not compared",
    ]
    for side in ground.inputs:
        assert side.ground_truth is ground.inputs[0].ground_truth
        assert side.ground_truth.class_names == ["ring", "star"]
        assert ap(side) == pytest.approx(ap(inputs(fewer, own)), abs=1e-9)


def test_no_common_class_cannot_be_compared(truth):
    table = detections(truth, seed=1)
    renamed = replace(truth, class_names=["a", "b", "<b>c</b>"])
    with pytest.raises(DatasetError, match="no class in common"):
        common_ground([inputs(truth, table), inputs(renamed, table)], ["A", "B"])


def test_classes_that_share_a_name_are_compared_only_where_the_lists_are_equal(truth):
    table = detections(truth, seed=1)
    twice = replace(truth, class_names=["disc", "disc", "star"])
    copy = replace(twice, file_names=list(twice.file_names))
    assert common_ground([inputs(twice, table), inputs(copy, table)], ["A", "B"]).notes == []
    with_other = replace(copy, class_names=["disc", "ring", "star"])
    ground = common_ground([inputs(twice, table), inputs(with_other, table)], ["A", "B"])
    assert ground.inputs[0].ground_truth.class_names == ["star"]


def test_lvis_and_coco_cannot_be_compared(truth):
    table = detections(truth, seed=1)
    lists: list[list[int]] = [[] for _ in truth.image_ids]
    lvis = replace(truth, neg_category_ids=lists, not_exhaustive_category_ids=lists, frequencies=["r", "c", "f"])
    with pytest.raises(DatasetError, match="rules of LVIS and others by those of COCO"):
        common_ground([inputs(truth, table), inputs(lvis, table)], ["A", "B"])


def test_lists_of_lvis_follow_the_classes(truth):
    table = detections(truth, seed=1)
    lists = [[1, 5] for _ in truth.image_ids]
    lvis = replace(truth, neg_category_ids=lists, not_exhaustive_category_ids=lists, frequencies=["r", "c", "f"])
    fewer = without_classes(lvis, {"disc"})
    fewer = replace(fewer, frequencies=["c", "f"])
    own = table.select(table.category_ids != 1)
    ground = common_ground([inputs(lvis, table), inputs(fewer, own)], ["A", "B"])
    found = ground.inputs[0].ground_truth
    assert (found.neg_category_ids[0], found.frequencies) == ([2], ["c", "f"])
    assert ap(ground.inputs[0]) == pytest.approx(ap(inputs(fewer, own)), abs=1e-9)
