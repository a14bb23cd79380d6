from __future__ import annotations

import random

import numpy as np
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
