"""Real trainings in several processes on the CPU: killed, frozen, on two machines that are this one."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from codetr_cli.config.overrides import parse_settings, to_toml
from codetr_cli.distributed.launcher import split_endpoint
from codetr_cli.errors import ConfigError
from tests.conftest import TINY_TABLE, write_tiny_coco
from tests.distributed.ports import free_port
from tests.distributed.run_files import lines_of
from tests.forked import ForkedPython, Program, Python, new_python

STEPS = 12
Start = Callable[..., Program]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny data set and the tiny preset."""
    folder = tmp_path_factory.mktemp("launch")
    write_tiny_coco(folder / "coco")
    (folder / "tiny.toml").write_text(to_toml(parse_settings(TINY_TABLE, where="tests/conftest.py")))
    return folder


@pytest.fixture(scope="module")
def start(place: Path) -> Iterator[Start]:
    """Starts `codetr train` of the tiny network on the CPU; whatever is left in the end is killed."""
    started: list[Program] = []

    def run(folder: str, *words: object, python: Python = ForkedPython) -> Program:
        process = python("-m", "codetr_cli", "train", "--preset", place / "tiny.toml", "--data",
                         place / "coco", "--run", place / folder, "--device", "cpu", "--no-eval",
                         "--set", f"train.max_steps={STEPS}", "--set", "train.checkpoint_every=2", *words)  # fmt: skip
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            for worker in workers_of(process):
                os.kill(worker, signal.SIGKILL)
            process.kill()
        process.communicate(timeout=30)


@pytest.fixture(scope="module")
def undisturbed(start: Start, place: Path) -> Path:
    """The run of two processes that nothing happened to."""
    process = start("undisturbed", "--procs", 2)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return place / "undisturbed"


def workers_of(process: Program) -> list[int]:
    """The training processes of a launcher, in the order they were started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children if b"resource_tracker" not in Path(f"/proc/{child}/cmdline").read_bytes()]


def wait_for_steps(run: Path, steps: int, *processes: Program) -> None:
    deadline = time.monotonic() + 120
    while len(lines_of(run)) < steps:
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes), [p.communicate(timeout=5) for p in processes]
        time.sleep(0.01)


def assert_same_run(ours: Path, theirs: Path) -> None:
    a, b = (load_file(run / "checkpoints/last/model.safetensors") for run in (ours, theirs))
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    steps = [
        [(line["step"], line["loss"]) for line in lines_of(run) if line["kind"] == "train"] for run in (ours, theirs)
    ]
    assert steps[0] == steps[1]


# --------------------------------------------------------------------------------------------------- deaths and frosts


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
@pytest.mark.parametrize("python", [ForkedPython, pytest.param(new_python, marks=pytest.mark.slow)])
def test_a_killed_process_is_replaced_and_changes_no_number(
    start: Start, place: Path, undisturbed: Path, python: Python
):
    process = start("killed", "--procs", 2, "--fresh", python=python)
    wait_for_steps(place / "killed", 4, process)
    os.kill(workers_of(process)[-1], signal.SIGKILL)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert len(re.findall(r"was ended by SIGKILL.*restart 1 of at most 3", err)) == 1
    assert "Traceback" not in err
    assert "resumed after step" in err
    assert "restarted: training process 1 was ended by SIGKILL" in (place / "killed/events.log").read_text()
    assert_same_run(place / "killed", undisturbed)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_two_machines_train_one_model_also_after_a_death(start: Start, place: Path, undisturbed: Path):
    words = ("--procs", 1, "--nodes", 2, "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--json")
    machines = [start("machines", *words, python=new_python) for _ in range(2)]
    wait_for_steps(place / "machines", 4, *machines)
    os.kill(workers_of(machines[1])[0], signal.SIGKILL)
    answers = [machine.communicate(timeout=240) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], answers
    logged = [json.loads(out) for out, _ in answers if out]
    assert [answer["steps"] for answer in logged] == [STEPS]  # only the node of rank 0 prints
    assert "was ended by SIGKILL" in answers[1][1]
    assert_same_run(place / "machines", undisturbed)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_a_machine_that_is_lost_can_be_replaced(start: Start, place: Path, undisturbed: Path):
    words = ("--procs", 1, "--nodes", 2, "--rdzv-endpoint", f"127.0.0.1:{free_port()}")
    first, second = (start("replaced", *words, "--node-rank", node, python=new_python) for node in range(2))
    wait_for_steps(place / "replaced", 4, first, second)
    for process in (*workers_of(second), second.pid):
        os.kill(process, signal.SIGKILL)
    second.communicate(timeout=60)
    third = start("replaced", *words, "--node-rank", 1, python=new_python)
    ended = [machine.communicate(timeout=240) for machine in (first, third)]
    assert [machine.returncode for machine in (first, third)] == [0, 0], ended
    assert_same_run(place / "replaced", undisturbed)


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
@pytest.mark.parametrize("frozen", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_frozen_process_is_named(start: Start, place: Path, frozen: int):
    run = place / f"frozen{frozen}"
    process = start(run.name, "--procs", 2, "--set", "train.max_steps=5000", "--set", "train.timeout_minutes=0.05")
    wait_for_steps(run, 3, process)
    time.sleep(1.5)  # longer than between two signs of life
    workers = workers_of(process)
    os.kill(workers[frozen], signal.SIGSTOP)
    stopped = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 5, err
    assert time.monotonic() - stopped < 50  # the processes' own connection would wait for longer
    assert re.search(rf"error: training process {frozen} on \S+ stopped responding: no progress for \d+ seconds", err)
    assert re.search(r"last seen (waiting for data|in the forward pass|in the backward pass|in the optimizer's step|"
                     r"writing a checkpoint) of step \d+", err)  # fmt: skip
    assert "stopped responding" in (run / "events.log").read_text()
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_torchrun_restarts_a_training_too(place: Path, undisturbed: Path):
    run = place / "torchrun"
    process = new_python(
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "--max-restarts", 1,
        "-m", "--", "codetr_cli", "train", "--preset", place / "tiny.toml", "--data", place / "coco", "--run", run,
        "--device", "cpu", "--no-eval", "--set", f"train.max_steps={STEPS}", "--set", "train.checkpoint_every=2",
    )  # fmt: skip
    wait_for_steps(run, 4, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert out.count("trained 12 steps") == 1
    assert "lost its connection to another one" in err
    assert_same_run(run, undisturbed)


# --------------------------------------------------------------------------------------------------- light processes

SCRIPT = """
import json, logging, os, sys, time
import torch
from codetr_cli.distributed import process_group
from codetr_cli.distributed.launcher import LaunchSpec, launch
from codetr_cli.errors import ConfigError

CPU = torch.device("cpu")

def mistaken():
    with process_group.joined(CPU):
        if process_group.rank() == 1:
            raise ConfigError("train.lr is no number")
        process_group.barrier()

def buggy():
    with process_group.joined(CPU):
        if process_group.rank() == 1:
            {}["nothing"]
        process_group.barrier()

if __name__ == "__main__":
    answers, logged = {}, []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())
    logging.getLogger("codetr_cli").addHandler(handler)
    if len(sys.argv) == 1:
        specs = ((mistaken, LaunchSpec(processes=2)), (buggy, LaunchSpec(processes=2, max_restarts=1)))
    else:
        specs = ((mistaken, LaunchSpec(processes=1, nodes=2, endpoint=sys.argv[1])),)
    for function, spec in specs:
        del logged[:]
        try:
            launch(function, (), spec)
        except Exception as error:
            answers[function.__name__] = [type(error).__name__, str(error), list(logged)]
    print(json.dumps(answers))
"""


@pytest.fixture
def light(tmp_path: Path) -> Callable[..., Program]:
    """Starts the script of light processes."""
    script = tmp_path / "light.py"
    script.write_text(SCRIPT)
    return partial(ForkedPython, "-W", "error", script)


def test_a_user_error_is_reported_once_and_a_bug_restarts(light: Callable[..., Program]):
    process = light()
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    answers = json.loads(out)
    assert answers["mistaken"] == ["ConfigError", "train.lr is no number", []]
    kind, text, logged = answers["buggy"]
    assert kind == "RuntimeError"
    assert re.fullmatch(
        r"training process 1 failed with KeyError: 'nothing' \(at light\.py:\d+ buggy, called from .*\)", text
    )
    assert len(logged) == 1
    assert logged[0].startswith(text)
    assert logged[0].endswith("(restart 1 of at most 1).")
    assert err == ""


def test_a_user_error_on_one_node_ends_all(light: Callable[..., Program]):
    endpoint = f"127.0.0.1:{free_port()}"
    machines = [light(endpoint) for _ in range(2)]
    ended = [machine.communicate(timeout=240) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], ended
    answers = [json.loads(out)["mistaken"] for out, _ in ended]
    assert [answer[0] for answer in answers] == ["ConfigError", "ConfigError"]
    texts = sorted((answer[1] for answer in answers), key=len)
    assert texts[0] == "train.lr is no number"
    assert texts[1] == f"train.lr is no number. (Reported by {socket.gethostname()}.)"


def test_endpoints():
    assert split_endpoint("node1:29500") == ("node1", 29500)
    assert split_endpoint("[::1]:29500") == ("::1", 29500)
    for wrong in ("node1", "node1:", ":29500", "node1:port", "node1:70000"):
        with pytest.raises(ConfigError, match="HOST:PORT"):
            split_endpoint(wrong)
