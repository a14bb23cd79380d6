from __future__ import annotations

import math
import time

import pytest
import torch
from torch import Tensor

from codetr_cli.config.overrides import parse_settings
from codetr_cli.training.metrics import DataWaitMonitor, StepMetrics

CPU = torch.device("cpu")


def meter(reduce_mean=lambda value: value, world_size: int = 1, rank: int = 0, energy=lambda: None) -> StepMetrics:
    return StepMetrics(
        group_losses=lambda losses: {"all": sum(losses.values())},
        reduce_mean=reduce_mean,
        world_size=world_size,
        device=CPU,
        rank=rank,
        energy=energy,
    )


def losses(value: float) -> dict[str, Tensor]:
    return {"a": torch.tensor(value), "b": torch.tensor(2 * value)}


def test_skipped_steps_count_in_time_and_images_but_not_in_losses():
    ours = meter()
    for value in (1.0, math.nan, 3.0):
        ours.add(losses(value), 2)
        if math.isfinite(value):
            ours.step_done()
        else:
            ours.step_skipped()
    assert ours.has_losses
    time.sleep(0.01)
    line = ours.line(steps_left=4)
    assert line["losses"] == {"a": 2.0, "b": 4.0}
    assert line["loss"] == 6.0
    assert line["images_per_s"] <= 600
    assert line["eta_s"] == pytest.approx(4 * ours.seconds_per_step)
    ours.add(losses(math.inf), 2)
    ours.step_skipped()
    assert not ours.has_losses


def test_the_process_that_waits_most_for_data_is_shown():
    """Three processes: this one waits a little, another one most of the time."""
    sent: list[Tensor] = []

    def mean_of_three(value: Tensor) -> Tensor:
        sent.append(value)
        others = torch.zeros_like(value)
        others[-1] = 0.9 * 3
        others[:2] = 2 * value[:2]
        return (value + others) / 3

    ours = meter(mean_of_three, world_size=3, rank=1)
    with ours.waiting():
        time.sleep(0.005)
    time.sleep(0.02)
    ours.add(losses(1.0), 2)
    ours.step_done()
    line = ours.line(0)
    assert line["data_wait"] == pytest.approx(0.9)
    assert line["losses"] == {"a": 1.0, "b": 2.0}
    assert 0 < sent[0][4] < 1.5  # after two losses, energy, and the wait of process 0
    assert sent[0][3] == sent[0][5] == 0


def test_in_a_single_process_the_share_is_its_own():
    ours = meter()
    with ours.waiting():
        time.sleep(0.02)
    ours.add(losses(1.0), 2)
    ours.step_done()
    time.sleep(0.02)
    assert 0.2 < ours.line(0)["data_wait"] < 0.8


class Clock:
    """A clock that only moves when the test moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.mark.parametrize(("images_s", "step_s", "share"), [(0.02, 0.01, 2 / 3), (0.005, 0.015, 0.25), (0.0, 0.01, 0.0)])
def test_the_share_is_that_of_the_time_between_steps(
    monkeypatch: pytest.MonkeyPatch, images_s: float, step_s: float, share: float
):
    clock = Clock()
    monkeypatch.setattr("codetr_cli.training.metrics.time", clock)
    ours = meter()
    ours.restart()
    for _ in range(10):
        with ours.waiting():
            clock.now += images_s
        clock.now += step_s
        ours.add(losses(1.0), 1)
        ours.step_done()
    assert ours.line(1)["data_wait"] == pytest.approx(share)


def test_waiting_for_long_is_warned_of_once_with_a_command():
    watch, settings = DataWaitMonitor(), parse_settings({"name": "mine", "data": {"root": "my data"}}, where="here")
    shares = [0.9, 0.3, 0.3, 0.1, 0.9, 0.3, 0.3, 0.3, 0.9, 0.9, 0.9, 0.9, 0.9]
    advice = [watch.advice(share, settings) for share in shares]
    assert [text is not None for text in advice] == [False] * 7 + [True] + [False] * 5
    assert "30% of its time" in str(advice[7])
    assert "`codetr bench data 'my data' --preset mine`" in str(advice[7])


@pytest.mark.parametrize(("others", "expected"), [(8.0, 20.0), (math.nan, None)])
def test_energy_is_that_of_all_gpus(others: float, expected: float | None):
    """Two processes; where the GPU of one of them is not measured, there is no sum."""

    def mean_of_two(value: Tensor) -> Tensor:
        other = value.clone()
        other[2] = 2 * others
        return (value + other) / 2

    ours = meter(mean_of_two, world_size=2, energy=lambda: 12.0)
    ours.add(losses(1.0), 2)
    ours.step_done()
    assert ours.line(0).get("energy_j") == expected
    ours = meter(lambda value: value)
    ours.add(losses(1.0), 2)
    ours.step_done()
    assert "energy_j" not in ours.line(0)
