from __future__ import annotations

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from codetr_cli.prediction.comparison import WORST, ComparisonTotals, compare
from codetr_cli.prediction.ground_truth import NONE, ImageTruth

CLASSES = 3


def truth_of(boxes, labels, crowd=None, judged=None, exhaustive=None):
    count = len(boxes)
    return ImageTruth(
        boxes=np.array(boxes, float).reshape(-1, 4),
        labels=np.array(labels, np.int64),
        class_names=[f"class {label}" for label in labels],
        iscrowd=np.zeros(count, bool) if crowd is None else np.array(crowd, bool),
        judged=np.ones(CLASSES, bool) if judged is None else np.array(judged),
        exhaustive=np.ones(CLASSES, bool) if exhaustive is None else np.array(exhaustive),
        size=(200, 200),
    )


def compared(boxes, scores, labels, truth):
    return compare(
        np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(labels, np.int64), truth
    )


def test_each_object_is_found_once_by_the_best_detection():
    truth = truth_of([[0, 0, 100, 100], [100, 0, 200, 100]], [0, 0])
    found = compared([[0, 0, 100, 100], [2, 0, 102, 100], [150, 150, 190, 190]], [0.5, 0.9, 0.8], [0, 0, 0], truth)
    assert found.hits == [(1, 0)]
    assert found.false_alarms == [2, 0], "best first"
    assert found.misses == [1]
    assert found.counts() == {"hits": 1, "misses": 1, "false_alarms": 2}


def test_classes_are_compared_one_by_one():
    truth = truth_of([[0, 0, 100, 100], [0, 0, 100, 100]], [0, NONE])
    found = compared([[0, 0, 100, 100]], [0.9], [1], truth)
    assert (found.hits, found.false_alarms, found.misses) == ([], [0], [0, 1])


def test_crowds_take_any_number_and_are_no_misses():
    truth = truth_of([[0, 0, 200, 200], [0, 0, 50, 50]], [0, 0], crowd=[True, False])
    boxes = [[100, 100, 150, 150], [20, 100, 70, 150], [0, 0, 50, 50]]
    found = compared(boxes, [0.9, 0.8, 0.7], [0, 0, 0], truth)
    assert (found.hits, found.ignored, found.false_alarms, found.misses) == ([(2, 1)], [0, 1], [], [])


def test_classes_that_are_not_annotated_do_not_count():
    truth = truth_of([[0, 0, 100, 100]], [0], judged=[True, False, True], exhaustive=[True, False, False])
    found = compared([[0, 0, 9, 9]] * 3, [0.9, 0.8, 0.7], [0, 1, 2], truth)
    assert (found.false_alarms, found.ignored, found.misses) == ([0], [1, 2], [0])


@pytest.mark.parametrize(("detections", "objects"), [(0, 0), (0, 2), (2, 0)])
def test_nothing_on_one_side(detections, objects):
    truth = truth_of([[0, 0, 10, 10]] * objects, [0] * objects)
    found = compared([[0, 0, 5, 5]] * detections, [0.5] * detections, [0] * detections, truth)
    assert found.counts() == {"hits": 0, "misses": objects, "false_alarms": detections}


@pytest.mark.parametrize("seed", range(8))
def test_matches_are_those_of_pycocotools(seed, capsys):
    rng = np.random.default_rng(seed)
    places = rng.uniform(0, 140, (12, 2))
    objects = np.concatenate([places, places + rng.uniform(20, 60, (12, 2))], 1)
    labels, crowd = rng.integers(0, CLASSES, 12), rng.random(12) < 0.3
    chosen = rng.integers(0, 12, 30)
    boxes = (objects[chosen] + rng.normal(0, 6, (30, 4))).astype(np.float32).astype(float)
    kinds = np.where(rng.random(30) < 0.8, labels[chosen], rng.integers(0, CLASSES, 30))
    scores = rng.permutation(30).astype(np.float32) / 31
    ours = compared(boxes, scores, kinds, truth_of(objects, labels, crowd))

    def xywh(box):
        return [float(value) for value in (box[0], box[1], box[2] - box[0], box[3] - box[1])]

    coco = COCO()
    coco.dataset = {
        "images": [{"id": 1, "width": 200, "height": 200}],
        "categories": [{"id": i + 1} for i in range(CLASSES)],
        "annotations": [
            {"id": i + 1, "image_id": 1, "category_id": int(labels[i]) + 1, "bbox": xywh(box), "area": 100.0}
            | {"iscrowd": int(crowd[i])}
            for i, box in enumerate(objects)
        ],
    }
    coco.createIndex()
    results = [
        {"image_id": 1, "category_id": int(kinds[i]) + 1, "bbox": xywh(box), "score": float(scores[i])}
        for i, box in enumerate(boxes)
    ]
    evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
    evaluation.params.areaRng, evaluation.params.iouThrs = [[0, 1e10]], np.array([0.5])
    evaluation.evaluate()
    capsys.readouterr()
    hits, alarms, ignored = set(), set(), set()
    for image in filter(None, evaluation.evalImgs):
        rows = zip(image["dtIds"], image["dtMatches"][0], image["dtIgnore"][0], strict=True)
        for detection, match, is_ignored in rows:
            if is_ignored:
                ignored.add(detection - 1)
            elif match:
                hits.add((detection - 1, int(match) - 1))
            else:
                alarms.add(detection - 1)
    assert (set(ours.hits), set(ours.false_alarms), set(ours.ignored)) == (hits, alarms, ignored)


def test_totals_list_the_worst_images():
    totals = ComparisonTotals()
    totals.add({"file_name": "not compared"})
    assert not totals.is_used
    for i in range(WORST + 10):
        counts = {"hits": 2, "misses": i % 7, "false_alarms": i // 7}
        totals.add({"file_name": f"{i}.jpg", "against": counts})
    totals.add({"file_name": "unknown.jpg", "against": None})
    summary = totals.summary()
    assert (summary["images"], summary["images_without_annotations"]) == (WORST + 10, 1)
    errors = [image["misses"] + image["false_alarms"] for image in summary["worst"]]
    assert errors == sorted(errors, reverse=True)
    assert len(errors) == WORST
    assert summary["worst"][0] == {"file_name": "55.jpg", "hits": 2, "misses": 6, "false_alarms": 7}
    assert summary["precision"] == round(totals.hits / (totals.hits + totals.false_alarms), 4)


def test_totals_of_nothing():
    totals = ComparisonTotals()
    totals.add({"file_name": "a.jpg", "against": {"hits": 0, "misses": 0, "false_alarms": 0}})
    assert (totals.summary()["precision"], totals.summary()["recall"], totals.worst()) == (None, None, [])
