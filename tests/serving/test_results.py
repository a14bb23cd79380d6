"""Answers: three forms of the same detections."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from codetr_cli.inference.prediction import Prediction
from codetr_cli.serving import results

MASK = {"size": [48, 64], "counts": "abc"}
TWO = Prediction(
    boxes=np.array([[1.5, 2.25, 11.5, 22.25], [0, 0, 1 / 3, 4]], np.float32),
    scores=np.array([0.9, 0.1], np.float32),
    labels=np.array([2, 0]),
    category_ids=np.array([7, 2]),
    class_names=["ring", "disc"],
    image_size=(48, 64),
)
MASKED = replace(TWO, masks=[MASK, MASK], mask_scores=np.array([0.5, 0.25], np.float32))


def answer(form: results.Format, *predictions: Prediction) -> object:
    parts = [results.image_json(each, f"{n}.jpg", n + 1, form) for n, each in enumerate(predictions)]
    return json.loads(results.answer_json(parts, form))


def test_objects():
    found = answer("objects", TWO, TWO[:0])
    assert [image["name"] for image in found["images"]] == ["0.jpg", "1.jpg"]
    assert (found["images"][0]["width"], found["images"][0]["height"]) == (64, 48)
    assert found["images"][0]["detections"][0] == {
        "box": [1.5, 2.25, 11.5, 22.25], "score": 0.89999998, "label": 2, "category_id": 7, "class_name": "ring",
    }  # fmt: skip
    assert found["images"][0]["detections"][1]["box"][2] == 0.3333
    assert found["images"][1]["detections"] == []
    results.ObjectsAnswer.model_validate(found)


def test_coco_is_what_the_evaluation_reads():
    found = answer("coco", TWO, TWO[:0], TWO[1:])
    assert found == [*TWO.to_coco(1), *TWO[1:].to_coco(3)]
    assert found[0]["bbox"] == [1.5, 2.25, 10.0, 20.0]
    assert answer("coco", TWO[:0]) == []
    for record in found:
        results.CocoRecord.model_validate(record)


def test_supervision_takes_the_columns():
    found = answer("supervision", TWO, TWO[:0])
    results.SupervisionAnswer.model_validate(found)
    sv = pytest.importorskip("supervision", reason="supervision is not installed")
    for image, given in zip(found["images"], (TWO, TWO[:0]), strict=True):
        made = sv.Detections(
            xyxy=np.array(image["xyxy"], np.float32).reshape(-1, 4),
            confidence=np.array(image["confidence"], np.float32),
            class_id=np.array(image["class_id"], int),
            data={name: np.array(values) for name, values in image["data"].items()},
        )
        assert len(made) == len(given)
        np.testing.assert_allclose(made.xyxy, given.boxes, atol=1e-4)
        assert made.data["class_name"].tolist() == given.class_names


@pytest.mark.parametrize("form", ["objects", "coco", "supervision"])
def test_masks_are_run_lengths(form: results.Format):
    found = answer(form, MASKED)
    assert json.dumps(found).count('"counts": "abc"') == 2
    assert '"counts"' not in json.dumps(answer(form, TWO))
