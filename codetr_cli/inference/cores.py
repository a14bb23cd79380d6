"""How a prediction divides the cores of a CPU between the network and the threads that read images and draw."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from codetr_cli.inference.exported.network import parameter_count
from codetr_cli.inference.loading import LoadedModel

CORE_SPEED = 4e12
"""Parameters times pixels of a network's input that a core gets through in a second (measured: `co_dino_tiny`)."""
IMAGE_SECONDS = 0.03
"""Of a core, to read, resize, draw and write a photograph of 2.5 megapixels (measured)."""


@contextmanager
def cores_shared(loaded: LoadedModel, device: torch.device) -> Iterator[None]:
    """Inside, PyTorch uses no more threads than leave enough of the cores to the other threads of a stream.

    Threads that share a calculation wait for each other: where other threads keep one of them from its core, all are
    slow. The number depends on the network and the machine alone, since results of a CPU differ in their last digits
    between numbers of threads.

    Args:
        loaded: a large network gets all threads that PyTorch has now, a small one fewer.
        device: where it runs; nothing changes unless it is the CPU.
    """
    before = torch.get_num_threads()
    if device.type != "cpu":
        yield
        return
    torch.set_num_threads(network_threads(loaded, before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def network_threads(loaded: LoadedModel, threads: int) -> int:
    """How many of some threads a network uses, so that it takes as long as the rest of the work on an image."""
    height, width = loaded.settings.test.input_size
    seconds = parameter_count(loaded.model) * height * width / CORE_SPEED
    return max(1, round(threads * seconds / (seconds + IMAGE_SECONDS)))
