from __future__ import annotations

import math

import numpy as np
import pytest

from codetr_cli.data.oversampling import repeated_images


def expected(classes: list[set[int]], threshold: float, count_empty: bool) -> list[int]:
    """The rule of arXiv 1908.03195, section 4, image by image."""
    classes = [found or ({-1} if count_empty else set()) for found in classes]
    share = {label: sum(label in found for found in classes) / len(classes) for found in classes for label in found}
    result = []
    for index, found in enumerate(classes):
        factor = max([max(1.0, math.sqrt(threshold / share[label])) for label in found], default=1.0)
        result += [index] * math.ceil(factor)
    return result


@pytest.mark.parametrize("count_empty", [False, True])
@pytest.mark.parametrize("threshold", [0.001, 0.05, 0.3, 1.0])
def test_images_of_rare_classes_are_repeated(threshold: float, count_empty: bool) -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        images = int(generator.integers(1, 40))
        image_rows = generator.integers(0, images, 60)
        labels = (generator.random(60) ** 3 * 8).astype(np.int64)
        rows = np.flatnonzero(generator.random(images) < 0.8)
        classes = [set(labels[image_rows == row].tolist()) for row in rows]
        repeated = repeated_images(image_rows, labels, rows, threshold, count_empty=count_empty)
        assert repeated.tolist() == expected(classes, threshold, count_empty)


def test_a_class_in_one_of_a_thousand_images_is_seen_ten_times_as_often_as_the_threshold() -> None:
    labels = np.ones(1000, np.int64)
    labels[7] = 0
    repeated = repeated_images(np.arange(1000), labels, np.arange(1000), 0.1, count_empty=True)
    assert len(repeated) == 1009
    assert (repeated == 7).sum() == 10


def test_no_objects_at_all() -> None:
    none = np.zeros(0, np.int64)
    assert repeated_images(none, none, np.arange(3), 0.5, count_empty=True).tolist() == [0, 1, 2]
    assert repeated_images(none, none, none, 0.5, count_empty=False).tolist() == []
