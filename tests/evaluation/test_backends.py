from __future__ import annotations

import sys

import numpy as np
import pytest

from codetr_cli.data.annotations import read_annotations
from codetr_cli.evaluation import backends, scoring
from codetr_cli.evaluation.backends import PrecisionRecall, Scorer, ScoringInputs, choose_backend, compute_tables
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
