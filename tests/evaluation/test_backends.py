from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from codetr_cli.annotations.objects import read_annotations
from codetr_cli.errors import DatasetError, ResourceError
from codetr_cli.evaluation import backends, scoring
from codetr_cli.evaluation.backends import (
    Instances,
    PrecisionRecall,
    Scorer,
    ScoringInputs,
    choose_backend,
    compute_tables,
)
from codetr_cli.evaluation.scoring import score_detections
from tests.evaluation.annotation_samples import write_material


def test_a_long_scoring_is_announced(caplog):
    caplog.set_level("INFO", backends.__name__)
    many = backends.MANY_DETECTIONS + 1
    assert choose_backend(None, many) == choose_backend("hotcoco", many) == "hotcoco"  # fast
    assert choose_backend("pycocotools", many - 1) == "pycocotools"
    assert caplog.messages == []
    assert choose_backend("pycocotools", many) == "pycocotools"
    assert caplog.messages == ["Scoring 30,001 detections with pycocotools; this takes a while"]


@pytest.mark.parametrize("requested", [None, "hotcoco"])
def test_pycocotools_replaces_a_missing_hotcoco(monkeypatch, caplog, requested):
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    caplog.set_level("INFO", backends.__name__)
    assert choose_backend(requested, 1) == "pycocotools"
    (message,) = caplog.messages
    assert "pip install hotcoco" in message
    assert choose_backend("pycocotools", 1) == "pycocotools"
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("masks", [False, True], ids=["boxes", "masks"])
@pytest.mark.parametrize("lvis", [False, True], ids=["coco", "lvis"])
@pytest.mark.parametrize("seed", range(3))
def test_backends_agree_to_the_last_bit(tmp_path, monkeypatch, seed, lvis, masks):
    """Crowds, equal scores, empty images, objects of all sizes: every entry of every table is the same."""
    path = tmp_path / "a.json"
    detections = write_material(path, seed=seed, lvis=lvis, masks=masks)
    ground_truth = read_annotations(path, with_outlines=masks)
    tables: dict[str, list[PrecisionRecall]] = {"hotcoco": [], "pycocotools": []}

    def compute(scorer: Scorer, inputs: ScoringInputs) -> PrecisionRecall:
        tables[scorer].append(compute_tables(scorer, inputs))
        return tables[scorer][-1]

    monkeypatch.setattr(scoring, "compute_tables", compute)
    first, second = (score_detections(ground_truth, detections, where="a.json", scorer=scorer) for scorer in tables)
    assert first == second
    assert len(tables["hotcoco"]) == 1 + masks
    for ours, theirs in zip(*tables.values(), strict=True):
        assert np.array_equal(ours.precision, theirs.precision)
        assert np.array_equal(ours.recall, theirs.recall)
        assert 0.01 < ours.precision[ours.precision > -1].mean() < 0.9


@pytest.mark.parametrize("lvis", [False, True], ids=["coco", "lvis"])
def test_negative_ids_change_no_number(tmp_path, lvis):
    path = tmp_path / "a.json"
    detections = write_material(path, seed=1, lvis=lvis)
    expected = score_detections(read_annotations(path), detections, where="a.json")
    shifts = {"image_id": 500, "category_id": 50}
    table = json.loads(path.read_text())
    for image in table["images"]:
        image["id"] -= shifts["image_id"]
        for key in ("neg_category_ids", "not_exhaustive_category_ids") if lvis else ():
            image[key] = [category_id - shifts["category_id"] for category_id in image[key]]
    for category in table["categories"]:
        category["id"] -= shifts["category_id"]
    for annotation in table["annotations"]:
        for key, shift in shifts.items():
            annotation[key] -= shift
    path.write_text(json.dumps(table))
    shifted = replace(
        detections,
        image_ids=detections.image_ids - shifts["image_id"],
        category_ids=detections.category_ids - shifts["category_id"],
    )
    for scorer in ("hotcoco", "pycocotools"):
        scores = score_detections(read_annotations(path), shifted, where="a.json", scorer=scorer)
        assert scores.metrics == expected.metrics
        assert [score.category_id for score in scores.per_class] == [-48, -45, -41, 40]


def scoring_inputs(classes: int) -> ScoringInputs:
    columns = (np.array([1]), np.array([1]), np.array([[1.0, 1, 5, 5]]), np.array([25.0]), np.array([0]))
    objects, detections = Instances(*columns), Instances(*columns, scores=np.array([0.5]))
    return ScoringInputs([(1, 50, 50)], range(1, classes + 1), objects, detections, "bbox", (1, 10, 100, 300, 1000))


def test_scoring_that_needs_more_memory_than_there_is_stops_before(monkeypatch):
    monkeypatch.setattr(backends, "main_memory_left", lambda: 10**7)
    for scorer, most in (("hotcoco", 15), ("pycocotools", 30)):
        assert compute_tables(scorer, scoring_inputs(most)).recall.shape[1] == most
        with pytest.raises(ResourceError, match=r"scoring 50 categories needs 0\.0\d GiB .*, and 0\.01 GiB are avail"):
            compute_tables(scorer, scoring_inputs(50))
    monkeypatch.setattr(backends, "main_memory_left", lambda: None)
    compute_tables("hotcoco", scoring_inputs(50))


def test_a_panic_of_the_scoring_backend_is_an_error_of_the_data(monkeypatch):
    panic = type("PanicException", (BaseException,), {})

    def fail(*_: object, **__: object) -> None:
        raise panic("index out of bounds\n\x1b[31m")

    monkeypatch.setattr("hotcoco.COCO.from_arrays", fail)
    with pytest.raises(DatasetError, match=r"hotcoco cannot score .*index out of bounds\\n\\x1b"):
        compute_tables("hotcoco", scoring_inputs(1))
    panic = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        compute_tables("hotcoco", scoring_inputs(1))
