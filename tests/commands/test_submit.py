"""`codetr train --slurm`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from codetr_cli.config.overrides import to_toml
from codetr_cli.config.schema import Settings
from tests.conftest import Ran
from tests.distributed.fake_slurm import stand_in
from tests.inference.fakes import write_run


@pytest.fixture
def train(codetr: Callable[..., Ran], tmp_path: Path, tiny_settings: Settings, tiny_coco: Path) -> Callable[..., Ran]:
    preset = tmp_path / "tiny.toml"
    preset.write_text(to_toml(tiny_settings))

    def run(*words: object) -> Ran:
        return codetr("train", "--preset", preset, "--data", tiny_coco, "--run", tmp_path / "run", "--slurm", *words)

    return run


def test_sbatch_gets_the_script(train: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stand_in(monkeypatch, tmp_path, "sbatch", 'cp "${@: -1}" "$(dirname "$0")/submitted"; echo "4711;cluster"')
    ran = train("--nodes", 2, "--gpus", 1)
    assert ran.code == 0, ran.err
    assert "submitted as job 4711" in ran.out
    script = tmp_path / "run/slurm/train.sh"
    text = script.read_text()
    assert (tmp_path / "bin/submitted").read_text() == text
    assert f"{sys.executable} -m codetr_cli train --preset" in text
    assert "#SBATCH --gpus-per-node=1\n" in text
    command = text[text.index("srun ") : text.index(" &\n")]
    assert f"--run {tmp_path / 'run'}" in command
    assert "--slurm" not in command
    assert "--nodes" not in command


def test_without_sbatch_the_script_is_left_and_said_so(
    train: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    ran = train("--json", "--device", "cpu", "--procs", 2)
    assert ran.code == 0, ran.err
    answer = json.loads(ran.out)
    assert answer["job"] is None
    assert Path(answer["script"]).is_file()
    assert "gpus-per-node" not in Path(answer["script"]).read_text()
    assert "there is no sbatch here" in ran.err


def test_a_job_that_sbatch_refuses(train: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stand_in(monkeypatch, tmp_path, "sbatch", 'echo "sbatch: error: invalid account" >&2; exit 1')
    ran = train()
    assert ran.code == 5
    assert "invalid account" in ran.err
    assert "SBATCH_ACCOUNT" in ran.err
    assert (tmp_path / "run/slurm/train.sh").is_file()


def test_the_job_itself_starts_in_the_folder_that_holds_its_script(
    train: Callable[..., Ran],
    codetr: Callable[..., Ran],
    tmp_path: Path,
    tiny_coco: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    assert train("--dry-run").out.startswith("#!/bin/bash")
    assert not (tmp_path / "run").exists()
    stand_in(monkeypatch, tmp_path, "sbatch", "echo 1")
    assert train().code == 0
    ran = codetr("train", "--preset", tmp_path / "tiny.toml", "--data", tiny_coco, "--run", tmp_path / "run",
                 "--device", "cpu", "--no-eval", "--set", "train.max_steps=1")  # fmt: skip
    assert ran.code == 0, ran.err
    assert "new run in" in ran.err


def test_a_batch_that_the_machines_cannot_share_is_refused_before_it_waits_in_a_queue(
    train: Callable[..., Ran], tmp_path: Path
):
    ran = train("--nodes", 2, "--gpus", 8)
    assert ran.code == 2
    assert "cannot be divided equally among 16 processes" in ran.err
    assert not (tmp_path / "run").exists()


def test_other_verbs_are_submitted_into_their_output_folder(
    codetr: Callable[..., Ran],
    tmp_path: Path,
    tiny_settings: Settings,
    tiny_coco: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    stand_in(monkeypatch, tmp_path, "sbatch", "echo 7")
    write_run(tmp_path / "runs/tiny/1", tiny_settings, "last")
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions/predictions.json").touch()
    on_two_nodes = ("--nodes", 2, "--gpus", 8, "--slurm")
    commands = {
        ("eval", "runs/tiny/1", "--data", tiny_coco): ("runs/tiny/1/eval/last/val", "slurm/eval.sh"),
        ("predict", tiny_coco / "val2017"): ("predictions_2", "slurm/predict.sh"),
        ("bench", "train"): ("bench/train.json", "../slurm/bench-train.sh"),
        ("bench", "--size", "64x64"): ("bench/infer.json", "../slurm/bench-infer.sh"),
    }
    for words, (output, script) in commands.items():
        ran = codetr(*words, *on_two_nodes)
        assert ran.code == 0, ran.err
        assert "submitted as job 7" in ran.out
        text = (tmp_path / output / script).resolve().read_text()
        assert "#SBATCH --nodes=2\n" in text
        assert "#SBATCH --gpus-per-node=8\n" in text
        command = text[text.index("srun ") : text.index(" &\n")]
        assert f"-m codetr_cli {words[0]} " in command
        assert f"--gpus 8 --out {tmp_path / output}" in command
        assert "--slurm" not in command
