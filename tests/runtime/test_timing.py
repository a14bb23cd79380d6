from __future__ import annotations

import sys
import time

import pytest
import torch
from torch import nn

from codetr_cli.runtime.timing import (
    Stopwatch,
    extra_peak_memory,
    in_turn,
    memory_in_use,
    peak_memory,
    reset_peak_memory,
    seconds_of,
    timed_children,
)
from tests.strict_device import strict_device, why_not

CPU = torch.device("cpu")
MIB = 2**20
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process's peak memory be reset")


def test_contenders_take_turns_round_by_round():
    order = []

    def contender(name):
        def measure():
            order.append(name)
            return len(order)

        return measure

    ticks = []
    measured = in_turn({name: contender(name) for name in "ABC"}, 2, lambda: ticks.append(len(order)))
    assert "".join(order) == "ABCABC"
    assert measured == {"A": [1, 4], "B": [2, 5], "C": [3, 6]}
    assert ticks == [1, 2, 3, 4, 5, 6]


def test_a_call_is_timed():
    assert seconds_of(lambda: time.sleep(0.02), CPU) >= 0.02


def test_a_stopwatch_times_every_part():
    stopwatch = Stopwatch()
    for seconds in (0.02, 0.0):
        with stopwatch.measure(torch.device("cpu")):
            time.sleep(seconds)
    first, second = stopwatch.seconds
    assert first >= 0.02 > second
    assert stopwatch.seconds == [first, second]


@pytest.mark.skipif(why_not() is not None, reason=why_not() or "")
def test_a_stopwatch_waits_for_a_gpu_only_when_it_is_read():
    stopwatch, device = Stopwatch(), torch.device("cuda", 1)
    with strict_device(index=1) as gpu:
        for _ in range(3):
            with stopwatch.measure(device):
                torch.ones(2, device=device).add_(1)
        assert not gpu.waits
        assert len(stopwatch.seconds) == 3
        assert sum(gpu.waits.values()) == 1
        assert not gpu.problems


@pytest.mark.skipif(why_not() is not None, reason=why_not() or "")
@pytest.mark.parametrize("kind", ["mps", "xpu"])
def test_a_stopwatch_waits_for_other_gpus_at_both_ends(kind):
    stopwatch, device = Stopwatch(), torch.device(kind)
    with strict_device(kind) as gpu:
        with stopwatch.measure(device):
            torch.ones(2, device=device).add_(1)
        assert sum(gpu.waits.values()) == 2
    assert len(stopwatch.seconds) == 1


def test_children_are_timed_and_left_without_instruments():
    class Slow(nn.Module):
        def forward(self, x):
            time.sleep(0.02)
            return x

    model = nn.Sequential()
    model.add_module("fast", nn.Identity())
    model.add_module("slow", Slow())
    with timed_children(model, ("fast", "slow"), CPU) as seconds:
        for _ in range(2):
            model(torch.zeros(1))
    assert seconds["slow"] >= 0.04
    assert seconds["fast"] < 0.04
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@linux
def test_the_peak_starts_anew():
    assert reset_peak_memory(CPU)
    before = memory_in_use(CPU)
    held = torch.ones(64 * MIB // 4)
    del held
    assert peak_memory(CPU) - before > 60 * MIB
    assert reset_peak_memory(CPU)
    assert peak_memory(CPU) - before < 30 * MIB


@linux
def test_extra_memory_leaves_out_what_is_returned():
    given = torch.ones(16 * MIB // 4)

    def call():
        temporary = given.repeat(3)  # 48 MiB
        return [temporary[: len(given)] + given]  # 16 MiB

    extra = extra_peak_memory(call, CPU)
    assert 44 * MIB < extra < 60 * MIB
    assert extra_peak_memory(lambda: [given + given], CPU) < 8 * MIB


def test_memory_is_unknown_where_the_peak_cannot_be_reset(monkeypatch):
    monkeypatch.setattr("codetr_cli.runtime.timing.reset_peak_memory", lambda device: False)
    assert extra_peak_memory(lambda: [], CPU) is None


@pytest.mark.gpu
def test_gpu_memory_is_the_allocators_peak():
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    device = torch.device("cuda", 0)
    assert reset_peak_memory(device)
    held = torch.zeros(10_000_000, device=device)
    assert peak_memory(device) >= held.nbytes
