from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from codetr_cli.analysis.bootstrap import average_precision
from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.analysis.matches import NONE, Matches, inside_area, match_detections, match_pairs
from codetr_cli.analysis.pairs import pair_detections
from codetr_cli.evaluation.backends import hotcoco_evaluation
from codetr_cli.evaluation.scoring import parsed_outlines, score_detections, scoring_inputs
from codetr_cli.inference.detections import DetectionTable
from tests.analysis import run_samples
from tests.analysis.input_samples import coarse, material
from tests.evaluation.annotation_samples import without_objects

Found = dict[tuple[int, int], tuple[list[int], list[float], list[list[int]], list[list[bool]]]]
"""By image and category id: rows of detections, their scores, rows of their objects by IoU, and which are ignored."""


def ours(inputs: AnalysisInputs, matches: Matches) -> Found:
    found: Found = {}
    category_ids = inputs.ground_truth.category_ids
    for image, image_id in enumerate(inputs.image_ids.tolist()):
        for label, category_id in enumerate(category_ids):
            here = (matches.images == image) & (matches.labels == label)
            if here.any():
                objects = matches.objects[:, here]
                rows = np.where(objects == NONE, NONE, np.append(matches.object_rows, 0)[objects])
                found[image_id, category_id] = (
                    matches.rows[here].tolist(),
                    np.round(matches.scores[here], 9).tolist(),
                    rows.tolist(),
                    matches.ignored[:, here].tolist(),
                )
    return found


def pycocotools_found(inputs: AnalysisInputs, kind: str) -> Found:
    table = json.loads(inputs.paths.annotations_path.read_text())
    row_of_id = {}
    for row, entry in enumerate(table["annotations"]):
        row_of_id[row + 1] = row
        entry["id"] = row + 1  # 0 would mean "no match"
    records = inputs.detections.to_records()
    for number, record in enumerate(records):
        record["id"] = number + 1
        if kind == "segm":
            record["score"] = record["mask_score"]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = table
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(records), kind)
        evaluation.params.imgIds = inputs.image_ids.tolist()
        evaluation.evaluate()
    found: Found = {}
    for entry in evaluation.evalImgs:
        if entry is None or not entry["dtIds"] or entry["aRng"] != [0, 1e10]:
            continue
        rows = [[int(number) - 1 for number in line] for line in entry["dtMatches"]]
        found[entry["image_id"], entry["category_id"]] = (
            [number - 1 for number in entry["dtIds"]],
            np.round(entry["dtScores"], 9).tolist(),
            rows,
            np.asarray(entry["dtIgnore"], bool).tolist(),
        )
    return found


def hotcoco_found(inputs: AnalysisInputs, kind: str) -> Found:
    truth = inputs.ground_truth
    outlines = parsed_outlines(truth, inputs.object_rows, "a.json") if kind == "segm" else None
    scored = scoring_inputs(truth, inputs.image_ids, inputs.object_rows, inputs.detections, [300], outlines)
    found: Found = {}
    for entry in hotcoco_evaluation(scored).eval_imgs:
        if entry is None or not entry["dtIds"] or entry["aRng"] != [0, 1e10]:
            continue
        pair = int(inputs.image_ids[entry["image_id"] - 1]), truth.category_ids[entry["category_id"] - 1]
        matched = np.asarray(entry["dtMatches"], np.int64)
        found[pair] = (
            [number - 1 for number in entry["dtIds"]],
            np.round(entry["dtScores"], 9).tolist(),
            (matched - 1).tolist(),
            np.asarray(entry["dtIgnore"], bool).tolist(),
        )
    return found


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(6))
def test_equals_pycocotools_detection_by_detection(tmp_path, seed, kind):
    inputs = material(tmp_path, seed=seed, masks=kind == "segm")
    matches = match_detections(inputs, kind)
    assert ours(inputs, matches) == pycocotools_found(inputs, kind)
    assert 20 < matches.hits(0).sum() < 400
    assert matches.ignored.any()  # detections in crowds


@pytest.mark.parametrize("seed", range(6))
def test_equals_pycocotools_where_everything_is_a_tie(tmp_path, seed):
    inputs = coarse(tmp_path, seed=seed)
    matches = match_detections(inputs)
    expected = pycocotools_found(inputs, "bbox")
    assert ours(inputs, matches) == expected
    assert matches.ignored.any(axis=0).sum() > 50
    assert len(matches.rows) < len(inputs.detections)  # the best 100 of an image and class
    assert average_precision(matches) == pytest.approx(
        score_detections(inputs.ground_truth, inputs.detections, where="coarse.json").metrics["AP"], abs=1e-12
    )


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(4))
def test_equals_hotcoco_by_the_rules_of_lvis(tmp_path, seed, kind):
    inputs = material(tmp_path, seed=seed, lvis=True, masks=kind == "segm")
    matches = match_detections(inputs, kind)
    assert ours(inputs, matches) == hotcoco_found(inputs, kind)
    assert not matches.object_ignored.any()
    assert matches.ignored[0].any()  # of classes that are not annotated exhaustively
    assert len(matches.rows) < len(inputs.detections)  # of classes that an image was not annotated for


def test_the_best_100_of_an_image_and_class_count(tmp_path):
    inputs = material(tmp_path)
    many = np.repeat(np.arange(len(inputs.detections)), 12)
    table = inputs.detections.select(many)
    inputs = replace(inputs, detections=replace(table, scores=np.random.default_rng(0).random(len(many)).round(2)))
    matches = match_detections(inputs)
    assert ours(inputs, matches) == pycocotools_found(inputs, "bbox")
    assert len(matches.rows) < len(many)
    order = np.lexsort((matches.rows, matches.images, -matches.scores, matches.labels))
    assert (order == np.arange(len(order))).all()  # the order of the docstring


def test_the_best_300_of_an_image_count_by_the_rules_of_lvis(tmp_path):
    inputs = material(tmp_path, lvis=True)
    many = np.repeat(np.arange(len(inputs.detections)), 12)
    table = inputs.detections.select(many)
    inputs = replace(inputs, detections=replace(table, scores=np.random.default_rng(0).random(len(many)).round(2)))
    matches = match_detections(inputs)
    assert len(matches.rows) < 300 * len(inputs.image_ids)
    scores = score_detections(inputs.ground_truth, inputs.detections, where="a.json")
    assert average_precision(matches) == pytest.approx(scores.metrics["AP"], abs=1e-12)


@pytest.mark.parametrize("lvis", [False, True])
def test_nothing_to_match(tmp_path, lvis):
    nothing = AnalysisInputs.of(without_objects(lvis=lvis), DetectionTable.empty(), material(tmp_path).paths)
    matches = match_detections(nothing)
    assert matches.objects.shape == matches.ignored.shape == (10, 0)
    assert (matches.num_images, matches.num_classes, len(matches.object_rows)) == (1, 1, 0)
    assert matches.class_starts.tolist() == [0, 0]
    inputs = material(tmp_path, lvis=lvis)
    matches = match_detections(replace(inputs, detections=inputs.detections.select(slice(0))))
    assert matches.objects.shape == (10, 0)
    assert len(matches.object_rows) == 60


def test_detections_without_any_object(tmp_path):
    table = replace(DetectionTable.of_image(1, np.array([[0, 0, 5, 5]]), [0.5], [1]))
    inputs = AnalysisInputs.of(without_objects(lvis=False), table, material(tmp_path).paths)
    matches = match_detections(inputs)
    assert matches.false_alarms(0).tolist() == [True]
    assert matches.objects[:, 0].tolist() == [NONE] * 10


def test_unknown_categories_are_a_mistake_of_the_caller(tmp_path):
    inputs = material(tmp_path)
    table = inputs.detections
    with pytest.raises(ValueError, match="categories"):
        match_detections(replace(inputs, detections=replace(table, category_ids=table.category_ids + 1)))


@pytest.mark.parametrize(("name", "area"), [("APs", (0, 32**2)), ("APm", (32**2, 96**2)), ("APl", (96**2, 1e10))])
def test_a_range_of_areas_gives_the_ap_of_a_size(name: str, area: tuple[float, float]):
    truth = run_samples.annotations(60, crowds=4)
    inputs = run_samples.inputs(truth, run_samples.detections(truth, seed=3))
    scores = score_detections(truth, inputs.detections, where="val.json")
    assert average_precision(match_pairs(pair_detections(inputs), *inside_area(inputs, area))) == pytest.approx(
        scores.metrics[name], abs=1e-9
    )
