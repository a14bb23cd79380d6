"""Two real processes through gloo; started once, since starting them is what takes the time."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from codetr_cli.distributed import process_group
from codetr_cli.distributed.launcher import share_threads
from tests.forked import run_forked

CPU = torch.device("cpu")

SCRIPT = """
import json, logging, os, sys
import torch
from torch import nn
from codetr_cli.distributed import process_group
from codetr_cli.distributed.launcher import LaunchSpec, launch

CPU = torch.device("cpu")

def talk():
    with process_group.joined(CPU) as store:
        store.set(f"key{process_group.rank()}", "text")
        rank = process_group.rank()
        model = nn.Linear(2, 1, bias=False)
        nn.init.constant_(model.weight, float(rank))  # ranks differ until they are wrapped
        wrapped = process_group.wrap_ddp(model, CPU)
        with process_group.without_sync(wrapped):
            wrapped(torch.ones(1, 2)).sum().backward()
        own = model.weight.grad.tolist()
        wrapped(torch.full((1, 2), 1.0 + 4 * rank)).sum().backward()
        process_group.barrier()
        return {
            "world": process_group.world_size(),
            "mean": process_group.reduce_mean(torch.tensor([1.0 + rank])).item(),
            "any": process_group.any_process(rank == 1, False),
            "gathered": process_group.gather_objects({"rank": rank}),
            "levels": process_group.gather_objects(logging.getLogger("codetr_cli.any").getEffectiveLevel()),
            "from_main": process_group.from_main("main" if rank == 0 else None),
            "weight": model.weight.tolist(),
            "own": own,
            "averaged": model.weight.grad.tolist(),
            "threads": os.environ["OMP_NUM_THREADS"],
            "launched": process_group.launched_world_size(),
            "store": [text.decode() for text in store.multi_get(["key0", "key1"])],
            "restarted": process_group.was_restarted(),
        }

def die():
    os._exit(7) if os.environ["RANK"] == "1" else torch.rand(1)

if __name__ == "__main__":
    spec = LaunchSpec(processes=2, max_restarts=0)
    answers = {"talk": launch(talk, (), spec)}
    try:
        launch(die, (), spec)
    except Exception as error:
        answers["die"] = f"{type(error).__name__}: {error}"
    print(json.dumps(answers))
"""


def test_two_processes_agree_and_report(tmp_path: Path):
    script = tmp_path / "talk.py"
    script.write_text(SCRIPT)
    ran = run_forked("-W", "error", script)
    assert ran.returncode == 0, ran.stderr
    answers = json.loads(ran.stdout)
    talk = answers["talk"]
    assert talk["world"] == talk["launched"] == 2
    assert talk["mean"] == 1.5
    assert talk["any"] == [True, False]
    assert talk["gathered"] == [{"rank": 0}, {"rank": 1}]
    assert talk["levels"] == [30, 40]  # only rank 0 logs more than errors
    assert talk["from_main"] == "main"
    assert talk["weight"] == [[0.0, 0.0]]
    assert talk["own"] == [[1.0, 1.0]]
    assert talk["averaged"] == [[4.0, 4.0]]  # (1 + 1 + 1 + 5) / 2
    assert int(talk["threads"]) >= 1
    assert talk["store"] == ["text", "text"]
    assert not talk["restarted"]
    assert answers["die"].startswith("ResourceError: training process 1 ended with exit code 7")
    assert ran.stderr == ""


def test_without_a_group_nothing_is_communicated():
    with process_group.joined(CPU):
        assert (process_group.rank(), process_group.world_size(), process_group.is_main()) == (0, 1, True)
        tensor, module = torch.ones(2), nn.Linear(1, 1)
        assert process_group.reduce_mean(tensor) is tensor
        assert process_group.any_process(True, False) == (True, False)
        assert process_group.gather_objects("x") == ["x"]
        assert process_group.from_main("x") == "x"
        assert process_group.wrap_ddp(module, CPU) is module
        process_group.barrier()
        with process_group.without_sync(module):
            pass


def test_threads_are_shared_unless_chosen(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("codetr_cli.distributed.launcher.cpu_count", lambda: 9)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    share_threads(4)
    assert os.environ["OMP_NUM_THREADS"] == "2"
    share_threads(1)
    assert os.environ["OMP_NUM_THREADS"] == "2"
    monkeypatch.delenv("OMP_NUM_THREADS")


def test_a_launched_process_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch):
    cuda, current = torch.device("cuda", 0), []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: current.append(device.index))
    assert process_group.local_device(cuda) == cuda
    for name, value in (("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert process_group.local_device(cuda) == torch.device("cuda", 1)
    assert process_group.local_device(CPU) == CPU
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # a cluster that shows each process its own
    assert process_group.local_device(cuda) == torch.device("cuda", 0)
    assert current == [0, 1, 0]


def test_a_restart_is_known_by_whoever_started_the_processes(monkeypatch: pytest.MonkeyPatch):
    assert not process_group.was_restarted()
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("TORCHELASTIC_RESTART_COUNT", "1")):
        monkeypatch.setenv(name, value)
    assert process_group.was_restarted()
    monkeypatch.setenv(process_group.RESTARTS, "0")
    assert not process_group.was_restarted()
