from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from codetr_cli.analysis import bootstrap
from codetr_cli.analysis.bootstrap import (
    average_precision,
    class_average_precision,
    image_weights,
    interval,
    resampled_ap,
)
from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.analysis.matches import match_detections, matches_of_ap50
from codetr_cli.evaluation.backends import hotcoco_evaluation
from codetr_cli.evaluation.scoring import score_detections, scoring_inputs
from codetr_cli.inference.detections import DetectionTable
from tests.analysis.input_samples import crowded, inputs_of, material


def repeated(inputs: AnalysisInputs, counts: list[int], folder: Path) -> AnalysisInputs:
    """The inputs with each evaluated image there so often, in a file of their own."""
    table = json.loads(inputs.paths.annotations_path.read_text())
    images, annotations, detections = [], [], []
    for image_id, count in zip(inputs.image_ids.tolist(), counts, strict=True):
        entry = next(entry for entry in table["images"] if entry["id"] == image_id)
        objects = [entry for entry in table["annotations"] if entry["image_id"] == image_id]
        found = inputs.detections.of_images([image_id])
        for _ in range(count):
            images.append({**entry, "id": len(images) + 1})
            annotations += [{**o, "image_id": len(images), "id": len(annotations) + i} for i, o in enumerate(objects)]
            detections.append(replace(found, image_ids=np.full(len(found), len(images))))
    path = folder / "repeated.json"
    path.write_text(json.dumps({**table, "images": images, "annotations": annotations}))
    return inputs_of(path, DetectionTable.join(detections))


@pytest.mark.parametrize("masks", [False, True], ids=["boxes", "masks"])
@pytest.mark.parametrize("lvis", [False, True], ids=["coco", "lvis"])
@pytest.mark.parametrize("seed", range(3))
def test_equal_weights_give_the_ap_of_the_evaluation(tmp_path, seed, lvis, masks):
    inputs = material(tmp_path, seed=seed, lvis=lvis, masks=masks)
    scores = score_detections(inputs.ground_truth, inputs.detections, where="a.json")
    matches = match_detections(inputs, "segm" if masks else "bbox")
    prefix = "mask_" if masks else ""
    assert average_precision(matches) == pytest.approx(scores.metrics[f"{prefix}AP"], abs=1e-12)
    assert average_precision(matches) == pytest.approx(average_precision(matches, np.full(10, 3.0)), abs=1e-12)
    classes = class_average_precision(matches)
    assert classes.mean(axis=0) == pytest.approx([getattr(s, f"{prefix}AP") for s in scores.per_class], abs=1e-12)
    assert classes[0] == pytest.approx([getattr(s, f"{prefix}AP50") for s in scores.per_class], abs=1e-12)
    assert 0.05 < average_precision(matches) < 0.9


@pytest.mark.parametrize("lvis", [False, True], ids=["coco", "lvis"])
@pytest.mark.parametrize("seed", range(3))
def test_a_sample_is_the_data_set_with_its_images_repeated(tmp_path, seed, lvis):
    """Scores differ everywhere: of equal scores, the order of images would count."""
    inputs = material(tmp_path, seed=seed, lvis=lvis)
    scores = np.random.default_rng(seed).permutation(len(inputs.detections)) / len(inputs.detections)
    inputs = replace(inputs, detections=replace(inputs.detections, scores=scores))
    matches = match_detections(inputs)
    weights = image_weights(len(inputs.image_ids), samples=4, seed=seed)
    for row in weights:
        copies = repeated(inputs, row.astype(int).tolist(), tmp_path)
        expected = score_detections(copies.ground_truth, copies.detections, where="repeated.json")
        assert average_precision(matches, row) == pytest.approx(expected.metrics["AP"], abs=1e-12)
        sample = np.nan_to_num(class_average_precision(matches, row), nan=-1)  # -1 there is NaN here
        assert sample.mean(axis=0) == pytest.approx([score.AP for score in expected.per_class], abs=1e-12)
        assert sample[0] == pytest.approx([score.AP50 for score in expected.per_class], abs=1e-12)


def test_samples_are_shifted_to_the_ap_of_all_images(tmp_path):
    matches = match_detections(material(tmp_path, seed=1))
    samples = resampled_ap(matches, samples=50, seed=2)
    weights = image_weights(matches.num_images, samples=50, seed=2)
    plain = np.array([class_average_precision(matches, row) for row in weights])
    for found, values, of_all in (
        (samples.ap, np.nanmean(plain.mean(axis=1), axis=1), average_precision(matches)),
        (samples.ap50, np.nanmean(plain[:, 0], axis=1), np.mean(class_average_precision(matches)[0])),
        (samples.class_ap[:, 2], plain.mean(axis=1)[:, 2], class_average_precision(matches)[:, 2].mean()),
    ):
        assert np.nanmean(found) == pytest.approx(of_all, abs=1e-12)
        assert found - values == pytest.approx(np.full(50, of_all - np.nanmean(values)), nan_ok=True)
        assert abs(of_all - np.nanmean(values)) > 1e-4


def test_intervals_agree_with_those_of_hotcoco(tmp_path, monkeypatch):
    """hotcoco 1.3 counts an image once however often it is drawn: its intervals are narrower by a quarter.

    With the same rule, ours are as wide; the test above shows that repeated images count.
    """
    hotcoco = pytest.importorskip("hotcoco")
    inputs = material(tmp_path, seed=1)
    other = replace(inputs, detections=replace(inputs.detections, boxes_xywh=inputs.detections.boxes_xywh * 1.02))
    monkeypatch.setattr(bootstrap, "image_weights", lambda *args: (image_weights(*args) > 0) * 1.0)
    before, after = (resampled_ap(match_detections(one), samples=600) for one in (inputs, other))
    evaluations = [
        hotcoco_evaluation(
            scoring_inputs(one.ground_truth, one.image_ids, one.object_rows, one.detections, [1, 10, 100])
        )
        for one in (inputs, other)
    ]
    result = hotcoco.compare(*evaluations, n_bootstrap=600, seed=0)
    for values, name in ((after.ap - before.ap, "AP"), (after.ap50 - before.ap50, "AP50")):
        expected = result["ci"][name]
        assert values.std() == pytest.approx(expected["std_err"], rel=0.1)
        assert interval(values) == pytest.approx((expected["lower"], expected["upper"]), abs=0.006)
        # hotcoco does not shift its samples to the difference of all images
        assert (values > 0).mean() == pytest.approx(expected["prob_positive"], abs=0.1)


def test_samples_are_those_of_their_seed():
    first = image_weights(50, samples=20, seed=3)
    assert (first.sum(axis=1) == 50).all()
    assert np.array_equal(image_weights(50, samples=30, seed=3)[:20], first)
    assert not np.array_equal(image_weights(50, samples=20, seed=4), first)
    assert first.std() == pytest.approx(1, abs=0.1)  # of the Poisson distribution


def test_equal_detections_do_not_differ_in_any_sample(tmp_path):
    matches = match_detections(material(tmp_path))
    first, second = resampled_ap(matches, samples=10), resampled_ap(matches, samples=10)
    assert np.array_equal(first.class_ap, second.class_ap, equal_nan=True)
    assert len(set(first.ap.tolist())) == 10


def test_memory_is_bounded_by_parts_of_the_samples(tmp_path, monkeypatch):
    matches = match_detections(material(tmp_path))
    expected = resampled_ap(matches, samples=9)
    monkeypatch.setattr(bootstrap, "CELLS_AT_ONCE", 150)
    assert resampled_ap(matches, samples=9).ap == pytest.approx(expected.ap, abs=1e-12)


def test_nothing_to_find_has_no_ap(tmp_path):
    inputs = material(tmp_path, seed=1)
    empty = replace(inputs, detections=inputs.detections.select(slice(0)))
    assert average_precision(match_detections(empty)) == 0
    crowds = replace(inputs.ground_truth, iscrowd=np.ones_like(inputs.ground_truth.iscrowd))
    matches = match_detections(replace(inputs, ground_truth=crowds))
    assert math.isnan(average_precision(matches))
    samples = resampled_ap(matches, samples=3)
    assert np.isnan(samples.ap).all()
    assert np.isnan(samples.class_ap).all()
    nothing = AnalysisInputs.of(inputs.ground_truth, inputs.detections, inputs.paths, [])
    assert np.isnan(resampled_ap(match_detections(nothing), samples=3).ap).all()


def test_interval_is_of_the_values_that_exist():
    assert interval(np.append(np.arange(101.0), [math.nan] * 7)) == pytest.approx((2.5, 97.5))
    assert interval(np.arange(101.0), level=0.5) == (25, 75)
    assert all(math.isnan(limit) for limit in interval(np.array([math.nan])))
    assert all(math.isnan(limit) for limit in interval(np.zeros(0)))


def test_recalls_are_reached_to_the_last_bit():
    """0.07 * 100 is 7, and the 7th of COCO's recalls is not 7 / 100: a rounded product would be off by one."""
    for objects in (1, 3, 7, 10, 50, 100, 101, 700, 12_345):
        recall = np.arange(objects + 1) / objects
        assert np.array_equal(
            bootstrap._recalls_reached(recall), np.searchsorted(bootstrap.RECALLS, recall, side="right")
        )
    assert (np.arange(101) / 100 < bootstrap.RECALLS).any()


def test_classes_in_few_images_have_no_samples(tmp_path):
    inputs = material(tmp_path, seed=1)
    truth = inputs.ground_truth
    of_class = np.flatnonzero((truth.labels == 1) & (truth.iscrowd == 0))
    images = np.unique(truth.image_rows[of_class])
    assert len(images) >= 5

    def samples(count: int) -> np.ndarray:
        """Of the class, with objects to find in so many images; the others are crowds."""
        others = of_class[np.isin(truth.image_rows[of_class], images[count:])]
        crowd = truth.iscrowd.copy()
        crowd[others] = 1
        return resampled_ap(match_detections(replace(inputs, ground_truth=replace(truth, iscrowd=crowd))), 8).class_ap

    assert np.isnan(samples(4)[:, 1]).all()
    assert not np.isnan(samples(4)[:, 2]).any()
    assert (~np.isnan(samples(5)[:, 1])).sum() > 5


def test_samples_of_ap50_are_of_the_detections_that_ap50_counts(tmp_path):
    inputs = crowded(tmp_path)
    scores = score_detections(inputs.ground_truth, inputs.detections, where="crowded.json").metrics
    matches = match_detections(inputs)
    of_ap50 = matches_of_ap50(inputs, matches)
    samples = resampled_ap(matches, samples=40, of_ap50=of_ap50)
    assert samples.ap50.mean() == pytest.approx(scores["AP50"], abs=1e-9)
    assert samples.ap.mean() == pytest.approx(scores["AP"], abs=1e-9)
    assert resampled_ap(matches, samples=40).ap50.mean() < scores["AP50"] - 0.05
    expected = [class_average_precision(of_ap50, row)[0, 0] for row in image_weights(6, 40, 0)]
    assert np.diff(samples.ap50) == pytest.approx(np.diff(expected), abs=1e-9)


def test_as_many_detections_are_matched_once(tmp_path):
    for lvis in (False, True):
        inputs = material(tmp_path, lvis=lvis)
        matches = match_detections(inputs)
        assert matches_of_ap50(inputs, matches) is matches


def test_objects_in_few_images_have_no_samples(tmp_path):
    inputs = material(tmp_path, seed=1)
    images = np.unique(inputs.ground_truth.image_ids[inputs.ground_truth.image_rows[inputs.object_rows]])
    few = AnalysisInputs.of(inputs.ground_truth, inputs.detections, inputs.paths, images[:4].tolist())
    samples = resampled_ap(match_detections(few), samples=8)
    assert np.isnan(samples.ap).all()
    assert np.isnan(samples.ap50).all()
    assert samples.class_ap.shape == (8, len(inputs.ground_truth.class_names))
    assert average_precision(match_detections(few)) > 0
