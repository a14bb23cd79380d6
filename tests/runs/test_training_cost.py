from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from codetr_cli.runs.process_record import write_process
from codetr_cli.runs.training_cost import training_cost


def write(run: Path, *lines: dict[str, Any]) -> None:
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def train_line(step: int, images_per_s: Any = 8.0, **values: Any) -> dict[str, Any]:
    return {"kind": "train", "step": step, "epoch": 0, "images_per_s": images_per_s, **values}


def eval_line(step: int, seconds: float) -> dict[str, Any]:
    return {"kind": "eval", "step": step, "epoch": 1, "metrics": {"AP": 0.5}, "seconds": seconds}


def test_seconds_of_steps_and_evaluations(tmp_path: Path):
    write(tmp_path, train_line(1), train_line(10, 4.0), eval_line(10, 30.0), train_line(20), eval_line(20, 99.0))
    found = training_cost(tmp_path, batch_size=16, step=20)
    assert found is not None
    assert found.evaluation_seconds == 30  # the last one is of these weights, not for them
    assert found.seconds == pytest.approx(1 * 2 + 9 * 4 + 10 * 2 + 30)
    assert (found.device, found.processes, found.energy_joules) == ("", 1, None)
    earlier = training_cost(tmp_path, batch_size=16, step=10)
    assert earlier is not None
    assert earlier.seconds == pytest.approx(1 * 2 + 9 * 4)


def test_energy_counts_where_every_line_has_it(tmp_path: Path):
    write(tmp_path, train_line(1, energy_j=10.0), train_line(2, energy_j=5.5))
    found = training_cost(tmp_path, batch_size=16)
    assert found is not None
    assert found.energy_joules == 15.5
    write(tmp_path, train_line(1, energy_j=10.0), train_line(2))
    found = training_cost(tmp_path, batch_size=16)
    assert found is not None
    assert found.energy_joules is None


def test_the_device_but_not_the_name_of_the_machine(tmp_path: Path):
    write(tmp_path, train_line(1))
    write_process(tmp_path, processes=8, device="NVIDIA H200")
    found = training_cost(tmp_path, batch_size=16)
    assert found is not None
    assert (found.device, found.processes) == ("NVIDIA H200", 8)


@pytest.mark.parametrize("rate", [0.0, -1.0, None, "fast", float("inf")])
def test_rates_that_are_none(tmp_path: Path, rate: Any):
    write(tmp_path, train_line(1, rate))
    assert training_cost(tmp_path, batch_size=16) is None


def test_without_lines(tmp_path: Path):
    assert training_cost(tmp_path, batch_size=16) is None
    os.mkfifo(tmp_path / "metrics.jsonl")
    assert training_cost(tmp_path, batch_size=16) is None
