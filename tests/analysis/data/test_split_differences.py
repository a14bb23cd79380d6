"""Splits compared: distances by hand, chance by random divisions, classes by name."""

from __future__ import annotations

import numpy as np
import pytest

from codetr_cli.analysis.data.split_differences import split_difference, total_variation
from tests.analysis.data.fakes import annotations_of


def split(classes: list[int], names: tuple[str, ...] = ("cat", "dog", "owl"), side: int = 20):
    """Images with one object each, of these classes."""
    objects = [(image, label, 0, 0, side, side) for image, label in enumerate(classes)]
    return annotations_of(objects, [(100, 100)] * len(classes), names=names)


def test_the_distance_is_the_share_that_would_have_to_be_others() -> None:
    assert total_variation(np.array([3.0, 1.0]), np.array([1.0, 1.0])) == pytest.approx(0.25)
    assert total_variation(np.array([1.0, 0.0]), np.array([0.0, 5.0])) == 1.0
    assert np.isnan(total_variation(np.zeros(2), np.ones(2)))
    found = split_difference(split([0, 0, 0, 1]), split([0, 1]))
    assert found is not None
    assert found.classes.value == pytest.approx(0.25)
    assert found.sizes.value == found.per_image.value == 0.0
    assert [(each.name, each.first, each.second) for each in found.shares] == [("cat", 0.75, 0.5), ("dog", 0.25, 0.5)]


def test_classes_of_one_split_only_are_named_with_their_objects() -> None:
    found = split_difference(split([0, 0, 1]), split([1, 2]))
    assert found is not None
    assert found.missing == [("cat", 2)]
    assert found.extra == [("owl", 1)]


def test_classes_are_compared_by_name_not_by_number() -> None:
    found = split_difference(split([0, 1, 1]), split([1, 0, 0], names=("dog", "cat")))
    assert found is not None
    assert found.classes.value == 0.0
    assert (found.missing, found.extra, found.shares) == ([], [], [])


def test_a_small_split_differs_by_chance_and_another_one_by_more() -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 3, 400).tolist()
    alike = split_difference(split(images[:380]), split(images[380:]))
    assert alike is not None
    assert 0.05 < alike.classes.by_chance < 0.5
    assert not alike.classes.is_more_than_chance
    other = split_difference(split(images[:380]), split([0] * 18 + [1, 2]))
    assert other is not None
    assert other.classes.is_more_than_chance
    assert other.classes.value > 0.4
    larger = split_difference(split(images[:380]), split(images[380:], side=50))
    assert larger is not None
    assert larger.sizes.value == 1.0
    assert larger.sizes.is_more_than_chance


def test_the_numbers_are_the_same_each_time() -> None:
    first, second = split([0, 1, 2, 0, 1] * 9), split([0, 0, 1])
    assert split_difference(first, second) == split_difference(first, second)


def test_a_split_without_objects_is_not_compared() -> None:
    assert split_difference(split([0]), split([])) is None
    assert split_difference(split([]), split([0])) is None


def test_distances_of_images_with_several_objects_of_a_class() -> None:
    random = np.random.default_rng(1)
    splits, classes, sides, numbers = [], [], [], []
    for images, objects in ((20, 150), (9, 40)):
        rows, labels = random.integers(0, images, objects), random.integers(0, 3, objects)
        widths = random.choice([4, 20, 90], objects)
        table = [(int(row), int(label), 0, 0, w, w) for row, label, w in zip(rows, labels, widths, strict=True)]
        splits.append(annotations_of(table, [(100, 100)] * images))
        classes.append(np.bincount(labels, minlength=3) / objects)
        sides.append(np.array([(widths == side).mean() for side in (4, 20, 90)]))
        edges = [1, 2, 3, 6, 11, 21, 51, 101, 301, 901]
        numbers.append(np.bincount(np.digitize(np.bincount(rows, minlength=images), edges), minlength=11) / images)
    found = split_difference(*splits)
    assert found is not None
    for distance, (one, other) in ((found.classes, classes), (found.sizes, sides), (found.per_image, numbers)):
        assert distance.value == pytest.approx(np.abs(one - other).sum() / 2)
    assert {each.name: each.first for each in found.shares} == pytest.approx(
        dict(zip(("cat", "dog", "owl"), classes[0], strict=True))
    )
