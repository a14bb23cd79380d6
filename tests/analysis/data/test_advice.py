"""Advice: each rule on both sides of its threshold, with the counts that it states."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from codetr_cli.analysis.data import advice as rules
from codetr_cli.analysis.data.advice import Advice, advise
from codetr_cli.analysis.data.image_copies import CopiedImages, Copy
from codetr_cli.analysis.data.input_size import NetworkLimits
from codetr_cli.analysis.data.split_differences import split_difference
from codetr_cli.analysis.data.statistics import data_statistics
from codetr_cli.annotations.objects import Annotations
from codetr_cli.config.overrides import apply_overrides
from codetr_cli.config.schema import Settings
from codetr_cli.errors import ConfigError
from tests.analysis.data.fakes import annotations_of

NAMES = [f"class {number}" for number in range(40)]


def advice_of(*splits: Annotations, copies: CopiedImages | None = None, **overrides: object) -> dict[str, Advice]:
    """The advice for splits train, val and test, by rule."""
    settings = apply_overrides(Settings(name="test"), [f"{key}={value}" for key, value in overrides.items()])
    limits = NetworkLimits.of(settings)
    names = ("train", "val", "test")
    statistics = [data_statistics(each, limits, split=name) for each, name in zip(splits, names, strict=False)]
    differences = [
        found
        for each, name in zip(splits[1:], names[1:], strict=False)
        if (found := split_difference(splits[0], each, names=("train", name))) is not None
    ]
    found = advise(statistics, limits, differences=differences, copies=copies)
    assert len({each.rule for each in found}) == len(found)
    return {each.rule: each for each in found}


def one_image(sides: list[float], size: tuple[int, int], images: int = 1) -> Annotations:
    """Images with objects of these sides, apart from each other, of one class."""
    objects = [
        (image, 0, 100.0 * (number % 9), 90.0 * (number // 9), side, side)
        for image in range(images)
        for number, side in enumerate(sides)
    ]
    return annotations_of(objects, [size] * images, names=["cat"])


def classes(counts: list[int]) -> Annotations:
    """Images with one object each: so many of each class."""
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    objects = [(image, label, 0.0, 0.0, 200.0, 200.0) for image, label in enumerate(labels)]
    return annotations_of(objects, [(800, 1200)] * len(labels), names=NAMES[: len(counts)])


def test_a_data_set_like_coco_gets_no_advice() -> None:
    assert advice_of(classes([200, 150, 120]), classes([30, 20, 18])) == {}


def test_without_objects_there_is_no_advice() -> None:
    assert advice_of(annotations_of([], [(50, 50)])) == {}
    assert advise([], NetworkLimits.of(Settings(name="test"))) == []


@pytest.mark.parametrize(("tiny", "is_given"), [(4, False), (5, True)])
def test_tiles_for_objects_that_are_tiny_at_the_input(tiny: int, is_given: bool) -> None:
    # 4000 x 2400 pixels are reduced to a third: 23 pixels are 7.7 at the input, 25 are 8.3.
    found = advice_of(one_image([23.0] * tiny + [25.0] * (100 - tiny), (2400, 3999)))
    assert ("tiles" in found) == is_given
    if is_given:
        assert "--tiles auto" in found["tiles"].text
        assert found["tiles"].because == (
            "5 % of the objects would be under 8 pixels at the input size 800x1333 (5 of 100); in tiles 0 % would be. "
            "1 image is cut"
        )


def test_a_larger_input_where_tiles_do_not_help() -> None:
    # Tiles would not cut images of 640 x 400, which are enlarged to twice.
    found = advice_of(one_image([3.5] * 5 + [60.0] * 45, (400, 640)))
    assert "tiles" not in found
    assert "test.short_side=1216" in found["larger input"].text
    assert "with 1.5 times the input 0 % would be, at 2.25 times the computation" in found["larger input"].because


def test_objects_that_are_tiny_in_the_files_need_other_photographs() -> None:
    found = advice_of(one_image([1.5] * 5 + [60.0] * 45, (400, 640)))
    assert found.keys() & {"tiles", "larger input", "resolution"} == {"resolution"}


@pytest.mark.parametrize(
    ("size", "side", "is_given"), [((400, 600), 40, True), ((401, 600), 40, False), ((400, 600), 30, False)]
)
def test_a_smaller_input_for_images_that_are_enlarged(size: tuple[int, int], side: float, is_given: bool) -> None:
    found = advice_of(one_image([side] * 4, size))
    assert ("smaller input" in found) == is_given
    if is_given:
        assert "test.short_side=416" in found["smaller input"].text
        assert "enlarged 2 times" in found["smaller input"].because
        assert "fewer than 1 % of the objects" in found["smaller input"].because


@pytest.mark.parametrize(("objects", "is_given"), [(50, False), (51, True)])
def test_more_queries_than_objects(objects: int, is_given: bool) -> None:
    crowd = one_image([90.0] * objects, (800, 1200))
    found = advice_of(crowd, **{"model.num_queries": 50, "test.max_detections": 51})
    assert ("queries" in found) == is_given
    assert "detections" not in found
    if is_given:
        assert "--set model.num_queries=100" in found["queries"].text
        assert (
            "1 image has more than 50 objects (model.num_queries); the most is 51, in 0.jpg" in found["queries"].because
        )


@pytest.mark.parametrize(("objects", "is_given"), [(20, False), (21, True)])
def test_as_many_detections_as_objects(objects: int, is_given: bool) -> None:
    found = advice_of(one_image([90.0] * objects, (800, 1200)), **{"test.max_detections": 20})
    assert ("detections" in found) == is_given


def test_the_limits_of_queries_are_those_of_the_settings() -> None:
    for key in ("model.num_queries", "test.max_detections"):
        apply_overrides(Settings(name="test"), [f"{key}={rules.MAX_QUERIES}"])
        with pytest.raises(ConfigError, match="less than or equal"):
            apply_overrides(Settings(name="test"), [f"{key}={rules.MAX_QUERIES + 1}"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rules, "MAX_QUERIES", 50)
        assert (
            "not enough" in advice_of(one_image([90.0] * 51, (800, 1200)), **{"model.num_queries": 50})["queries"].text
        )


@pytest.mark.parametrize(("objects", "is_given"), [(100, False), (101, True)])
def test_ap_counts_100_detections_of_a_class(objects: int, is_given: bool) -> None:
    crowd = one_image([9.0] * objects, (1100, 1200))
    assert ("counted" in advice_of(one_image([90.0], (800, 1200)), crowd)) == is_given
    assert "counted" not in advice_of(crowd)  # AP is of validation images
    assert "counted" not in advice_of(crowd, replace(crowd, frequencies=["f"]))  # LVIS counts otherwise


@pytest.mark.parametrize(("apart", "is_given"), [(12.0, False), (10.0, True)])
def test_nms_suppresses_objects_that_overlap(apart: float, is_given: bool) -> None:
    # Two boxes of 100 pixels that are 10 apart have IoU 90/110 = 0.82; 12 apart 0.786.
    pair = [(0, 0, 0.0, 0.0, 100.0, 100.0), (0, 0, apart, 0.0, 100.0, 100.0)]
    apart_ones = [(0, 0, 110.0 * number, 400.0, 100.0, 100.0) for number in range(1, 10)]
    found = advice_of(annotations_of([*pair, *apart_ones], [(800, 1200)]))
    assert ("nms" in found) == is_given
    if is_given:
        assert "IoU 0.8 (test.nms_iou): 2 of 11" in found["nms"].because
    other_class = [pair[0], (0, 1, *pair[1][2:])]
    assert "nms" not in advice_of(annotations_of([*other_class, *apart_ones], [(800, 1200)]))
    assert "nms" not in advice_of(annotations_of([*pair, *apart_ones], [(800, 1200)]), **{"test.nms": "none"})


@pytest.mark.parametrize(
    ("counts", "is_given"), [([240, 200, 12], True), ([239, 200, 12], False), ([2020, 101], False)]
)
def test_rare_classes_are_repeated(counts: list[int], is_given: bool) -> None:
    found = advice_of(classes(counts))
    assert ("oversampling" in found) == is_given
    if is_given:
        assert found["oversampling"].because == (
            "the rarest class, class 2, has 12 objects in 12 images, 1/20 of the most frequent, class 0. Images of 1 "
            "class would be repeated: an epoch of 488 images instead of 452"
        )
        assert "--set data.oversample_threshold=0.42" in found["oversampling"].text
        assert "oversampling" not in advice_of(classes(counts), **{"data.oversample_threshold": 0.1})


@pytest.mark.parametrize(("count", "is_given"), [(11, False), (10, True)])
def test_classes_with_few_images(count: int, is_given: bool) -> None:
    found = advice_of(classes([100, count]))
    assert ("few examples" in found) == is_given
    if is_given:
        assert found["few examples"].because == "1 class of train is in at most 10 images: class 1 (10)"


@pytest.mark.parametrize(("count", "is_given"), [(10, False), (9, True)])
def test_classes_with_few_objects_to_evaluate(count: int, is_given: bool) -> None:
    assert ("few to evaluate" in advice_of(classes([30, 20]), classes([20, count]))) == is_given


def test_classes_of_one_split_only() -> None:
    found = advice_of(classes([30, 20, 20]), classes([20, 20, 0, 15]))
    assert "class 2 (20)" in found["missing classes"].because
    assert "class 3 (15)" in found["unknown classes"].because
    found = advice_of(classes([30, 20, 20]), classes([20, 20, 10]))
    assert not found.keys() & {"missing classes", "unknown classes"}


def test_splits_that_differ_by_more_than_chance() -> None:
    found = advice_of(classes([500, 500]), classes([250, 50]))
    assert "shares of classes differ: total variation distance 0.33" in found["different splits"].because
    assert "different splits" not in advice_of(classes([500, 500]), classes([280, 250]))
    assert "different splits" not in advice_of(classes([13, 11]), classes([20, 10]))  # 0.125, as by chance


@pytest.mark.parametrize(("across", "is_given"), [(0, False), (1, True)])
def test_copies_of_training_images(across: int, is_given: bool) -> None:
    copies = CopiedImages(9, 0, True, 3, across, [Copy("val", "b.jpg", "train", "a.jpg")] * across)
    found = advice_of(classes([30]), classes([20]), copies=copies)
    assert ("copies" in found) == is_given
    if is_given:
        assert found["copies"].because == (
            "1 image of a split is a copy of an image of another one: val: b.jpg = train: a.jpg"
        )


def test_advice_that_sets_something_can_be_set() -> None:
    found = advice_of(
        annotations_of(
            [(0, 0, 3.0 * (i % 300), 5.0 * (i // 300), 2.0, 2.0) for i in range(1000)], [(400, 900)], names=["cat"]
        )
    )
    for each in found.values():
        words = each.text.replace(",", " ").split() if "[" not in each.text else each.text.split()
        given = [word for before, word in pairwise(words) if before == "--set"]
        apply_overrides(Settings(name="test"), [word.rstrip(",") for word in given])
    assert "model.num_queries=1000" in found["queries"].text
