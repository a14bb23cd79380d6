from __future__ import annotations

import math

import numpy as np
import pytest

from codetr_cli.analysis.differences import (
    Difference,
    clear_after_holm,
    images_needed,
    paired_difference,
    round_up,
    sentence,
)


def test_the_interval_is_of_the_differences_of_pairs():
    random = np.random.default_rng(0)
    shared = random.normal(0.4, 0.1, 2000)
    found = paired_difference(0.40, 0.42, shared, shared + random.normal(0.02, 0.005, 2000))
    assert (found.first, found.second, found.value) == (0.40, 0.42, pytest.approx(0.02))
    assert found.low == pytest.approx(0.02 - 1.96 * 0.005, abs=0.001)
    assert found.high == pytest.approx(0.02 + 1.96 * 0.005, abs=0.001)
    assert found.p < 1e-3
    assert found.conclusion == "better"


def test_resamples_without_the_class_do_not_count():
    first, second = np.array([0.1, np.nan, 0.3, 0.2]), np.array([0.2, 0.9, 0.4, np.nan])
    found = paired_difference(0.2, 0.3, first, second)
    assert (found.low, found.high) == (pytest.approx(0.1), pytest.approx(0.1))
    alone = paired_difference(0.2, 0.3, first[:2], second[:2])
    assert math.isnan(alone.low)
    assert alone.conclusion == "unclear"


def test_nothing_to_measure_has_no_difference():
    found = paired_difference(math.nan, 0.3, np.zeros(3), np.zeros(3))
    assert math.isnan(found.value)
    assert found.conclusion == "unknown"


def test_fewer_errors_are_better():
    assert Difference(12, 10, -3, -1, is_good=False).conclusion == "better"
    assert Difference(10, 12, 1, 3, is_good=False).conclusion == "worse"
    assert Difference(10, 12, -1, 3, is_good=False).conclusion == "unclear"


def test_equal_values_without_spread_are_equal():
    samples = np.random.default_rng(0).uniform(size=50)
    found = paired_difference(0.4, 0.4, samples, samples)
    assert (found.low, found.high, found.p, found.conclusion) == (0.0, 0.0, 1.0, "equal")


SENTENCES = [
    (
        Difference(0.40, 0.412, 0.004, 0.021),
        "B is better than A by 1.2 AP, 95 % interval 0.4 to 2.1, on 5,000 images.",
    ),
    (
        Difference(0.412, 0.40, -0.021, -0.004),
        "B is worse than A by 1.2 AP, 95 % interval 0.4 to 2.1, on 5,000 images.",
    ),
    (
        Difference(0.40, 0.403, -0.004, 0.010),
        "No clear difference: B is 0.3 AP above A, 95 % interval -0.4 to 1.0, on 5,000 images.",
    ),
    (
        Difference(0.403, 0.40, -0.010, 0.0002),
        "No clear difference: B is 0.3 AP below A, 95 % interval -1.0 to 0.0, on 5,000 images.",
    ),
    (
        Difference(0.403, 0.403, -0.010, 0.01),
        "No clear difference: B has the AP of A, 95 % interval -1.0 to 1.0, on 5,000 images.",
    ),
    (
        Difference(0.40, 0.4004, 0.0002, 0.0007),
        "B is better than A by 0.04 AP, 95 % interval 0.02 to 0.07, on 5,000 images.",
    ),
    (Difference(0.4, 0.4, 0.0, 0.0), "No difference: A and B have the same AP, 40.0, on 5,000 images."),
    (
        Difference(math.nan, math.nan),
        "No verdict: on 5,000 images there is no object to find, so there is no AP.",
    ),
    (
        Difference(0.4, 0.5),
        "No verdict: B is 10.0 AP above A, on 5,000 images, too few to exclude chance.",
    ),
]


@pytest.mark.parametrize(("difference", "text"), SENTENCES)
def test_sentences(difference: Difference, text: str):
    assert sentence(difference, 5000) == text


def test_sentences_name_the_runs_and_the_metric():
    found = sentence(Difference(0.1, 0.2, 0.05, 0.15), 1, first="B", second="C", metric="mask AP")
    assert found == "C is better than B by 10.0 mask AP, 95 % interval 5.0 to 15.0, on 1 image."


def test_holm_by_hand():
    # Of 0.05: 0.05/4, 0.05/3, 0.05/2, 0.05; the third fails, and so does what comes after it.
    assert clear_after_holm([0.04, 0.001, 0.03, 0.016]) == [False, True, False, True]
    assert clear_after_holm([math.nan, 0.04]) == [False, True]
    assert clear_after_holm([]) == []


def test_holm_errs_rarely_among_many_classes():
    random = np.random.default_rng(0)
    wrong = sum(any(clear_after_holm(random.uniform(size=80).tolist())) for _ in range(400))
    alone = sum((random.uniform(size=80) < 0.05).any() for _ in range(400))
    assert wrong / 400 < 0.09  # 0.05 and four standard deviations of 0.011
    assert alone / 400 > 0.9


def test_images_that_would_show_a_difference():
    # The half width falls with the root of the number of images: a quarter of it needs 16 times as many, and twice
    # that to be seen in four of five cases.
    assert images_needed(Difference(0.4, 0.41, -0.03, 0.05), 1000) == 33000
    assert images_needed(Difference(0.4, 0.41, 0.001, 0.05), 1000) is None
    assert images_needed(Difference(0.4, 0.4001, -0.05, 0.05), 1000) is None
    assert images_needed(Difference(0.4, 0.4, -0.05, 0.05), 1000) is None


@pytest.mark.parametrize(("value", "rounded"), [(3, 3), (99, 99), (101, 110), (12345, 13000), (1.2, 2)])
def test_round_numbers(value: float, rounded: int):
    assert round_up(value) == rounded


def test_so_many_images_show_the_difference_in_four_of_five_cases():
    """Values of images whose mean difference is 0.1 of their deviation: 784 show it, by the textbook."""
    half = 1.96 / math.sqrt(100)
    needed = images_needed(Difference(0.0, 0.1, 0.1 - half, 0.1 + half), 100)
    assert needed == 790
    means = np.random.default_rng(0).normal(0.1, 1 / math.sqrt(needed), 20_000)
    assert (means > 1.96 / math.sqrt(needed)).mean() == pytest.approx(0.8, abs=0.02)
