from __future__ import annotations

import math
from dataclasses import replace

import hotcoco
import numpy as np
import pytest
from scipy.stats import binom

from codetr_cli.analysis.bootstrap import average_precision, image_weights, resampled_ap
from codetr_cli.analysis.differences import Difference, paired_difference
from codetr_cli.analysis.errors import ERROR_TYPES
from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.analysis.matches import match_detections
from codetr_cli.analysis.run_comparison import (
    MOST_CHANGED,
    ClassDifference,
    RunComparison,
    class_caution,
    compare_runs,
    same_detections,
)
from codetr_cli.analysis.run_numbers import measure_run
from codetr_cli.evaluation.backends import hotcoco_evaluation
from codetr_cli.evaluation.scoring import score_detections, scoring_inputs
from codetr_cli.inference.detections import DetectionTable
from tests.analysis.input_samples import crowded, material
from tests.analysis.run_samples import NAMES, annotations, copied_images, detections, inputs


def compared(first: AnalysisInputs, second: AnalysisInputs, samples: int = 300) -> RunComparison:
    return compare_runs(measure_run(first, samples=samples), measure_run(second, samples=samples))


@pytest.fixture(scope="module")
def truth():
    return annotations(80, crowds=2)


def test_equal_detections_have_no_difference(truth):
    table = detections(truth, seed=1)
    shuffled = table.select(np.random.default_rng(0).permutation(len(table)))
    found = compared(inputs(truth, table), inputs(truth, shuffled))
    assert found.same_detections
    assert found.cautions == ["Both have exactly the same detections."]
    assert found.verdict[0].startswith("No difference: A and B have the same AP, ")
    assert {each.value for each in found.metrics.values()} == {0.0}
    assert {(each.ap.value, each.ap.low, each.ap.high, each.is_clear) for each in found.classes} == {(0, 0, 0, False)}
    assert {each.per_100_images.value for each in found.errors} == {0.0}
    assert (found.changed, found.better_images, found.worse_images) == ([], 0, 0)


@pytest.mark.parametrize("swapped", [False, True])
def test_a_planted_improvement_is_found_with_its_sign(truth, swapped: bool):
    worse, better = detections(truth, seed=1), detections(truth, seed=2, found=0.85, noise=0.05)
    sides = (better, worse) if swapped else (worse, better)
    found = compared(*(inputs(truth, side) for side in sides))
    word = "worse" if swapped else "better"
    assert found.verdict[0].startswith(f"B is {word} than A by ")
    assert found.metrics["AP"].conclusion == word
    assert (found.metrics["AP"].value > 0) is not swapped
    missed = next(each for each in found.errors if each.name == "missed")
    assert missed.per_100_images.conclusion == word
    assert (missed.per_100_images.value < 0) is not swapped
    assert (found.better_images > found.worse_images) is not swapped


def test_what_is_better_in_one_class_is_found_in_that_class(truth):
    first = detections(truth, seed=1)
    good = detections(truth, seed=2, found=0.95, noise=0.02)
    rings = first.category_ids == 3
    second = DetectionTable.join([first.select(~rings), good.select(good.category_ids == 3)])
    found = compared(inputs(truth, first), inputs(truth, second))
    assert [(each.name, each.is_clear) for each in found.classes if each.ap.value] == [("ring", True)]
    assert found.classes[0].name == "ring"
    assert "1 has one, and 1 is clear" in class_caution(found.classes)


def test_differences_are_those_of_hotcoco(truth):
    sides = [inputs(truth, detections(truth, seed=1)), inputs(truth, detections(truth, seed=2, found=0.75))]
    ours = compared(*sides, samples=1000)
    evaluations = [
        hotcoco_evaluation(scoring_inputs(truth, side.image_ids, side.object_rows, side.detections, (1, 10, 100)))
        for side in sides
    ]
    theirs = hotcoco.compare(*evaluations, n_bootstrap=1000, seed=1)
    for name in ("AP", "AP50", "APs", "APm", "APl"):
        assert ours.metrics[name].value == pytest.approx(theirs["deltas"][name], abs=1e-9)
        low, high = theirs["ci"][name]["lower"], theirs["ci"][name]["upper"]
        width = ours.metrics[name].high - ours.metrics[name].low
        # hotcoco 1.3 counts an image once that is drawn several times: it measures 63 % of the images, without
        # repetition, and its intervals have 0.76 = (0.37 / 0.63) ** 0.5 of the width. Ours are those of copies of
        # the images, see the next test.
        assert 0.6 < (high - low) / width < 0.95
        assert abs((high + low) - (ours.metrics[name].high + ours.metrics[name].low)) < 0.3 * width
    by_name = {each.name: each.ap.value for each in ours.classes}
    assert by_name == {
        NAMES[int(each["cat_name"]) - 1]: pytest.approx(each["delta"], abs=1e-9) for each in theirs["per_category"]
    }


def test_resamples_are_those_of_copies_of_the_images(truth):
    tables = [detections(truth, seed=1), detections(truth, seed=2, found=0.75)]
    sides = [measure_run(inputs(truth, table), samples=60) for table in tables]
    names = ("AP", "AP50", "APs", "APm", "APl")
    for table, side in zip(tables, sides, strict=True):
        copies = [np.repeat(np.arange(80), weights) for weights in image_weights(80, 60, 0)[:12].astype(int)]
        scored = [score_detections(*copied_images(truth, table, rows), where="copies").metrics for rows in copies]
        for name in names:
            expected = np.array([metrics[name] for metrics in scored])
            found = side.samples[name][:12]
            inside = (expected >= 0) & (found > 0) & (found < 1)
            assert inside.sum() >= 10
            assert (np.isnan(found) == (expected < 0)).all()
            shift = (found - expected)[inside]  # all samples are shifted so that their mean is the AP of all images
            assert shift == pytest.approx(np.full(len(shift), shift[0]), abs=1e-9)
            assert np.nanmean(side.samples[name]) == pytest.approx(side.scores.metrics[name], abs=0.01)


def test_intervals_contain_the_difference_of_equal_detectors():
    """Pairs of detectors of the same quality: 95 % of the intervals of their differences contain zero."""
    pairs = 40
    contains = 0
    for seed in range(pairs):
        truth = annotations(60, seed=seed)
        matches = [match_detections(inputs(truth, detections(truth, seed=side + seed))) for side in (1000, 2000)]
        samples = [resampled_ap(each, 200).ap for each in matches]
        found = paired_difference(*(average_precision(each) for each in matches), *samples)
        contains += found.low <= 0 <= found.high
    # Fewer than this many of 40 have a probability below 0.5 % if each contains it with 95 %.
    assert contains >= binom.ppf(0.005, pairs, 0.95)
    assert contains < pairs or binom.pmf(pairs, pairs, 0.95) > 0.1


def test_errors_are_counted_per_100_images(truth):
    table = detections(truth, seed=1)
    measured = measure_run(inputs(truth, table), samples=50)
    assert measured.images.types.shape == (80, len(ERROR_TYPES))
    found = compare_runs(measured, measured)
    by_name = {each.name: each.per_100_images.first for each in found.errors}
    # All false alarms of the images have one of the types, and misses are those that no other error is about.
    alarms = sum(by_name[name] for name in ERROR_TYPES if name != "missed")
    assert alarms == pytest.approx(100 * measured.images.alarms.sum() / 80)
    assert by_name["missed"] <= 100 * measured.images.misses.sum() / 80 + 1e-9


def test_changed_images_are_those_with_most_more_or_fewer_errors(truth):
    sides = [measure_run(inputs(truth, detections(truth, seed=seed)), samples=50) for seed in (1, 2)]
    found = compare_runs(*sides)
    change = sides[1].images.errors - sides[0].images.errors
    assert [each.change for each in found.changed] == [change[each.image] for each in found.changed]
    better = [each.change for each in found.changed if each.change < 0]
    worse = [each.change for each in found.changed if each.change > 0]
    assert better == sorted(change[change < 0].tolist())[: MOST_CHANGED // 2]
    assert worse == sorted(change[change > 0].tolist(), reverse=True)[: MOST_CHANGED // 2]
    assert (found.better_images, found.worse_images) == ((change < 0).sum(), (change > 0).sum())
    first = found.changed[0]
    assert first.file_name == f"{first.image:04d}.jpg"
    assert first.image_id == first.image + 10


def test_nothing_to_find_has_no_verdict():
    truth = annotations(5)
    nothing = np.zeros(0, np.int64)
    empty = replace(
        truth, image_rows=nothing, labels=nothing, boxes_xywh=np.zeros((0, 4)), area=np.zeros(0), iscrowd=nothing,
        ignore=np.zeros(0, bool),
    )  # fmt: skip
    table = detections(truth, seed=1)
    found = compared(inputs(empty, table), inputs(empty, DetectionTable.empty()), 50)
    assert found.verdict == ["No verdict: on 5 images there is no object to find, so there is no AP."]
    assert found.classes == []
    assert found.cautions == ["5 images are few: the interval is rough, and usually too narrow."]


@pytest.mark.parametrize(
    ("name", "worse", "better"),
    [("missed", {"found": 0.5}, {"found": 0.9}), ("loose box", {"noise": 0.15}, {"noise": 0.02})],
)
def test_costs_of_errors_have_an_interval_of_their_difference(truth, name, worse, better):
    sides = [inputs(truth, detections(truth, seed=seed, **how)) for seed, how in ((1, worse), (2, better))]
    found = {each.name: each.ap for each in compared(*sides, samples=100).errors}
    assert found[name].conclusion == "better"
    assert all(each.low <= each.value <= each.high for each in found.values())


def test_costs_of_errors_of_equal_detectors_differ_by_chance(truth):
    same = compared(*(inputs(truth, detections(truth, seed=seed)) for seed in (3, 4)), samples=100)
    assert {each.ap.conclusion for each in same.errors} <= {"unclear", "equal"}


def test_without_resamples_there_is_no_interval(truth):
    sides = [
        measure_run(inputs(truth, detections(truth, seed=seed, found=found)), samples=50)
        for seed, found in ((1, 0.5), (2, 0.9))
    ]
    alone = replace(sides[1], samples={}, class_samples=None, error_samples={}, images=None, inputs=None, outcomes=None)
    paired, found = compare_runs(*sides), compare_runs(sides[0], alone)
    ap = found.metrics["AP"]
    assert (ap.value, ap.conclusion, ap.is_sampled) == (paired.metrics["AP"].value, "unclear", False)
    assert math.isnan(ap.low)
    assert found.verdict[0].startswith("No verdict: B is ")
    assert found.verdict[0].endswith("; without the detections there is no interval of the difference.")
    low, high = (100 * limit for limit in sides[1].ap_interval)
    assert f"{low:.1f} to {high:.1f} (B)" in found.cautions[0]
    assert {each.ap.value for each in found.classes} == {each.ap.value for each in paired.classes}
    assert [each.ap.value for each in found.errors] == [each.ap.value for each in paired.errors]
    assert (found.changed, found.has_images, paired.has_images) == ([], False, True)


def test_classes_that_differ_most_clearly_come_first():
    truth = annotations(80, classes=[f"class {i}" for i in range(30)])
    found = compared(*(inputs(truth, detections(truth, seed=seed)) for seed in (1, 2)), samples=50)
    chances = [each.ap.p for each in found.classes]
    known = [p for p in chances if not math.isnan(p)]
    assert known == sorted(known)
    assert len(known) < len(chances)  # of classes in a few images nothing is known
    assert all(math.isnan(p) for p in chances[len(known) :])


@pytest.mark.parametrize("lvis", [False, True])
def test_masks_and_rules_of_lvis(tmp_path, lvis: bool):
    first = material(tmp_path, lvis=lvis, masks=True)
    fewer = first.detections.select(np.arange(len(first.detections)) % 3 > 0)
    found = compared(first, replace(first, detections=fewer), samples=50)
    scores = [
        score_detections(first.ground_truth, table, first.image_ids.tolist(), where="a.json").metrics
        for table in (first.detections, fewer)
    ]
    assert set(found.metrics) == {"AP", "AP50", "mask_AP", "mask_AP50"} | (set() if lvis else {"APs", "APm", "APl"})
    for name, difference in found.metrics.items():
        if scores[0][name] >= 0:
            assert difference.value == pytest.approx(scores[1][name] - scores[0][name], abs=1e-9)
            assert math.isnan(difference.low) or difference.low <= difference.value <= difference.high
    assert not math.isnan(found.metrics["mask_AP"].low)
    assert len(found.verdict) == 2
    assert "mask AP" in found.verdict[1]
    of_boxes = compare_runs(*(measure_run(side, samples=50, masks=False) for side in (first, first)))
    assert "mask_AP" not in of_boxes.metrics


def test_very_few_images_have_no_interval():
    truth = annotations(4)
    sides = (inputs(truth, detections(truth, seed=seed, found=found)) for seed, found in ((1, 0.4), (2, 1.0)))
    found = compared(*sides, samples=50)
    assert found.verdict[0].startswith("No verdict: B is ")
    assert found.verdict[0].endswith(", on 4 images, too few to exclude chance.")
    everything = [*found.metrics.values(), *(each.ap for each in found.classes)]
    everything += [each.per_100_images for each in found.errors]
    assert all(math.isnan(each.low) for each in everything)
    assert not any(each.is_clear for each in found.classes)
    assert class_caution(found.classes) == ""


def test_a_class_that_is_never_predicted_and_one_without_objects():
    truth = annotations(30, classes=("never", "here", "absent"))
    keep = truth.labels != 2
    truth = replace(
        truth,
        **{
            name: getattr(truth, name)[keep]
            for name in ("image_rows", "labels", "boxes_xywh", "area", "iscrowd", "ignore")
        },
    )
    table = detections(truth, seed=1)
    without = table.select(table.category_ids != truth.category_ids[0])
    found = compared(inputs(truth, table), inputs(truth, without), 100)
    assert {each.name for each in found.classes} == {"never", "here"}
    never = next(each for each in found.classes if each.name == "never")
    assert never.ap.second == 0.0
    assert never.ap.conclusion == "worse"


def test_the_number_of_classes_that_differ_by_chance():
    def classes(count: int, apart: int, clear: int) -> list[ClassDifference]:
        return [
            ClassDifference(str(i), i, 9, Difference(0.1, 0.2, 0.05 if i < apart else -0.1, 0.3), i < clear)
            for i in range(count)
        ]

    assert class_caution(classes(80, 9, 2)) == (
        "Of 80 classes, about 4 would have an interval without zero by chance alone, if nothing had changed; 9 have "
        "one, and 2 are clear also in view of how many are compared (Holm's method)."
    )
    assert class_caution(classes(80, 9, 0)).endswith("9 have one, and none is clear also in view of how many are "
                                                     "compared (Holm's method).")  # fmt: skip
    assert class_caution(classes(20, 0, 0)) == (
        "Of 20 classes, one would have an interval without zero by chance alone, if nothing had changed; none has one."
    )
    assert class_caution(classes(4, 1, 1)).startswith("Of 4 classes, hardly one would have")
    assert class_caution(classes(1, 1, 1)) == ""
    unknown = ClassDifference("x", 1, 0, Difference(math.nan, math.nan), False)
    assert class_caution([unknown, unknown]) == ""


def test_tables_are_the_same_in_any_order(truth):
    table = detections(truth, seed=1)
    assert same_detections(table, table.select(np.arange(len(table))[::-1]))
    assert not same_detections(table, table.select(slice(1, None)))
    assert not same_detections(table, replace(table, scores=table.scores[::-1].copy()))
    assert same_detections(DetectionTable.empty(), DetectionTable.empty())


def test_resamples_are_around_the_metrics_in_crowded_images(tmp_path):
    """AP counts 100 detections of an image and class, the others 1000: each metric is in the middle of its own."""
    numbers = measure_run(crowded(tmp_path), samples=20)
    assert numbers.scores.metrics["AP50"] > numbers.scores.metrics["AP"] + 0.2
    for name in ("AP", "AP50", "APs"):
        assert numbers.samples[name].mean() == pytest.approx(numbers.scores.metrics[name], abs=1e-9)
