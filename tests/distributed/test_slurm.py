"""A step and a batch script of SLURM."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from codetr_cli.distributed.slurm import batch_script, first_host, job_words, read_step
from tests.distributed.fake_slurm import STEP, stand_in

# -------------------------------------------------------------------------------------------------------- environment


def test_a_step_of_one_task_a_machine():
    step = read_step(STEP)
    assert step is not None
    assert (step.nodes, step.tasks, step.node, step.is_task_per_process) == (2, 2, 1, False)
    assert step.endpoint == f"gpu03:{12000 + 123456 % 18000}"
    assert read_step({**STEP, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "777"}).endpoint == "10.0.0.1:777"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {key: value for key, value in STEP.items() if key != "SLURM_STEP_ID"},  # a batch script's own shell
        {**STEP, "SLURM_STEP_ID": "4294967290"},  # an interactive shell of salloc
    ],
)
def test_what_is_no_step_of_srun(environ: dict[str, str]):
    assert read_step(environ) is None


@pytest.mark.parametrize(
    ("nodelist", "first"),
    [
        ("node7", "node7"),
        ("gpu[03-05,9],login1", "gpu03"),
        ("a1,b[2-3]", "a1"),
        ("rack[1-2]n[04-05]-ib", "rack1n04-ib"),
        ("gpu[12,14]", "gpu12"),
    ],
)
def test_the_first_machine_is_read_from_the_list(nodelist: str, first: str):
    assert first_host(nodelist) == first


def test_scontrol_is_asked_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stand_in(
        monkeypatch,
        tmp_path,
        "scontrol",
        '[ "$1 $2 $3" = "show hostnames gpu[03-04]" ] && printf "first.cluster\\nsecond\\n"',
    )
    assert first_host("gpu[03-04]") == "first.cluster"
    assert first_host("gpu[07-08]") == "gpu07"  # it fails


# ------------------------------------------------------------------------------------------------------- batch script


def test_the_job_continues_in_the_run_folder_of_the_command(tmp_path: Path):
    words = ["train", "--preset", "p", "--slurm", "--run", "there", "--nodes=2", "--gpus", "8", "--fresh", "--json"]
    assert job_words(words, tmp_path) == ["train", "--preset", "p", "--gpus", "8", "--run", str(tmp_path)]


def script_in(tmp_path: Path) -> Path:
    path = tmp_path / "train.sh"
    path.write_text(
        batch_script(
            ["train", "--preset", "my preset.toml"],
            name="codetr-tiny",
            log=tmp_path / "%j.log",
            folder=tmp_path,
            nodes=2,
            gpus=8,
            cpus=40,
            python="/usr/bin/python3",
        )
    )
    return path


def test_the_script_asks_for_what_the_training_needs(tmp_path: Path):
    text = script_in(tmp_path).read_text()
    for option in ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=8", "--cpus-per-task=40", "--requeue",
                   "--signal=B:USR1@120", "--open-mode=append", f"--chdir={tmp_path}"):  # fmt: skip
        assert f"#SBATCH {option}\n" in text
    assert "/usr/bin/python3 -m codetr_cli train --preset 'my preset.toml' &" in text


@pytest.mark.parametrize(
    ("number", "code", "requeued"),
    [
        (signal.SIGUSR1, 143, True),  # the time limit comes
        (signal.SIGTERM, 143, False),  # the user cancels
        (None, 3, False),  # an error that the user must fix
    ],
)
def test_the_script_goes_back_into_the_queue_only_before_its_time_limit(
    tmp_path: Path, number: int | None, code: int, requeued: bool, monkeypatch: pytest.MonkeyPatch
):
    # A training that takes its time to save after a signal; srun hands signals on.
    answer = f"trap 'sleep 0.3; echo saved; exit {code}' USR1 TERM; echo started"
    stand_in(
        monkeypatch, tmp_path, "srun", f"{answer}\n" + ("while true; do sleep 0.05; done" if number else f"exit {code}")
    )
    stand_in(monkeypatch, tmp_path, "scontrol", 'echo "$@" > "$(dirname "$0")/asked"')
    process = subprocess.Popen(
        ["bash", script_in(tmp_path)],
        env={**os.environ, "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "40"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    if number:
        time.sleep(0.1)
        process.send_signal(number)
    out = process.communicate(timeout=20)[0]
    assert process.returncode == code
    assert out == ("saved\n" if number else "")
    asked = tmp_path / "bin/asked"
    assert (asked.read_text().strip() if asked.exists() else None) == ("requeue 7" if requeued else None)
