"""Benchmarks in two processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from codetr_cli.config.schema import Settings
from codetr_cli.distributed.fsdp import why_not_shard
from tests.distributed.forked_commands import run_forked
from tests.inference.fakes import write_checkpoint

SMALL = ("--size", "64x96", "--batch", 2, "--warmup", 0, "--iterations", 2, "--device", "cpu", "--procs", 2)


@pytest.mark.slow
def test_images_per_second_are_those_of_all_processes(tiny_settings: Settings, tmp_path: Path):
    checkpoint = write_checkpoint(tmp_path / "m.safetensors", tiny_settings)
    files = {kind: tmp_path / f"{kind}.json" for kind in ("train", "infer")}
    commands = [("bench", kind, "--checkpoint", checkpoint, *SMALL, "--out", file) for kind, file in files.items()]
    if why_not_shard() is None:
        commands.append(("bench", "train", "--checkpoint", checkpoint, *SMALL, "--set", "train.fsdp=true"))
    ran = run_forked(*commands)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("those of all 2 processes, 4 images at once") == len(commands)
    for kind, file in files.items():
        found = json.loads(file.read_text())["training" if kind == "train" else "inference"]
        rates, alone = found["images_per_second_of_each"], found["one_process"]["images_per_second"]
        assert (found["processes"], found["batch"], found["images_per_step"]) == (2, 2, 4)
        assert found["images_per_second"] == pytest.approx(sum(rates))
        assert found["scaling_efficiency"] == pytest.approx(sum(rates) / (2 * alone))
        assert set(found["stages_ms"]) == set(found["one_process"]["stages_ms"])
        assert f"({found['images_per_second']:.3f} / (2 x {alone:.3f}))" in ran.stdout


def test_one_process_compares(codetr, tiny_settings: Settings, tmp_path: Path):
    checkpoint = write_checkpoint(tmp_path / "m.safetensors", tiny_settings)
    ran = codetr("bench", "train", "--checkpoint", checkpoint, *SMALL, "--compare", "torch")
    assert ran.code == 2
    assert "--compare measures one process" in ran.err
