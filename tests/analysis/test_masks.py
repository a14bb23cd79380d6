"""Masks beside boxes: the same scores, and IoU of masks whose boxes are hits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from codetr_cli.analysis import masks as module
from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.analysis.masks import Masks, masks_beside_boxes
from codetr_cli.analysis.matches import match_detections
from codetr_cli.evaluation.scoring import score_detections
from tests.analysis.input_samples import inputs_of, material
from tests.analysis.scene import Scene


def masks_of(inputs: AnalysisInputs, threshold: float = 0.0) -> Masks | None:
    scores = score_detections(inputs.ground_truth, inputs.detections, inputs.image_ids, where="a.json")
    return masks_beside_boxes(inputs, scores, match_detections(inputs), threshold)


def test_scores_are_those_of_the_evaluation(tmp_path: Path) -> None:
    inputs = material(tmp_path, masks=True)
    scores = score_detections(inputs.ground_truth, inputs.detections, inputs.image_ids, where="a.json")
    matches = match_detections(inputs)
    found = masks_beside_boxes(inputs, scores, matches, 0.0)
    assert found is not None
    assert found.metrics["AP50"] == pytest.approx(scores.metrics["mask_AP50"])
    assert found.box_metrics["AP50"] == pytest.approx(scores.metrics["AP50"])
    assert [row.name for row in found.classes] == inputs.ground_truth.class_names
    assert found.hits == found.of_hits == matches.hits().sum() > 10
    assert found.iou_counts.sum() == found.hits
    assert sum(row.hits for row in found.classes) == found.hits


def half_masks(folder: Path) -> AnalysisInputs:
    """Two boxes that are hits; the mask of the second covers a quarter of its object."""
    scene = Scene(folder, images=2)
    records = []
    for image, width in ((1, 100), (2, 25)):
        scene.annotate((20, 20, 100, 80), image=image)
        scene.content["annotations"][-1]["segmentation"] = [[20, 20, 120, 20, 120, 100, 20, 100]]
        scene.detect((20, 20, 100, 80), image=image)
        pixels = np.zeros((300, 400), np.uint8)
        pixels[20:100, 20 : 20 + width] = 1
        code = mask_utils.encode(np.asfortranarray(pixels))
        records.append({"size": [300, 400], "counts": code["counts"].decode()})
    scene.inputs()
    inputs = inputs_of(folder / "annotations.json", scene.inputs().detections, masks=True)
    return replace(inputs, detections=replace(inputs.detections, masks=records))


def test_bad_masks_of_good_boxes_are_found(tmp_path: Path) -> None:
    found = masks_of(half_masks(tmp_path))
    assert found is not None
    assert found.iou_counts.tolist() == [0] * 5 + [1] + [0] * 13 + [1]
    assert found.median_iou == pytest.approx(0.625)
    assert found.classes[0].median_iou == pytest.approx(0.625)
    assert found.classes[1].median_iou is None
    (worst,) = found.worst
    assert (worst.image, worst.object_row, worst.detection_row) == (1, 1, 1)
    assert worst.box_iou == pytest.approx(1)
    assert worst.mask_iou == pytest.approx(0.25)


def test_no_hits(tmp_path: Path) -> None:
    found = masks_of(half_masks(tmp_path), threshold=2.0)
    assert found is not None
    assert (found.hits, found.median_iou, found.worst) == (0, None, [])


def test_many_hits_are_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_HITS", 1)
    found = masks_of(half_masks(tmp_path))
    assert found is not None
    assert (found.hits, found.of_hits) == (1, 2)


def test_without_masks_there_is_nothing(tmp_path: Path) -> None:
    assert masks_of(material(tmp_path)) is None
