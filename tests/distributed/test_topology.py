"""Where the processes of a training run, from options and a SLURM step."""

from __future__ import annotations

import os

import pytest
import torch

from codetr_cli.distributed import topology
from codetr_cli.distributed.topology import Request, place
from codetr_cli.errors import ConfigError, ResourceError
from tests.distributed.fake_slurm import STEP


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
