"""The reproducer of a diverged run, replayed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from codetr_cli.config.overrides import to_toml
from codetr_cli.config.schema import Settings
from codetr_cli.errors import CheckpointError, DivergedError
from codetr_cli.losses.collaborative import CollaborativeObjective
from codetr_cli.training import repro, step
from codetr_cli.training.repro import read_micro_batches, read_step, replay
from tests.conftest import Ran
from tests.training.fakes import CPU, begin, train
from tests.training.nonfinite_losses import spoil, spoiled_forward

pytestmark = pytest.mark.usefixtures("no_plots", "no_fsync")


@pytest.mark.parametrize("refused", ["repro.save_file", "repro.Path.mkdir"])
def test_a_full_disk_does_not_hide_what_happened(
    tmp_path: Path, tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch, refused: str
):
    def full(*words: Any, **named: Any) -> None:
        raise OSError(28, "No space left on device")

    training = begin(tmp_path, tiny_settings, "train.max_nonfinite_steps=1")
    spoil(training, 1)
    skip_step = step.skip_step

    def skip_and_fill(*words: Any) -> None:
        skip_step(*words)
        monkeypatch.setattr(f"codetr_cli.training.{refused}", full)
        monkeypatch.setattr("codetr_cli.runs.folder.append", full)

    monkeypatch.setattr(step, "skip_step", skip_and_fill)
    with pytest.raises(DivergedError, match=r"loss_bbox = nan.*could not be saved.*no space left"):
        train(training)


def test_a_run_that_diverged_is_replayed_to_the_last_bit(
    tmp_path: Path,
    tiny_coco: Path,
    tiny_settings: Settings,
    codetr: Callable[..., Ran],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):
    preset, run = tmp_path / "tiny.toml", tmp_path / "run"
    preset.write_text(to_toml(tiny_settings))
    words = ("train", "--preset", preset, "--data", tiny_coco, "--device", "cpu", "--no-eval", "--run", run)
    seen: list[dict[str, float]] = []
    with monkeypatch.context() as patch:
        patch.setattr(CollaborativeObjective, "forward", spoiled_forward(201, seen))
        ran = codetr(*words, "--set", "train.max_nonfinite_steps=1", "--set", "data.workers=1")
        assert ran.code == 6, ran.err
        assert "loss_rpn_bbox = nan" in ran.err
        (replayed,) = replay(run / "diverged", CPU)
    assert 201 in replayed.image_ids[0]
    assert str(replayed.losses[0]) == str(seen[-2])  # NaN is not equal to itself; the last one is the replay's own
    (fixed,) = replay(run / "diverged", CPU)
    repro.main([str(run / "diverged")])
    (printed,) = json.loads(capfd.readouterr().out)
    assert printed["losses"] == fixed.losses
    assert fixed.gradients == []
    assert math.isfinite(fixed.losses[0]["loss_rpn_bbox"])
    assert {name: value for name, value in fixed.losses[0].items() if name != "loss_rpn_bbox"} == {
        name: value for name, value in seen[-2].items() if name != "loss_rpn_bbox"
    }
    (run / "diverged/step.json").unlink()
    with pytest.raises(CheckpointError, match="no complete reproducer"):
        next(replay(run / "diverged", CPU))


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "9" * 10_000, "\0"])
def test_a_broken_table_of_a_step_is_a_bad_checkpoint(tmp_path: Path, text: str):
    (tmp_path / "step.json").write_text(text)
    with pytest.raises(CheckpointError, match="no complete reproducer"):
        read_step(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, "1", "[1]", "[{}]", '[{"batch": {"targets": 1}, "random": 0}]'])
def test_broken_inputs_of_a_step_are_a_bad_checkpoint(tmp_path: Path, text: str):
    path = tmp_path / "rank0.safetensors"
    save_file({"a": torch.zeros(1)}, path, {"micro_batches": text})
    with pytest.raises(CheckpointError, match="holds no inputs of a step"):
        read_micro_batches(path)
