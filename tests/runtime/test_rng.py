from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from codetr_cli.runtime.rng import random_states, restore_random_states, seed_all, untouched_randomness

CPU = torch.device("cpu")


def numbers() -> list[float]:
    """One number of every generator; of a pair of normal ones, whose second is kept for the next call."""
    return [torch.rand(1).item(), float(np.random.rand()), float(np.random.randn()), random.gauss(0, 1)]


def test_restored_states_give_the_same_numbers():
    seed_all(2**40 + 7)
    numbers()
    states = random_states(CPU)
    first = [numbers() for _ in range(3)]
    restore_random_states(states, CPU)
    assert [numbers() for _ in range(3)] == first


@pytest.mark.parametrize("seed", [-1, -(2**63), 2**64 - 1, 2**64 + 5])
def test_seeds_beyond_the_range_of_torch_wrap(seed: int):
    seed_all(seed)
    first = numbers()
    seed_all(seed % 2**64)
    assert numbers() == first


def test_a_seed_decides_the_numbers_of_every_generator():
    results = []
    for seed in (1, 1, 2):
        seed_all(seed)
        results.append(numbers())
    assert results[0] == results[1]
    assert all(a != b for a, b in zip(results[0], results[2], strict=True))


def test_numbers_used_inside_are_given_back():
    states = random_states(CPU)
    expected = numbers()
    restore_random_states(states, CPU)
    with untouched_randomness():
        numbers()
    assert numbers() == expected


@pytest.mark.parametrize(
    ("place", "value"),
    [(1, torch.full((624,), float("inf"))), (1, torch.zeros(624)), (1, torch.zeros(3, dtype=torch.int64)), (2, 1.0),
     (2, True), (2, 625), (2, -1)],
)  # fmt: skip
def test_states_that_are_not_those_of_numpy_are_refused(place: int, value: Any):
    states = random_states(CPU)
    states["numpy"][place] = value
    with pytest.raises(ValueError, match="not a state of numpy's generator"):
        restore_random_states(states, CPU)
