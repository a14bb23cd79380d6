"""Checkpoints that a thread writes while training continues: slow disks, full ones, kills, and forked processes."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from codetr_cli.config.overrides import to_toml
from codetr_cli.config.schema import Settings
from codetr_cli.errors import CheckpointError, DivergedError, ResourceError, StoppedError
from codetr_cli.runs.folder import RunFolder, read_state
from codetr_cli.training import checkpointing
from codetr_cli.training.background_writer import BackgroundWriter
from tests.conftest import Ran
from tests.training.fakes import FakeRun, Scores, assert_same, begin, train

pytestmark = pytest.mark.usefixtures("no_plots", "no_fsync")
# Newer versions of Python warn of what these tests are about.
FORKING = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


class SlowDisk:
    """Holds every checkpoint back before it is written until it is let through.

    Attributes:
        writing: steps of the checkpoints, in order.
        most: of them at once.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.writing: list[int] = []
        self.most, self._now = 0, 0
        self.through = threading.Event()
        save = RunFolder.save

        def slow(folder: RunFolder, weights: Any, state: dict[str, Any], **words: Any) -> None:
            self.writing.append(state["step"])
            self._now += 1
            self.most = max(self.most, self._now)
            assert self.through.wait(20)
            save(folder, weights, state, **words)
            self._now -= 1

        monkeypatch.setattr(RunFolder, "save", slow)


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowDisk]:
    disk = SlowDisk(monkeypatch)
    yield disk
    disk.through.set()


def at_step(training: FakeRun, step: int, act: Callable[[], None]) -> None:
    training.reporter.step_done = lambda progress: act() if progress.step == step else None


def events(training: FakeRun) -> str:
    return training.run.events_path.read_text()


# ------------------------------------------------------------------------------------------------------ while it writes


def test_training_continues_during_a_write_and_the_checkpoint_is_of_its_step(
    tmp_path: Path, tiny_settings: Settings, slow_disk: SlowDisk
):
    """The first checkpoint, of step 2, is let through after step 3 only, and holds nothing of that."""
    overrides = ("train.checkpoint_every=2", "train.ema_momentum=1e-3", "train.max_steps=3")
    training = begin(tmp_path / "slow", tiny_settings, *overrides)
    seen: list[bool] = []
    at_step(training, 3, lambda: (seen.append(training.run.last.exists()), slow_disk.through.set()))
    train(training)
    assert seen == [False]
    assert slow_disk.writing == [2, 3]
    short = begin(tmp_path / "short", tiny_settings, *overrides[:2], "train.max_steps=2")
    train(short)
    (training.run.checkpoints_dir / "last").rename(tmp_path / "newest")
    training.run.previous.rename(training.run.last)
    resumed = begin(tmp_path / "slow", tiny_settings, *overrides)
    assert_same(resumed, short)


def test_two_are_never_written_at_once_and_a_long_wait_is_noted(
    tmp_path: Path, tiny_settings: Settings, slow_disk: SlowDisk, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(checkpointing, "LONG_WAIT_S", 0.05)
    training = begin(tmp_path, tiny_settings, "train.checkpoint_every=1")
    at_step(training, 2, threading.Timer(0.2, slow_disk.through.set).start)
    train(training)
    assert (slow_disk.writing, slow_disk.most) == ([1, 2, 3, 4, 5], 1)
    assert re.search(r"checkpoint of step 2: waited 0\.\d s for the one before to be written", events(training))
    assert len(re.findall(r"checkpoint of step \d: \d\.\d\d s copied, \d\.\d\d s written", events(training))) == 5


def test_what_needs_the_checkpoint_waits_for_it(tmp_path: Path, tiny_settings: Settings, slow_disk: SlowDisk):
    """The best checkpoint, and a stop."""
    training = begin(tmp_path, tiny_settings, "train.epochs=2", evaluate=Scores(0.3), stop_after=7)
    at_step(training, 5, threading.Timer(0.1, slow_disk.through.set).start)
    at_stop = threading.Timer(0.3, slow_disk.through.set)
    training.state.plots.draw = lambda: (slow_disk.through.clear(), at_stop.start())
    with pytest.raises(StoppedError):
        train(training)
    assert read_state(training.run.best / "state.pt")["step"] == 5
    assert read_state(training.run.last / "state.pt")["step"] == 7


def test_going_back_waits_for_the_checkpoint(tmp_path: Path, tiny_settings: Settings, slow_disk: SlowDisk):
    training = begin(
        tmp_path, tiny_settings, "train.max_steps=4", "train.checkpoint_every=1", "train.max_nonfinite_steps=2"
    )
    forward = training.objective.forward

    def spoiled(*inputs: Any) -> dict[str, torch.Tensor]:
        losses = forward(*inputs)
        bad = training.progress.step >= 1 and training.progress.reshuffled_from is None
        return {name: value * float("nan") if bad else value for name, value in losses.items()}

    training.objective.forward = spoiled
    at_step(training, 1, threading.Timer(0.2, slow_disk.through.set).start)
    train(training)
    assert "going back from step 3 to the checkpoint of step 1" in events(training)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, DivergedError])
def test_an_error_waits_for_the_checkpoint(
    tmp_path: Path, tiny_settings: Settings, slow_disk: SlowDisk, error: type[BaseException]
):
    def fail() -> None:
        threading.Timer(0.1, slow_disk.through.set).start()
        raise error("stop here")

    training = begin(tmp_path, tiny_settings, "train.checkpoint_every=2")
    at_step(training, 3, fail)
    with pytest.raises(error, match="stop here"):
        train(training)
    assert read_state(training.run.last / "state.pt")["step"] == 2


# ----------------------------------------------------------------------------------------------------------- no space


def fill_disk(monkeypatch: pytest.MonkeyPatch, from_step: int) -> None:
    """Lets the disk be full for states of that step and later ones."""
    write = torch.save

    def full(state: dict[str, Any], *words: Any) -> None:
        if state["step"] >= from_step:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(state, *words)

    monkeypatch.setattr(torch, "save", full)


def test_a_full_disk_is_reported_within_a_step(
    tmp_path: Path, tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    fill_disk(monkeypatch, 2)
    training = begin(tmp_path, tiny_settings, "train.checkpoint_every=1", "train.epochs=50")
    with pytest.raises(ResourceError, match="no space left"):
        train(training)
    assert training.progress.step <= 3
    assert read_state(training.run.last / "state.pt")["step"] == 1
    assert "checkpoint of step 2 could not be written: no space left" in events(training)
    assert not list(training.run.checkpoints_dir.glob(".*"))


@pytest.mark.parametrize("stop_after", [None, 5])
def test_a_full_disk_is_reported_at_the_end(
    tmp_path: Path, tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch, stop_after: int | None
):
    fill_disk(monkeypatch, 5)
    training = begin(tmp_path, tiny_settings, stop_after=stop_after)
    with pytest.raises(ResourceError, match="no space left"):
        train(training)
    assert training.run.status() == "interrupted"
    assert training.run.load() is None


def test_another_error_is_not_hidden_by_a_full_disk(tmp_path: Path):
    def full() -> None:
        raise ResourceError("no space left")

    def write_and_fail() -> None:
        with BackgroundWriter() as writer:
            writer.write(full)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as error:
        write_and_fail()
    assert error.value.__notes__ == ["no space left"]


# ---------------------------------------------------------------------------------------------------- kills, processes


@FORKING
def test_a_kill_while_it_is_written_leaves_the_one_before(
    tmp_path: Path, tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    """A process of its own is killed with half of a state on disk, while it trains on."""
    write = torch.save
    halfway = threading.Event()

    def half(state: dict[str, Any], file: Any) -> None:
        if state["step"] == 1:
            write(state, file)
            return
        file.write(b"half of it")
        file.flush()
        halfway.set()
        time.sleep(60)

    monkeypatch.setattr(torch, "save", half)
    training = begin(tmp_path, tiny_settings, "train.checkpoint_every=1", "train.epochs=50")
    at_step(training, 3, lambda: halfway.wait(20) and os.kill(os.getpid(), signal.SIGKILL))
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        try:
            train(training)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    monkeypatch.undo()
    assert (training.run.checkpoints_dir / ".fresh-last" / "model.safetensors").is_file()
    resumed = begin(tmp_path, tiny_settings, "train.max_steps=5")
    assert resumed.progress.step == 1
    assert not list(resumed.run.checkpoints_dir.glob(".*"))


@FORKING
def test_processes_started_while_it_is_written_hang_on_nothing(tmp_path: Path, tiny_settings: Settings):
    """Forked again and again amid writing; each child does what a worker does and allocates what the writer does."""
    training = begin(tmp_path, tiny_settings)
    weights = {f"{number}": torch.rand(300, 300) for number in range(20)}
    state = {"step": 1, "optimizer": {str(number): torch.rand(300, 300) for number in range(20)}}
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            training.run.save(
                weights, state, settings=tiny_settings, class_names=["a", "b", "c"], category_ids=[1, 2, 3]
            )

    with BackgroundWriter() as writer:
        writer.write(write)
        try:
            for _ in range(15):
                child = os.fork()
                if child == 0:
                    signal.alarm(20)  # a child that hangs ends by this
                    torch.set_num_threads(1)
                    torch.save({"step": 1, "x": torch.rand(100, 100)}, tmp_path / "child.pt")
                    json.dumps(read_state(tmp_path / "child.pt")["x"].tolist())
                    os._exit(0)
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        finally:
            done.set()
    assert training.run.load() is not None


def test_workers_and_a_checkpoint_each_step_change_no_number(
    codetr: Callable[..., Ran], tmp_path: Path, tiny_settings: Settings, tiny_coco: Path
):
    preset = tmp_path / "tiny.toml"
    preset.write_text(to_toml(tiny_settings))
    words = ("train", "--preset", preset, "--data", tiny_coco, "--device", "cpu", "--set", "train.max_steps=4")
    assert codetr(*words, "--no-eval", "--run", tmp_path / "plain").code == 0
    often = ("--set", "train.checkpoint_every=1", "--set", "data.workers=1")
    ran = codetr(*words, *often, "--run", tmp_path / "often")
    assert ran.code == 0, ran.err
    plain, many = (RunFolder(tmp_path / name).load() for name in ("plain", "often"))
    assert plain is not None
    assert many is not None
    assert [
        name for name, value in plain.weights.state.items() if not torch.equal(value, many.weights.state[name])
    ] == []
    assert (tmp_path / "often" / "events.log").read_text().count("s written") == 4


def test_a_damaged_newest_checkpoint_is_warned_of_once(tmp_path: Path, tiny_settings: Settings):
    training = begin(tmp_path, tiny_settings, "train.checkpoint_every=4")
    train(training)
    path = training.run.last / "state.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with training.logging():
        saved = checkpointing.load_newest(training.run)
    assert saved is not None
    assert saved.state["step"] == 4
    (warning,) = training.warnings
    assert f"checkpoint last cannot be used: {path} is damaged" in warning
    assert warning in events(training)
    # It is deleted, and the one before the next checkpoint is intact.
    resumed = begin(tmp_path, tiny_settings)
    assert resumed.progress.step == 4
    train(resumed)
    steps = {name: read_state(resumed.run.checkpoints_dir / name / "state.pt")["step"] for name in ("last", "previous")}
    assert steps == {"last": 5, "previous": 4}


def test_processes_that_see_other_files_do_not_train_together(
    tmp_path: Path, tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    training = begin(tmp_path, tiny_settings, "train.max_steps=2")
    train(training)
    monkeypatch.setattr("codetr_cli.distributed.process_group.from_main", lambda step: 1)
    with pytest.raises(CheckpointError, match="all must see the same files"):
        checkpointing.load_newest(training.run)
