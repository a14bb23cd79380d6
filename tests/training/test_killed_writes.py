"""A training is killed, or its disk fills up or fails, at each write of its folder: the same command continues it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from codetr_cli.config.schema import Settings
from codetr_cli.errors import ConfigError
from codetr_cli.runs.folder import RunFolder, read_state
from codetr_cli.training import setup
from tests.faults import FAILING, FAILING_ONCE, FULL, KILL, TORN, Ended, contents, run_with_fault
from tests.training.killed_writes import Command, command_of, job_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and finds names of descriptors in /proc")


@dataclass(frozen=True)
class Case:
    """A command, the commands before it, and whether another folder or another name came in between."""

    command: Command
    before: Sequence[Command] = ()
    killed_before: int = 0
    moved: bool = False


CASES = {
    "start": Case(Command()),
    "extension": Case(Command(steps=4), before=[Command(steps=2)]),
    "continuation": Case(Command(), killed_before=57),
    "another continuation": Case(Command(), killed_before=90),
    "moved data": Case(Command(place="there"), killed_before=57),
    "moved data of a finished run": Case(Command(steps=4, place="there"), before=[Command(steps=2)]),
    "a moved folder": Case(Command(steps=4), before=[Command(steps=2)], moved=True),
    "restart": Case(Command(seed=1, restart=True), before=[Command(steps=2)]),
    "early stop": Case(Command(steps=8, patience=1)),
    "more patience": Case(Command(steps=6, patience=5), before=[Command(steps=6, patience=1)]),
    "rollback": Case(Command(steps=6, spoiled=(3, 4))),
}

ALL = ("start", "extension", "continuation", "restart", "rollback")
"""Cases killed at each write; others at every fourth."""


class Trials:
    """The run of a case that nothing happens to, and copies of where it begins."""

    def __init__(self, case: Case, settings: Settings, place: Path) -> None:
        self.case, self.settings, self.place = case, settings, place
        place.mkdir()
        self._begin = place / "begin"
        self._begin.mkdir()
        for command in case.before:
            assert self._train(self._begin, command).code == 0
        if case.killed_before:
            first = replace(case.command, place="here")
            assert self._train(self._begin, first, KILL, case.killed_before).code == -9
        if case.moved:
            self._begin = self._begin.rename(place / "elsewhere")
        undisturbed = self.copy("undisturbed")
        self.ended = self._train(undisturbed, case.command)
        assert self.ended.code == 0, self.ended.err
        self.expected = outcome(undisturbed / "run")

    def _train(self, root: Path, command: Command, fault: str | None = None, at: int = 0) -> Ended:
        return run_with_fault(command_of(root, self.settings, command), root, fault, at)

    def copy(self, name: str) -> Path:
        return Path(shutil.copytree(self._begin, self.place / name))

    def run(self, at: int, fault: str) -> Ended:
        """One trial: the command meets the fault, and is given once more."""
        root = self.copy(f"{fault}-{at}")
        first = self._train(root, self.case.command, fault, at)
        if first.code == 0:  # what could not be deleted is deleted when the run is opened next
            RunFolder(root / "run").recover()
        else:
            again = self._train(root, self.case.command)
            assert again.code == 0, f"{self.ended.writes[at - 1]}: {again.err}"
        assert outcome(root / "run") == self.expected, self.ended.writes[at - 1]
        self.check_others(root)
        shutil.rmtree(root)
        return first

    def check_others(self, root: Path) -> None:
        """A run that was moved aside is whole."""
        if self.case.command.restart:
            assert outcome(root / "run.old1") == outcome(self._begin / "run")


def outcome(run: Path) -> dict[str, Any]:
    """What a training leaves: status, lines, weights and states as numbers, names of files."""
    folder = RunFolder(run)
    lines = folder.metrics()
    # A line that is appended after a failure follows an empty one.
    texts = [text for text in folder.metrics_path.read_bytes().splitlines() if text]
    assert len(texts) == len(lines), "a torn line remains"
    return {
        "status": folder.status(),
        "settings": folder.settings(),
        "inputs": folder.inputs(),
        "lines": [(line["kind"], line["step"], line.get("loss"), line.get("metrics")) for line in lines],
        "last": _numbers(read_state(folder.last / "state.pt")),
        "best": read_state(folder.best / "state.pt")["step"] if folder.best.exists() else None,
        "names": sorted(path.name for path in (*run.iterdir(), *folder.checkpoints_dir.iterdir())),
    }


def _numbers(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    return [_numbers(item) for item in value] if isinstance(value, list | tuple) else value


@pytest.fixture
def trials(tmp_path: Path, tiny_settings: Settings) -> Callable[[str], Trials]:
    return lambda name: Trials(CASES[name], tiny_settings, tmp_path / "trials")


def check_faults(trials: Trials, fault: str, step: int = 1) -> None:
    """Every `step`-th write of a case meets the fault; opening a file twice in a row counts once."""
    writes = trials.ended.writes
    differ = [at for at, name in enumerate(writes, 1) if at == 1 or name != writes[at - 2]]
    for at in differ[::step]:
        first = trials.run(at, fault)
        where = f"{writes[at - 1]}: {first.code} {first.err}"
        if fault in (KILL, TORN):
            assert first.code == -9, where
        else:
            # What is only deleted, and plots, stop nothing.
            assert first.code in (0, 5), where
            assert first.code == 5 or fault == FAILING_ONCE or at > len(writes) - 15, where
            assert first.code == 0 or str(trials.place) in first.err, where


@pytest.mark.parametrize("name", ["start", "extension", "rollback"])
def test_a_training_killed_at_some_writes_continues_with_the_same_command(trials: Callable[[str], Trials], name: str):
    check_faults(trials(name), KILL, step=25)


def test_a_command_does_not_write_into_a_run_that_began_since_it_chose_the_folder(
    tmp_path: Path, tiny_settings: Settings
):
    job = job_of(tmp_path, tiny_settings, Command())
    choice = setup.choose_for(job)
    assert run_with_fault(command_of(tmp_path, tiny_settings, Command()), tmp_path).code == 0
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match="another command has started a run in"), ExitStack() as stack:
        setup._open_folder(RunFolder(choice.path), job, choice, stack)
    assert contents(tmp_path) == before


def test_a_command_does_not_shorten_a_run_that_was_extended_since_it_chose_the_folder(
    tmp_path: Path, tiny_settings: Settings
):
    assert run_with_fault(command_of(tmp_path, tiny_settings, Command(steps=2)), tmp_path).code == 0
    job = job_of(tmp_path, tiny_settings, Command(steps=3))
    choice = setup.choose_for(job)
    assert choice.resume
    assert run_with_fault(command_of(tmp_path, tiny_settings, Command(steps=4)), tmp_path).code == 0
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=r"train\.max_steps: 4 there, 3 now"), ExitStack() as stack:
        setup._open_folder(RunFolder(choice.path), job, choice, stack)
    assert contents(tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_training_killed_at_any_write_continues_with_the_same_command(trials: Callable[[str], Trials], name: str):
    check_faults(trials(name), KILL, step=1 if name in ALL else 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["start", "extension"])
def test_a_training_killed_halfway_through_a_write_continues_with_the_same_command(
    trials: Callable[[str], Trials], name: str
):
    check_faults(trials(name), TORN, step=2)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [FULL, FAILING, FAILING_ONCE])
@pytest.mark.parametrize("name", ["start", "extension", "restart"])
def test_a_training_whose_disk_fails_at_any_write_continues_with_the_same_command(
    trials: Callable[[str], Trials], name: str, fault: str
):
    check_faults(trials(name), fault, step=2 if fault == FULL else 8)
