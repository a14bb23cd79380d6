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

from codetr_cli.annotations.objects import read_annotations
from codetr_cli.errors import DatasetError
from codetr_cli.evaluation.scoring import LVIS_METRICS, METRICS, score_detections
from codetr_cli.inference.detections import DetectionTable
from tests.evaluation.annotation_samples import write_material
from tests.evaluation.lvis_reference import lvis_metrics


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


def table(records: list[dict[str, Any]]) -> DetectionTable:
    return DetectionTable(
        image_ids=np.array([record["image_id"] for record in records], np.int64),
        category_ids=np.array([record["category_id"] for record in records], np.int64),
        boxes_xywh=np.array([record["bbox"] for record in records], np.float64).reshape(-1, 4),
        scores=np.array([record["score"] for record in records], np.float64),
    )


@pytest.fixture(params=["hotcoco", "pycocotools"])
def score(request: pytest.FixtureRequest) -> Any:
    """Scores records with either backend."""

    def score(path: Path, detections: list[dict[str, Any]], image_ids: list[int] | None = None) -> Any:
        ground_truth = read_annotations(path)
        return score_detections(ground_truth, table(detections), image_ids, where=str(path), scorer=request.param)

    return score


def pycocotools_stats(
    path: Path, detections: list[dict[str, Any]], max_dets: list[int], kind: str = "bbox"
) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO(str(path))
        evaluation = COCOeval(ground_truth, ground_truth.loadRes([dict(record) for record in detections]), kind)
        evaluation.params.maxDets = max_dets
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return list(evaluation.stats)


def test_equals_pycocotools_with_published_limits(score, tmp_path):
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


def test_ap_counts_100_detections_and_ap50_counts_1000(score, tmp_path):
    path = write_annotations(tmp_path / "a.json", images=2, objects=1)
    perfect = perfect_detections(path)[0]
    junk = [{**perfect, "bbox": [0, 0, 1, 1], "score": 0.95} for _ in range(100)]
    metrics = score(path, [*junk, {**perfect, "score": 0.5}]).metrics
    assert metrics["AP"] == 0
    assert metrics["AP50"] == pytest.approx(1 / 101)
    assert metrics["AR100"] == 0
    assert metrics["AR300"] == 1


@pytest.mark.parametrize("scorer", ["hotcoco", "pycocotools"])
def test_ap_at_more_detections_of_crowded_images(tmp_path, scorer):
    """A hundred wrong detections before 250 right ones: the more count, the higher is AP."""
    path = write_annotations(tmp_path / "a.json", images=2, objects=1)
    content = json.loads(path.read_text())
    one = content["annotations"][0]
    content["annotations"] = [
        {**one, "id": number + 1, "bbox": [number % 25 * 10, number // 25 * 10, 8, 8], "area": 64}
        for number in range(250)
    ]
    path.write_text(json.dumps(content))
    perfect = perfect_detections(path)
    wrong = [{**perfect[0], "bbox": [0, 500, 3, 3], "score": 0.95} for _ in range(100)]
    detections, truth = table([*wrong, *perfect]), read_annotations(path)
    metrics = score_detections(truth, detections, where="a.json", scorer=scorer, max_dets=(100, 200, 300)).metrics
    assert metrics["AP@100"] == metrics["AP"] == 0
    assert 0 < metrics["AP@200"] < metrics["AP@300"] < 1
    plain = score_detections(truth, detections, where="a.json", scorer=scorer).metrics
    assert tuple(metrics) == (*METRICS, "AP@100", "AP@200", "AP@300")
    assert plain == {name: metrics[name] for name in METRICS}
    expected = pycocotools_stats(path, [*wrong, *perfect], [100, 200, 300])
    assert metrics["AP50"] == pytest.approx(0.714, abs=0.002)  # at 1000
    assert expected[1] == pytest.approx(metrics["AP@300"])  # at IoU 0.50, of which these boxes are all


def test_perfect_boxes_give_one_even_with_annotation_id_zero(score, tmp_path):
    path = write_annotations(tmp_path / "a.json", first_id=0)
    scores = score(path, perfect_detections(path))
    # pycocotools alone takes a match with annotation 0 for none.
    assert scores.metrics == pytest.approx(dict.fromkeys(METRICS, 1.0) | {"AR1": scores.metrics["AR1"]})
    assert scores.metrics["AR1"] < 1
    assert scores.images == 6
    assert scores.objects == 40


def test_perfect_boxes_on_real_annotations(score, shared_dir):
    path = shared_dir / "data/coco_mini/annotations/instances_val2017.json"
    scores = score(path, perfect_detections(path))
    assert scores.metrics["AP"] == scores.metrics["AP50"] == 1.0
    assert (scores.images, scores.objects) == (79, 624)


def test_missing_area_and_iscrowd_are_filled_in(score, tmp_path):
    path = write_annotations(tmp_path / "a.json", bare=True)
    assert score(path, perfect_detections(path)).metrics["AP"] == 1.0


def test_per_class_names_holes_and_counts(score, tmp_path):
    path = write_annotations(tmp_path / "a.json")
    detections = [record for record in perfect_detections(path) if record["category_id"] != 5]
    per_class = score(path, detections).per_class
    assert [(c.name, c.category_id, c.AP) for c in per_class] == [
        ("first", 2, 1.0),
        ("middle", 5, 0.0),
        ("last", 90, 1.0),
    ]
    assert sum(c.objects for c in per_class) == 36  # of 40, four are crowds


def test_no_detections_is_zero_and_no_objects_is_unknown(score, tmp_path):
    path = write_annotations(tmp_path / "a.json")
    metrics = score(path, []).metrics
    assert metrics["AP"] == metrics["AR1000"] == 0
    empty = write_annotations(tmp_path / "b.json", objects=0)
    box = {"image_id": 10, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 1.0}
    assert set(score(empty, [box]).metrics.values()) == {-1.0}


def test_only_chosen_images_count(score, tmp_path):
    path = write_annotations(tmp_path / "a.json")
    detections = [record for record in perfect_detections(path) if record["image_id"] == 11]
    assert score(path, detections, [11]).metrics["AP"] == 1.0
    assert score(path, detections).metrics["AP"] < 1.0


def test_prints_nothing(score, tmp_path, capfd):
    path = write_annotations(tmp_path / "a.json")
    score(path, noisy_detections(path))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("key", "value"), [("image_id", 999), ("category_id", 3)])
def test_detections_of_other_annotations_are_refused(score, tmp_path, key, value):
    path = write_annotations(tmp_path / "a.json")
    detections = [{**perfect_detections(path)[0], key: value}]
    with pytest.raises(DatasetError, match=rf"{key}.*{value}"):
        score(path, detections)


# ---------------------------------------------------------------------------------------------------------- masks, LVIS


def test_twelve_numbers_equal_those_of_pycocotools_alone(tmp_path):
    """Masks and boxes against pycocotools as it is usually called: ids from 1, detections through loadRes."""
    path = tmp_path / "a.json"
    detections = write_material(path, seed=5, masks=True)
    content = json.loads(path.read_text())
    for number, annotation in enumerate(content["annotations"], start=1):
        annotation["id"] = number
    path.write_text(json.dumps(content))
    metrics = score_detections(read_annotations(path, with_outlines=True), detections, where="a.json").metrics
    records = detections.to_records()
    masks = [
        {"image_id": r["image_id"], "category_id": r["category_id"], "segmentation": r["segmentation"]}
        | {"score": r["mask_score"]}
        for r in records
    ]
    boxes = [{k: r[k] for k in ("image_id", "category_id", "bbox", "score")} for r in records]
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR100", "AR300", "AR1000", "ARs", "ARm", "ARl"]
    for prefix, results, kind in (("", boxes, "bbox"), ("mask_", masks, "segm")):
        published = pycocotools_stats(path, results, [100, 300, 1000], kind)
        assert [metrics[prefix + name] for name in names] == [round(value, 12) for value in published]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools with numpy 2
@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(3))
def test_lvis_equals_its_rules_in_plain_python(tmp_path, kind, seed):
    path = tmp_path / "a.json"
    detections = write_material(path, seed=seed, lvis=True, masks=kind == "segm")
    metrics = score_detections(read_annotations(path, with_outlines=True), detections, where="a.json").metrics
    prefix = "" if kind == "bbox" else "mask_"
    expected = lvis_metrics(json.loads(path.read_text()), detections.to_records(), kind)
    assert {name: metrics[prefix + name] for name in LVIS_METRICS} == pytest.approx(expected, abs=1e-9)
    assert len(set(expected.values())) > 8


def lvis_material(tmp_path: Path, **lists: list[int]) -> Path:
    """One image with an object of class 2; classes 5 and 90 have none."""
    path = write_annotations(tmp_path / "a.json", images=2, objects=1, first_id=1, bare=True)
    content = json.loads(path.read_text())
    for image in content["images"]:
        image.update({"neg_category_ids": [], "not_exhaustive_category_ids": [], **lists})
    for category in content["categories"]:
        category["frequency"] = "f"
    path.write_text(json.dumps(content))
    return path


def with_a_wrong_one(path: Path, category_id: int) -> list[dict[str, Any]]:
    """The object itself and, scored higher, a box that overlaps no object."""
    right = perfect_detections(path)[0]
    return [right, {**right, "category_id": category_id, "bbox": [1, 1, 2, 2], "score": 0.99}]


def test_lvis_counts_wrong_detections_only_of_classes_annotated_exhaustively(score, tmp_path):
    path = lvis_material(tmp_path)
    assert score(path, with_a_wrong_one(path, 2)).metrics["AP"] == 0.5
    path = lvis_material(tmp_path, not_exhaustive_category_ids=[2])
    assert score(path, with_a_wrong_one(path, 2)).metrics["AP"] == 1.0


def test_lvis_counts_classes_in_images_that_were_annotated_for_them(score, tmp_path):
    path = lvis_material(tmp_path, neg_category_ids=[2])
    elsewhere = {**perfect_detections(path)[0], "image_id": 11, "score": 0.99}
    assert score(path, [*perfect_detections(path), elsewhere]).metrics["AP"] == 0.5
    path = lvis_material(tmp_path)
    assert score(path, [*perfect_detections(path), elsewhere]).metrics["AP"] == 1.0


def test_lvis_counts_300_detections_of_an_image_over_all_classes(score, tmp_path):
    path = lvis_material(tmp_path, neg_category_ids=[5])
    (right,) = perfect_detections(path)
    junk = [{**right, "category_id": 5, "bbox": [1, 1, 2, 2], "score": 0.95} for _ in range(300)]
    assert score(path, [*junk[:299], right]).metrics["AP"] == 1.0
    assert score(path, [*junk, right]).metrics["AP"] == 0.0


def test_lvis_frequencies_are_distinguished(score, tmp_path):
    path = tmp_path / "a.json"
    write_material(path, seed=0, lvis=True)
    scores = score(path, perfect_detections(path))
    assert [score.frequency for score in scores.per_class] == ["r", "c", "f", "f"]
    only = [record for record in perfect_detections(path) if record["category_id"] == 2]
    metrics = score(path, only).metrics
    assert (metrics["APr"], metrics["APc"], metrics["APf"]) == (1.0, 0.0, 0.0)


def test_masks_of_another_size_are_refused(tmp_path):
    path = tmp_path / "a.json"
    detections = write_material(path, seed=0, masks=True)
    detections.masks[3]["size"] = detections.masks[3]["size"][::-1]
    with pytest.raises(DatasetError, match="masks must have their image's size"):
        score_detections(read_annotations(path, with_outlines=True), detections, where="a.json")


def test_broken_outlines_are_named(tmp_path):
    path = tmp_path / "a.json"
    detections = write_material(path, seed=0, masks=True)
    content = json.loads(path.read_text())
    content["annotations"][4]["segmentation"] = [[1, 2, 3, 4]]
    path.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=r"annotations\[4\] has a broken polygon"):
        score_detections(read_annotations(path, with_outlines=True), detections, where="a.json")


def test_no_detections_have_no_masks_either(tmp_path):
    path = tmp_path / "a.json"
    write_material(path, seed=0, masks=True)
    metrics = score_detections(
        read_annotations(path, with_outlines=True), DetectionTable.empty(), where="a.json"
    ).metrics
    assert metrics["AP"] == metrics["mask_AP"] == 0.0
