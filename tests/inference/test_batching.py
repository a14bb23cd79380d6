from __future__ import annotations

import pytest
import torch

from codetr_cli.inference import batching
from codetr_cli.inference.batching import BATCHES_AHEAD, LARGEST_AUTO_BATCH, BatchSize, LikeShapes
from codetr_cli.inference.options import DetectOptions

GPU = torch.device("cuda", 0)


def test_the_size_is_what_is_asked_for():
    sizes = BatchSize(torch.device("cpu"))
    assert sizes.of(DetectOptions()) == 1
    assert sizes.of(DetectOptions(batch=6)) == 6
    assert sizes.of(DetectOptions(batch=6, exact=True)) == 1
    sizes.halve(6)
    assert sizes.of(DetectOptions(batch=6)) == 3
    assert sizes.of(DetectOptions(batch=2)) == 2


def test_a_file_that_takes_a_fixed_number_gets_so_many():
    for device in (torch.device("cpu"), GPU):
        sizes = BatchSize(device, fixed=4)
        assert sizes.of(DetectOptions()) == 4
        assert sizes.of(DetectOptions(batch=2)) == 2
        assert sizes.of(DetectOptions(exact=True)) == 1


@pytest.mark.parametrize(("peak", "size"), [(2, 8), (20, 4), (45, 1), (200, 1), (0, LARGEST_AUTO_BATCH), (None, 1)])
def test_the_memory_of_a_gpu_decides_on_the_automatic_size(monkeypatch, peak, size):
    """10 GB of 180 are in use, a half of the rest may be filled."""
    monkeypatch.setattr(batching, "reset_peak_memory", lambda device: True)
    monkeypatch.setattr(batching, "memory_in_use", lambda device: 10)
    monkeypatch.setattr(batching, "capacity", lambda device: 180)
    monkeypatch.setattr(batching, "peak_memory", lambda device: None if peak is None else 10 + peak)
    sizes = BatchSize(GPU)
    assert sizes.of(DetectOptions()) == 1  # until it is known
    with sizes.measured(DetectOptions(batch=3)):
        pass
    assert sizes.of(DetectOptions()) == 1
    with sizes.measured(DetectOptions()):
        pass
    assert sizes.of(DetectOptions()) == size
    assert sizes.of(DetectOptions(exact=True)) == 1


def test_what_results_depend_on():
    """A resumed command has the same request where its images are seen in the same way."""
    assert DetectOptions().images_at_once("cpu") == 1
    assert DetectOptions(batch=4, exact=True).images_at_once("cuda") == 1
    assert DetectOptions(batch=4).images_at_once("cpu") == 4
    assert DetectOptions().images_at_once("cuda") is None


def test_full_batches_come_first_then_those_that_have_waited_for_long():
    shapes: LikeShapes[int] = LikeShapes()
    shapes.add(0, "odd", 0)
    for number in range(1, 2 * BATCHES_AHEAD - 1):
        shapes.add(number, number % 2, number)
        batch = shapes.take(number, 2)
        assert batch == ([number - 2, number] if number % 4 in (3, 0) else None)
    assert shapes.take(2 * BATCHES_AHEAD - 1, 2) == [0]
    assert shapes.take_oldest(2) == [5]
    assert shapes.take_oldest(2) == [6]
    assert not shapes


def test_what_is_too_many_for_a_batch_that_was_halved_waits_in_order():
    shapes: LikeShapes[int] = LikeShapes()
    for number, shape in enumerate("aabaaaa"):
        shapes.add(number, shape, number)
    taken = []
    while shapes:
        taken.append(shapes.take(7, 2) or shapes.take_oldest(2))
    assert taken == [[0, 1], [3, 4], [5, 6], [2]]
