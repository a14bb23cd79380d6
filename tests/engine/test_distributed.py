"""Two real processes through gloo; started once, since starting them is what takes the time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from codetr_cli.engine import distributed
from codetr_cli.engine.distributed import _error_of
from codetr_cli.errors import DatasetError, MachineError
from tests.conftest import REPOSITORY

CPU = torch.device("cpu")

SCRIPT = """
import json, os, sys
import torch
from torch import nn
from codetr_cli.engine import distributed
from codetr_cli.errors import DatasetError

CPU = torch.device("cpu")

def talk():
    with distributed.process_group(CPU):
        rank = distributed.rank()
        model = nn.Linear(2, 1, bias=False)
        nn.init.constant_(model.weight, float(rank))  # ranks differ until they are wrapped
        wrapped = distributed.wrap_ddp(model, CPU)
        with distributed.without_sync(wrapped):
            wrapped(torch.ones(1, 2)).sum().backward()
        own = model.weight.grad.tolist()
        wrapped(torch.full((1, 2), 1.0 + 4 * rank)).sum().backward()
        distributed.barrier()
        return {
            "world": distributed.world_size(),
            "mean": distributed.reduce_mean(torch.tensor([1.0 + rank])).item(),
            "any": distributed.any_process(rank == 1, False),
            "gathered": distributed.gather_objects({"rank": rank}),
            "from_main": distributed.from_main("main" if rank == 0 else None),
            "weight": model.weight.tolist(),
            "own": own,
            "averaged": model.weight.grad.tolist(),
            "threads": os.environ["OMP_NUM_THREADS"],
            "launched": distributed.launched_world_size(),
        }

def fail():
    with distributed.process_group(CPU):
        if distributed.rank() == 1:
            raise DatasetError("image 7 is broken")
        distributed.barrier()

def die():
    os._exit(7) if os.environ["RANK"] == "1" else torch.rand(1)

if __name__ == "__main__":
    answers = {"talk": distributed.launch(talk, (), processes=2)}
    for function in (fail, die):
        try:
            distributed.launch(function, (), processes=2)
        except Exception as error:
            answers[function.__name__] = f"{type(error).__name__}: {error}"
    print(json.dumps(answers))
"""


def test_two_processes_agree_and_report(tmp_path: Path):
    script = tmp_path / "talk.py"
    script.write_text(SCRIPT)
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | {"PYTHONPATH": str(REPOSITORY)}
    ran = subprocess.run(
        [sys.executable, "-W", "error", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    answers = json.loads(ran.stdout)
    talk = answers["talk"]
    assert talk["world"] == talk["launched"] == 2
    assert talk["mean"] == 1.5
    assert talk["any"] == [True, False]
    assert talk["gathered"] == [{"rank": 0}, {"rank": 1}]
    assert talk["from_main"] == "main"
    assert talk["weight"] == [[0.0, 0.0]]
    assert talk["own"] == [[1.0, 1.0]]
    assert talk["averaged"] == [[4.0, 4.0]]  # (1 + 1 + 1 + 5) / 2
    assert int(talk["threads"]) >= 1
    assert answers["fail"] == "DatasetError: image 7 is broken"
    assert answers["die"].startswith("MachineError: training process 1 ended with exit code 7")
    assert ran.stderr == ""


def test_alone_there_is_nobody_to_ask():
    with distributed.process_group(CPU):
        assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
        tensor, module = torch.ones(2), nn.Linear(1, 1)
        assert distributed.reduce_mean(tensor) is tensor
        assert distributed.any_process(True, False) == (True, False)
        assert distributed.gather_objects("x") == ["x"]
        assert distributed.from_main("x") == "x"
        assert distributed.wrap_ddp(module, CPU) is module
        distributed.barrier()
        with distributed.without_sync(module):
            pass


def test_a_process_that_was_killed_is_a_matter_of_the_machine(tmp_path: Path):
    error = _error_of(tmp_path, 3, -9)
    assert isinstance(error, MachineError)
    assert "process 3 was ended by SIGKILL" in str(error)


def test_the_first_of_several_errors_counts(tmp_path: Path):
    (tmp_path / "0.json").write_text('{"kind": "", "text": "RuntimeError: connection closed", "time": 2.0}')
    (tmp_path / "1.json").write_text('{"kind": "DatasetError", "text": "no image", "time": 1.0}')
    error = _error_of(tmp_path, 0, 1)
    assert isinstance(error, DatasetError)
    assert str(error) == "no image"


def test_threads_are_shared_unless_chosen(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(distributed, "cpu_count", lambda: 9)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    distributed.share_threads(4)
    assert os.environ["OMP_NUM_THREADS"] == "2"
    distributed.share_threads(1)
    assert os.environ["OMP_NUM_THREADS"] == "2"
    monkeypatch.delenv("OMP_NUM_THREADS")


def test_a_launched_process_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch):
    cuda = torch.device("cuda", 0)
    assert distributed.local_device(cuda) == cuda
    for name, value in (("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert distributed.local_device(cuda) == torch.device("cuda", 1)
    assert distributed.local_device(CPU) == CPU
