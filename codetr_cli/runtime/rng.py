"""The random states of a process: seeding, saving, restoring and protecting them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

NUMPY_WORDS = 624  # of the state of its generator


def seed_all(seed: int) -> None:
    """Seeds torch on every device, numpy and Python; any whole number is taken modulo 2**64, as torch does."""
    seed %= 2**64
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def random_states(device: torch.device) -> dict[str, Any]:
    """The states of all global generators, in types that a checkpoint may hold.

    Args:
        device: whose generator is saved beside the CPU's.
    """
    name, keys, index, has_gauss, cached = np.random.get_state(legacy=True)
    version, words, gauss = random.getstate()
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [
            str(name),
            torch.from_numpy(np.asarray(keys, np.int64)),
            int(index),
            int(has_gauss),
            float(cached),
        ],
        "python": [version, list(words), gauss],
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random_states(states: dict[str, Any], device: torch.device) -> None:
    """Restores the states of `random_states`; a device without a saved state keeps its own.

    Raises:
        ValueError: they are not what `random_states` returned.
    """
    try:
        _restore(states, device)
    except RuntimeError as error:
        raise ValueError("not a state of PyTorch's generator") from error


def _restore(states: dict[str, Any], device: torch.device) -> None:
    name, keys, index, has_gauss, cached = states["numpy"]
    # numpy reads outside of its memory with another index.
    is_state = keys.dtype == torch.int64 and tuple(keys.shape) == (NUMPY_WORDS,) and type(index) is int
    if name != "MT19937" or not is_state or not 0 <= index <= NUMPY_WORDS:
        raise ValueError("not a state of numpy's generator")
    torch.set_rng_state(states["torch"])
    np.random.set_state((name, keys.numpy().astype(np.uint32), index, has_gauss, cached))
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


@contextmanager
def untouched_randomness() -> Iterator[None]:
    """Restores the CPU's global generators afterwards.

    A data loader uses a random number when it is opened, and a resumed run opens one more often than an uninterrupted
    one.
    """
    cpu = torch.device("cpu")
    states = random_states(cpu)
    try:
        yield
    finally:
        restore_random_states(states, cpu)
