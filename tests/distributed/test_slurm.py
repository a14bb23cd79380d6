"""SLURM's environment as its manuals describe it, and programs that stand in for its commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from codetr_cli.config.overrides import to_toml
from codetr_cli.config.schema import Settings
from codetr_cli.distributed import topology
from codetr_cli.distributed.slurm import batch_script, first_host, job_words, read_step
from codetr_cli.distributed.topology import Request, place
from codetr_cli.errors import ConfigError, ResourceError
from tests.conftest import Ran

# A task of `srun` on the second of two machines.
STEP = {
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_ID": "0",
    "SLURM_JOB_NODELIST": "gpu[03-04]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_NTASKS": "2",
    "SLURM_NODEID": "1",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of a cluster that these tests may run on reaches them."""
    for name in list(os.environ):
        if name.startswith("SLURM_"):
            monkeypatch.delenv(name)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)


def stand_in(tmp_path: Path, name: str, text: str) -> None:
    """Puts a program on PATH."""
    path = tmp_path / "bin" / name
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


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


def test_scontrol_is_asked_where_it_is(tmp_path: Path):
    stand_in(tmp_path, "scontrol", '[ "$1 $2 $3" = "show hostnames gpu[03-04]" ] && printf "first.cluster\\nsecond\\n"')
    assert first_host("gpu[03-04]") == "first.cluster"
    assert first_host("gpu[07-08]") == "gpu07"  # it fails


# ---------------------------------------------------------------------------------------------------------- placement


def put(monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)


def test_inside_a_step_the_machines_meet_by_themselves(monkeypatch: pytest.MonkeyPatch):
    put(monkeypatch, STEP)
    placed = place(Request(device="cpu", procs=4))
    assert placed.world_size == 8
    assert placed.agreed
    assert placed.spec is not None
    assert (placed.spec.nodes, placed.spec.processes, placed.spec.node) == (2, 4, 1)
    assert placed.spec.endpoint == f"gpu03:{12000 + 123456 % 18000}"
    assert placed.spec.job == "codetr-123456"


def test_a_step_of_a_task_a_process_is_the_training(monkeypatch: pytest.MonkeyPatch):
    before = dict(os.environ)
    put(monkeypatch, {**STEP, "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1"})
    try:
        placed = place(Request(device="cpu"))
        assert (placed.world_size, placed.spec, placed.agreed) == (8, None, True)
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")
        assert [os.environ[name] for name in names] == ["5", "8", "1", "gpu03"]
    finally:
        for name in set(os.environ) - set(before) - STEP.keys():
            del os.environ[name]


def test_every_gpu_of_a_job_is_used_unless_said_otherwise(monkeypatch: pytest.MonkeyPatch):
    put(monkeypatch, STEP)
    monkeypatch.setattr(topology, "choose_device", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert place(Request()).world_size == 8
    assert place(Request(gpus=2)).world_size == 4


def test_one_process_needs_no_launcher_unless_it_may_restart():
    assert place(Request(device="cpu")).spec is None
    spec = place(Request(device="cpu", max_restarts=2)).spec
    assert spec is not None
    assert (spec.world_size, spec.max_restarts) == (1, 2)


@pytest.mark.parametrize(
    ("request_", "error", "says"),
    [
        (Request(device="cpu", nodes=2), ConfigError, "needs --rdzv-endpoint"),
        (Request(device="cpu", endpoint="a:1"), ConfigError, "--nodes"),
        (Request(device="cpu", nodes=2, endpoint="a"), ConfigError, "HOST:PORT"),
        (Request(device="cpu", nodes=2, endpoint="a:1", node=2), ConfigError, "--node-rank 2"),
        (Request(gpus=1, procs=1), ConfigError, "exclude each other"),
        (Request(device="cpu", gpus=1), ConfigError, "exclude each other"),
    ],
)
def test_options_that_do_not_fit(request_: Request, error: type[Exception], says: str):
    with pytest.raises(error, match=says):
        place(request_)


def test_more_gpus_than_there_are(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(topology, "choose_device", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ResourceError, match="--gpus 2: this machine has 1"):
        place(Request(gpus=2))


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
    tmp_path: Path, number: int | None, code: int, requeued: bool
):
    # A training that takes its time to save after a signal; srun hands signals on.
    answer = f"trap 'sleep 0.3; echo saved; exit {code}' USR1 TERM; echo started"
    stand_in(tmp_path, "srun", f"{answer}\n" + ("while true; do sleep 0.05; done" if number else f"exit {code}"))
    stand_in(tmp_path, "scontrol", 'echo "$@" > "$(dirname "$0")/asked"')
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


# ------------------------------------------------------------------------------------------------ codetr train --slurm


@pytest.fixture
def train(codetr: Callable[..., Ran], tmp_path: Path, tiny_settings: Settings, tiny_coco: Path) -> Callable[..., Ran]:
    preset = tmp_path / "tiny.toml"
    preset.write_text(to_toml(tiny_settings))

    def run(*words: object) -> Ran:
        return codetr("train", "--preset", preset, "--data", tiny_coco, "--run", tmp_path / "run", "--slurm", *words)

    return run


def test_sbatch_gets_the_script(train: Callable[..., Ran], tmp_path: Path):
    stand_in(tmp_path, "sbatch", 'cp "${@: -1}" "$(dirname "$0")/submitted"; echo "4711;cluster"')
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


def test_without_sbatch_the_script_is_left_and_said_so(train: Callable[..., Ran], tmp_path: Path):
    os.environ["PATH"] = str(tmp_path / "bin")  # the fixture puts it back
    ran = train("--json", "--device", "cpu", "--procs", 2)
    assert ran.code == 0, ran.err
    answer = json.loads(ran.out)
    assert answer["job"] is None
    assert Path(answer["script"]).is_file()
    assert "gpus-per-node" not in Path(answer["script"]).read_text()
    assert "there is no sbatch here" in ran.err


def test_a_job_that_sbatch_refuses(train: Callable[..., Ran], tmp_path: Path):
    stand_in(tmp_path, "sbatch", 'echo "sbatch: error: invalid account" >&2; exit 1')
    ran = train()
    assert ran.code == 5
    assert "invalid account" in ran.err
    assert "SBATCH_ACCOUNT" in ran.err
    assert (tmp_path / "run/slurm/train.sh").is_file()


def test_the_job_itself_starts_in_the_folder_that_holds_its_script(
    train: Callable[..., Ran], codetr: Callable[..., Ran], tmp_path: Path, tiny_coco: Path
):
    assert train("--dry-run").out.startswith("#!/bin/bash")
    assert not (tmp_path / "run").exists()
    stand_in(tmp_path, "sbatch", "echo 1")
    assert train().code == 0
    ran = codetr("train", "--preset", tmp_path / "tiny.toml", "--data", tiny_coco, "--run", tmp_path / "run",
                 "--device", "cpu", "--no-eval", "--set", "train.max_steps=1")  # fmt: skip
    assert ran.code == 0, ran.err
    assert "new run in" in ran.out


def test_a_batch_that_the_machines_cannot_share_is_refused_before_it_waits_in_a_queue(
    train: Callable[..., Ran], tmp_path: Path
):
    ran = train("--nodes", 2, "--gpus", 8)
    assert ran.code == 2
    assert "cannot be divided equally among 16 processes" in ran.err
    assert not (tmp_path / "run").exists()
