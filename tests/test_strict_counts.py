"""Kernels and waits of training steps, evaluated batches and predictions only go down."""

from __future__ import annotations

import pytest

from tests.strict.ratchet import FAST, WORK, by_file, count, exceeded, lowered, read_limits
from tests.strict_device import why_not

SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in WORK if name not in FAST]


@pytest.mark.skipif(why_not() is not None, reason=why_not() or "")
@pytest.mark.parametrize("name", [*FAST, *SLOW])
def test_nothing_waits_or_launches_more_than_before(name):
    """A count that became lower: `python -m tests.strict_counts update`."""
    assert exceeded(count(name), read_limits()[name]) == []


def test_limits_are_for_sums_and_for_the_waits_of_files():
    limits = {"kernels": {"forward": {"all": 9, "a.py": 5, "b.py": 4}}, "waits": {"forward": {"all": 2, "a.py": 2}}}
    moved = {"kernels": {"forward": {"all": 9, "a.py": 2, "b.py": 7}}, "waits": {"forward": {"all": 1, "a.py": 1}}}
    more = {"kernels": {"forward": {"all": 11, "a.py": 7, "b.py": 4}}, "waits": {"forward": {"all": 2, "b.py": 2}}}
    assert exceeded(limits, limits) == exceeded(moved, limits) == []
    assert exceeded(more, limits) == [
        "kernels of forward, all: 11, limit 9",
        "kernels of forward, a.py: 7, limit 5",
        "waits of forward, b.py: 2, limit 0",
    ]


def test_limits_are_lowered_and_never_raised():
    limits = {"kernels": {"forward": {"all": 9, "a.py": 9}, "backward": {"all": 5, "backward": 5}}}
    counted = {"kernels": {"forward": {"all": 8, "b.py": 8}, "backward": {"all": 6, "backward": 6}}}
    assert lowered(counted, limits)["kernels"] == {
        "forward": {"all": 8, "b.py": 8},
        "backward": {"all": 5, "backward": 5},
    }
    assert lowered(counted, None) == counted


def test_lines_are_summed_by_file():
    lines = {"boxes.py:3 f": 2, "boxes.py:9 g": 3, "backward MulBackward0": 7, "torch/optim step": 1}
    assert by_file(lines) == {"all": 13, "backward": 7, "boxes.py": 5, "torch/optim": 1}
