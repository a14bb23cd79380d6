"""Numbers of a split: each against objects that were counted by hand, and the published rules of what counts."""

from __future__ import annotations

import numpy as np
import pytest

from codetr_cli.analysis.data.input_size import NetworkLimits
from codetr_cli.analysis.data.statistics import (
    ASPECT_EDGES,
    COUNT_EDGES,
    SIDE_EDGES,
    Spread,
    aspect_text,
    data_statistics,
    histogram,
)
from codetr_cli.config.overrides import apply_overrides
from codetr_cli.config.presets import load_preset
from codetr_cli.config.schema import Settings
from codetr_cli.data.oversampling import repeated_images
from tests.analysis.data.fakes import annotations_of, repeated

OBJECTS = [
    (0, 0, 10, 10, 20, 20),
    (0, 0, 10, 10, 20, 20),  # the same again
    (0, 1, 200, 100, 60, 30),
    (1, 1, 0, 0, 100, 100),
    (1, 0, 50, 50, 400, 400),  # a crowd
    (2, 2, 5, 5, 0.5, 40),  # thinner than a pixel
]
SIZES = [(480, 640), (800, 1333), (600, 600), (480, 640)]


def limits(**overrides: object) -> NetworkLimits:
    return NetworkLimits.of(apply_overrides(Settings(name="test"), [f"{k}={v}" for k, v in overrides.items()]))


def test_what_counts_is_what_is_trained_on() -> None:
    found = data_statistics(annotations_of(OBJECTS, SIZES, crowds=[4]), split="val")
    assert (found.split, found.images, found.objects, found.crowds, found.excluded) == ("val", 4, 4, 1, 1)
    assert found.empty_images == 2  # one has only an excluded object, one has none
    assert [(each.name, each.category_id, each.objects, each.images) for each in found.classes] == [
        ("cat", 1, 2, 1),
        ("dog", 2, 2, 2),
        ("owl", 3, 0, 0),
    ]
    assert [each.name for each in found.used_classes] == ["cat", "dog"]
    assert found.classes[0].median_side == 20.0
    assert found.classes[1].median_side == pytest.approx((np.sqrt(1800) + 100) / 2)
    assert found.classes[2].median_side is None
    assert found.most_objects == ("0.jpg", 3)


def test_sizes_and_shapes_are_counted_in_bins() -> None:
    found = data_statistics(annotations_of(OBJECTS, SIZES, crowds=[4]))
    assert found.common_sizes == [("640x480", 2), ("600x600", 1), ("1333x800", 1)]
    assert found.different_sizes == 3
    sides = dict(zip(found.object_sides.labels, found.object_sides.counts, strict=True))
    assert (sides["16 to 32"], sides["32 to 64"], sides["96 to 192"]) == (2, 1, 1)
    aspects = dict(zip(found.object_aspects.labels, found.object_aspects.counts, strict=True))
    assert (aspects["1:1.25 to 1.25:1"], aspects["2:1 to 4:1"]) == (3, 1)
    assert dict(zip(found.per_image.labels, found.per_image.counts, strict=True))["3-5"] == 1
    assert found.centres.sum() == 4
    assert found.centres[0, 0] == 3  # the two cats and the dog in the corner
    assert found.centres[1, 2] == 1


def test_overlaps_are_the_largest_with_another_object_of_the_image() -> None:
    found = data_statistics(annotations_of(OBJECTS, SIZES, crowds=[4]), limits())
    assert found.compared_objects == 4
    assert dict(zip(found.overlaps.labels, found.overlaps.counts, strict=True))[">= 0.95"] == 2
    assert found.at_input.over_nms == 2
    assert data_statistics(annotations_of(OBJECTS, SIZES), limits(**{"test.nms": "none"})).at_input.over_nms == 0


def test_sides_at_the_input_follow_the_settings() -> None:
    few = annotations_of([(0, 0, 0, 0, 20, 20), (1, 0, 0, 0, 20, 20)], [(2400, 3999), (400, 600)])
    found = data_statistics(few, limits()).at_input
    assert found.input_size == "800x1333"
    assert found.scales == Spread(
        pytest.approx(1 / 3, rel=1e-3), *(pytest.approx(v, rel=0.1) for v in (0.4, 1.17, 1.9)), 2.0
    )
    assert (found.tiny_below, found.tiny, found.tiny_in_tiles, found.cut_images) == (8.0, 1, 0, 1)
    assert data_statistics(few, limits(**{"model.finest_stride": 8})).at_input.tiny == 1
    assert data_statistics(few, limits(**{"test.short_side": 100, "test.long_side": 200})).at_input.tiny == 2
    half, larger, double = found.other_inputs
    assert (half.factor, half.tiny, larger.tiny, double.tiny) == (0.5, 1, 0, 0)
    assert "test.short_side=1600" in double.words
    assert "data.short_sides=[960," in double.words


def test_images_with_more_objects_than_the_network_can_find_are_counted() -> None:
    many = annotations_of([(0, 0, 20 * i, 0, 10, 10) for i in range(101)] + [(1, 0, 0, 0, 9, 9)], [(50, 4000)] * 2)
    found = data_statistics(many, limits(**{"model.num_queries": 101, "test.max_detections": 100})).at_input
    assert (found.over_queries, found.over_detections, found.over_counted) == (0, 1, 1)
    found = data_statistics(many, limits(**{"model.num_queries": 100, "test.max_detections": 50})).at_input
    assert found.over_queries == 1


def test_classes_that_are_together_more_often_than_by_chance() -> None:
    objects = [*repeated([(0, 0, 0, 0, 9, 9), (0, 1, 20, 0, 9, 9)], 4), (4, 0, 0, 0, 9, 9), (5, 2, 0, 0, 9, 9)]
    found = data_statistics(annotations_of(objects, [(50, 50)] * 6)).together
    pair = found.pairs[0]
    assert (pair.first, pair.second, pair.images, pair.share) == ("cat", "dog", 4, 1.0)
    assert pair.lift == pytest.approx(4 * 6 / (5 * 4))
    assert len(found.pairs) == 1
    assert found.class_names == ["cat", "dog", "owl"]
    assert found.shares[0] == [1.0, 0.8, 0.0]


@pytest.mark.parametrize(("filter_empty", "before", "then"), [(False, 101, 107), (True, 100, 103)])
def test_repeats_are_those_of_a_training_with_empty_images(filter_empty: bool, before: int, then: int) -> None:
    objects = [(image, 0, 0, 0, 9, 9) for image in range(99)] + [(99, 1, 0, 0, 9, 9)]
    found = annotations_of(objects, [(50, 50)] * 101, names=["cat", "dog"])
    limits = NetworkLimits.of(apply_overrides(Settings(name="test"), [f"data.filter_empty={filter_empty}"]))
    repeats = data_statistics(found, limits).oversampling
    assert repeats is not None
    rows = np.arange(before)
    trained = repeated_images(found.image_rows, found.labels, rows, repeats.threshold, count_empty=not filter_empty)
    assert (repeats.images_before, repeats.images) == (before, len(trained))
    assert len(trained) == then


def test_repeats_make_up_for_rare_classes() -> None:
    objects = [(image, 0, 0, 0, 9, 9) for image in range(99)] + [(99, 1, 0, 0, 9, 9)]
    found = data_statistics(annotations_of(objects, [(50, 50)] * 100, names=["cat", "dog"])).oversampling
    assert found is not None
    assert (found.threshold, found.repeated_classes, found.images) == (0.16, 1, 103)
    even = [(image, image % 2, 0, 0, 9, 9) for image in range(100)]
    assert data_statistics(annotations_of(even, [(50, 50)] * 100, names=["cat", "dog"])).oversampling is None


def test_classes_are_counted_as_hotcoco_counts_them() -> None:
    hotcoco = pytest.importorskip("hotcoco")
    random = np.random.default_rng(5)
    objects = [
        (int(random.integers(30)), int(random.integers(3)), 1.0, 1.0, float(side), 9.0)
        for side in random.integers(2, 50, 200)
    ]
    found = annotations_of(objects, [(80, 90)] * 30)
    coco = hotcoco.COCO.from_arrays(
        [{"id": i, "file_name": "", "height": 80, "width": 90} for i in found.image_ids.tolist()],
        [{"id": i, "name": name} for i, name in zip(found.category_ids, found.class_names, strict=True)],
        found.image_ids[found.image_rows],
        np.array(found.category_ids)[found.labels],
        found.boxes_xywh,
        area=found.area,
    )
    theirs = {each["id"]: (each["ann_count"], each["img_count"]) for each in coco.stats()["per_category"]}
    assert {each.category_id: (each.objects, each.images) for each in data_statistics(found).classes} == theirs


def test_no_objects_and_no_images_have_no_numbers() -> None:
    for sizes in ([], [(40, 50)]):
        found = data_statistics(annotations_of([], sizes))
        assert (found.objects, found.most_objects, found.object_shares, found.oversampling) == (0, None, None, None)
        assert found.object_sides.spread is None
        assert found.object_sides.total == 0
        assert found.together.pairs == []
        assert found.at_input.tiny == 0


def test_no_classes() -> None:
    assert data_statistics(annotations_of([], [(9, 9)], names=[])).classes == []


@pytest.mark.parametrize("edges", [SIDE_EDGES, ASPECT_EDGES, COUNT_EDGES])
def test_a_value_at_an_edge_is_in_the_upper_bin(edges: tuple[float, ...]) -> None:
    found = histogram(np.array(edges), edges)
    assert found.counts == (0, *[1] * len(edges))
    below = histogram(np.array(edges) * (1 - 1e-9), edges)
    assert below.counts == (*[1] * len(edges), 0)
    assert len(found.labels) == len(found.counts)


def test_values_that_are_not_finite_are_not_counted() -> None:
    found = histogram(np.array([np.nan, np.inf, 3.0]), (8.0, 16.0))
    assert found.counts == (1, 0, 0)
    assert found.spread == Spread(3.0, 3.0, 3.0, 3.0, 3.0)
    assert Spread.of(np.array([np.nan])) is None


def test_labels_of_whole_numbers_name_the_first_and_the_last() -> None:
    assert histogram(np.array([0]), (1.0, 2.0, 3.0, 6.0), whole=True).labels == ("0", "1", "2", "3-5", ">= 6")


@pytest.mark.parametrize(("value", "text"), [(2.0, "2:1"), (0.25, "1:4"), (1.0, "1:1"), (0.0, "0:1")])
def test_aspects_are_ratios(value: float, text: str) -> None:
    assert aspect_text(value) == text


def test_presets_have_limits() -> None:
    found = NetworkLimits.of(load_preset("co_dino_tiny"))
    assert (found.input_text, found.num_queries, found.max_detections) == ("256x256", 50, 100)
