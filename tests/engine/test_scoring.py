from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from codetr_cli.data.annotations import read_annotations
from codetr_cli.engine.scoring import METRICS, coco_records, load_detections, score_detections
from codetr_cli.errors import DatasetError


def write_annotations(path: Path, *, images: int = 6, objects: int = 40, first_id: int = 0, bare: bool = False) -> Path:
    """A file with category ids 2, 5 and 90, objects of all sizes, a crowd, and one image without objects."""
    generator = np.random.default_rng(1)
    annotations = []
    for number in range(objects):
        w, h = generator.uniform(4, 30, 2) * generator.choice([1, 3, 8])
        annotations.append(
            {
                "id": first_id + number,
                "image_id": 10 + int(generator.integers(0, images - 1)),
                "category_id": (2, 5, 90)[number % 3],
                "bbox": [*generator.uniform(0, 200, 2).round(2).tolist(), round(float(w), 2), round(float(h), 2)],
                **({} if bare else {"iscrowd": int(number % 10 == 9), "area": round(float(w * h) * 0.7, 2)}),
            }
        )
    table = {
        "images": [{"id": 10 + i, "file_name": f"{i}.jpg", "height": 480, "width": 640} for i in range(images)],
        "categories": [{"id": i, "name": name} for i, name in ((90, "last"), (2, "first"), (5, "middle"))],
        "annotations": annotations,
    }
    path.write_text(json.dumps(table))
    return path


def noisy_detections(path: Path, count: int = 150) -> list[dict[str, Any]]:
    """Annotated boxes, shifted, repeated and scored at random, some of a wrong class."""
    generator = np.random.default_rng(2)
    annotations = json.loads(path.read_text())["annotations"]
    records = []
    for _ in range(count):
        annotation = annotations[int(generator.integers(len(annotations)))]
        box = np.array(annotation["bbox"]) * generator.uniform(0.85, 1.15, 4)
        category = annotation["category_id"] if generator.random() < 0.8 else int(generator.choice([2, 5, 90]))
        records.append(
            {
                "image_id": annotation["image_id"],
                "category_id": category,
                "bbox": box.round(3).tolist(),
                "score": round(float(generator.random()), 2),
            }
        )
    return records


def perfect_detections(path: Path) -> list[dict[str, Any]]:
    annotations = json.loads(path.read_text())["annotations"]
    return [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.9}
        for a in annotations
    ]


def score(path: Path, detections: list[dict[str, Any]], image_ids: list[int] | None = None) -> Any:
    return score_detections(read_annotations(path), detections, image_ids, where=str(path))


def pycocotools_stats(path: Path, detections: list[dict[str, Any]], max_dets: list[int]) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        evaluation = COCOeval(truth, truth.loadRes([dict(record) for record in detections]), "bbox")
        evaluation.params.maxDets = max_dets
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return list(evaluation.stats)


def test_equals_pycocotools_with_published_limits(tmp_path):
    path = write_annotations(tmp_path / "a.json", first_id=1)
    detections = noisy_detections(path)
    metrics = score(path, detections).metrics
    published = pycocotools_stats(path, detections, [100, 300, 1000])
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR100", "AR300", "AR1000", "ARs", "ARm", "ARl"]
    assert [metrics[name] for name in names] == pytest.approx(published, abs=1e-12)
    standard = pycocotools_stats(path, detections, [1, 10, 100])
    assert [metrics["AR1"], metrics["AR10"], metrics["AR100"]] == pytest.approx(standard[6:9], abs=1e-12)
    assert 0.05 < metrics["AP"] < 0.95
    assert tuple(metrics) == METRICS


def test_ap_counts_100_detections_and_ap50_counts_1000(tmp_path):
    path = write_annotations(tmp_path / "a.json", images=2, objects=1)
    perfect = perfect_detections(path)[0]
    junk = [{**perfect, "bbox": [0, 0, 1, 1], "score": 0.95} for _ in range(100)]
    metrics = score(path, [*junk, {**perfect, "score": 0.5}]).metrics
    assert metrics["AP"] == 0
    assert metrics["AP50"] == pytest.approx(1 / 101)
    assert metrics["AR100"] == 0
    assert metrics["AR300"] == 1


def test_perfect_boxes_give_one_even_with_annotation_id_zero(tmp_path):
    path = write_annotations(tmp_path / "a.json", first_id=0)
    scores = score(path, perfect_detections(path))
    # pycocotools alone takes a match with annotation 0 for none.
    assert scores.metrics == pytest.approx(dict.fromkeys(METRICS, 1.0) | {"AR1": scores.metrics["AR1"]})
    assert scores.metrics["AR1"] < 1
    assert scores.images == 6
    assert scores.objects == 40


def test_perfect_boxes_on_real_annotations(shared_dir):
    path = shared_dir / "data/coco_mini/annotations/instances_val2017.json"
    scores = score(path, perfect_detections(path))
    assert scores.metrics["AP"] == scores.metrics["AP50"] == 1.0
    assert (scores.images, scores.objects) == (79, 624)


def test_missing_area_and_iscrowd_are_filled_in(tmp_path):
    path = write_annotations(tmp_path / "a.json", bare=True)
    assert score(path, perfect_detections(path)).metrics["AP"] == 1.0


def test_per_class_names_holes_and_counts(tmp_path):
    path = write_annotations(tmp_path / "a.json")
    detections = [record for record in perfect_detections(path) if record["category_id"] != 5]
    per_class = score(path, detections).per_class
    assert [(c.name, c.category_id, c.AP) for c in per_class] == [
        ("first", 2, 1.0),
        ("middle", 5, 0.0),
        ("last", 90, 1.0),
    ]
    assert sum(c.objects for c in per_class) == 36  # of 40, four are crowds


def test_no_detections_is_zero_and_no_objects_is_unknown(tmp_path):
    path = write_annotations(tmp_path / "a.json")
    metrics = score(path, []).metrics
    assert metrics["AP"] == metrics["AR1000"] == 0
    empty = write_annotations(tmp_path / "b.json", objects=0)
    box = {"image_id": 10, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 1.0}
    assert set(score(empty, [box]).metrics.values()) == {-1.0}


def test_only_chosen_images_count(tmp_path):
    path = write_annotations(tmp_path / "a.json")
    detections = [record for record in perfect_detections(path) if record["image_id"] == 11]
    assert score(path, detections, [11]).metrics["AP"] == 1.0
    assert score(path, detections).metrics["AP"] < 1.0


def test_says_nothing(tmp_path, capfd):
    path = write_annotations(tmp_path / "a.json")
    score(path, noisy_detections(path))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("key", "value"), [("image_id", 999), ("category_id", 3)])
def test_detections_of_other_annotations_are_refused(tmp_path, key, value):
    path = write_annotations(tmp_path / "a.json")
    detections = [{**perfect_detections(path)[0], key: value}]
    with pytest.raises(DatasetError, match=rf"{key}.*{value}"):
        score(path, detections)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[{"image_id": 1', "not valid JSON"),
        ('{"annotations": []}', "not a list"),
        ("[7]", "number 0 is a int"),
        ('[{"image_id": "x", "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}]', "image_id"),
        ('[{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1], "score": 1}]', "bbox"),
        ('[{"image_id": 1, "category_id": 1, "bbox": [0, 0, NaN, 1], "score": 1}]', "bbox"),
        ('[{"image_id": 1, "category_id": 1, "bbox": [0, 0, -1, 1], "score": 1}]', "bbox"),
        ('[{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}]', "score"),
    ],
)
def test_broken_detection_files_are_named(tmp_path, text, expected):
    path = tmp_path / "detections.json"
    path.write_text(text)
    with pytest.raises(DatasetError, match=expected) as caught:
        load_detections(path)
    assert str(path) in str(caught.value)


def test_missing_detection_file(tmp_path):
    with pytest.raises(DatasetError, match="No such file"):
        load_detections(tmp_path / "none.json")


def test_records_are_xywh_with_original_ids():
    boxes = np.array([[10.12347, 20, 30, 50.5]], np.float32)
    (record,) = coco_records(boxes, np.array([0.123456789012]), [90], 7)
    assert record == {
        "image_id": 7,
        "category_id": 90,
        "bbox": [10.1235, 20.0, 19.8765, 30.5],
        "score": 0.12345679,
    }
    assert json.loads(json.dumps(record)) == record
