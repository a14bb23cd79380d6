"""All parts of an analysis together, also of data that lacks something."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from codetr_cli.analysis.analysis import Analysis, analyse
from codetr_cli.analysis.bootstrap import average_precision
from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.analysis.jsonable import jsonable
from codetr_cli.evaluation.scoring import score_detections
from tests.analysis.input_samples import material
from tests.analysis.scene import Scene
from tests.analysis.tide_samples import inputs_of_sample

BOX = (100, 100, 50, 50)


def analysis_of(inputs: AnalysisInputs) -> Analysis:
    scores = score_detections(inputs.ground_truth, inputs.detections, inputs.image_ids, where="a.json")
    return analyse(inputs, scores)


def test_parts_agree(tmp_path: Path) -> None:
    analysis = analysis_of(inputs_of_sample(tmp_path, "noisy"))
    scores, errors = analysis.scores.metrics, analysis.errors
    assert errors is not None
    assert average_precision(analysis.matches) == pytest.approx(scores["AP"], abs=1e-9)
    assert errors.ap50 == pytest.approx(scores["AP50"], abs=1e-9)
    assert analysis.ap_interval is not None
    assert analysis.ap_interval[0] < scores["AP"] < analysis.ap_interval[1]
    for row, score in zip(analysis.classes, analysis.scores.per_class, strict=True):
        assert row.ap == pytest.approx(score.AP)
        assert row.ap_interval is not None
    assert analysis.confusion is not None
    assert analysis.confusion.threshold == analysis.threshold == errors.threshold > 0
    assert analysis.confusion.matrix[:-1].sum() == analysis.counts.objects
    assert analysis.overall_curve is not None
    assert analysis.curves is not None
    assert analysis.calibration is not None
    assert analysis.queries is not None
    assert analysis.worst_images
    assert analysis.data is not None
    assert [row.best_threshold for row in analysis.classes] == analysis.class_thresholds.tolist()
    assert analysis.queries[-1].ap == pytest.approx(scores["AP"], abs=1e-9)
    assert np.mean([curve.precision.mean() for curve in analysis.curves]) == pytest.approx(scores["AP50"], abs=1e-9)
    assert analysis.data.objects == analysis.counts.objects
    assert [group.key for group in analysis.slices][:5] == ["size", "aspect", "crowding", "position", "border"]
    assert analysis.reasons.keys() >= {"groups", "masks", "slices.brightness"}


def test_progress_names_the_parts(tmp_path: Path) -> None:
    inputs = inputs_of_sample(tmp_path, "one_class")
    scores = score_detections(inputs.ground_truth, inputs.detections, inputs.image_ids, where="a.json")
    names: list[str] = []
    analyse(inputs, scores, show=names.append)
    assert names[0] == "matches"
    assert len(names) == len(set(names)) > 5


@pytest.mark.parametrize("kind", ["no detections", "no objects", "nothing", "crowds", "one class", "lvis", "masks"])
def test_data_that_lacks_something(tmp_path: Path, kind: str) -> None:
    scene = Scene(tmp_path, images=3)
    if kind in ("no detections", "one class"):
        scene.annotate(BOX)
    if kind == "crowds":
        scene.annotate(BOX, crowd=1)
    if kind in ("no objects", "one class", "crowds"):
        scene.detect(BOX)
    if kind == "one class":
        scene.content["categories"] = scene.content["categories"][:1]
    special = kind in ("lvis", "masks")
    inputs = material(tmp_path, lvis=kind == "lvis", masks=kind == "masks") if special else scene.inputs()
    analysis = analysis_of(inputs)
    assert (analysis.groups is not None) == (kind == "lvis")
    assert (analysis.masks is not None) == (kind == "masks")
    assert (analysis.errors is None) == (kind in ("no objects", "nothing", "crowds"))
    for name in ("groups", "masks", "errors"):
        assert (getattr(analysis, name) is None) == (name in analysis.reasons)
    assert analysis.is_lvis == (kind == "lvis")
    for part in (
        analysis.counts,
        analysis.classes,
        analysis.errors,
        analysis.confusion,
        analysis.slices,
        analysis.masks,
    ):
        text = json.dumps(jsonable(part))
        assert "NaN" not in text
        assert "Infinity" not in text


def test_images_without_a_size(tmp_path: Path) -> None:
    inputs = inputs_of_sample(tmp_path, "one_class")
    inputs.ground_truth.sizes[:] = 0
    analysis = analysis_of(inputs)
    assert analysis.reasons["slices.position"] == "the annotations have no size of some images"
    assert "slices.image-size" in analysis.reasons
