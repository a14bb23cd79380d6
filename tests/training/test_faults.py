"""What machines do to a training, injected: full, failing, vanishing disks, damaged files, clocks, readers that leave.

Most run the whole loop on a stand-in for the network, in this process. Others of the fault table are tested where what
they hit is: launching, signals, divergence, loading.
"""

from __future__ import annotations

import errno
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from codetr_cli import console
from codetr_cli.config.overrides import apply_overrides, to_toml
from codetr_cli.config.schema import Settings
from codetr_cli.data.coco import build_dataset
from codetr_cli.data.loading.loader import build_train_loader
from codetr_cli.distributed import sharded_state
from codetr_cli.errors import CheckpointError, ResourceError
from codetr_cli.locks import FileLock
from codetr_cli.runs import listing
from codetr_cli.runs.folder import RunFolder, RunInputs
from codetr_cli.runtime import disk_errors
from codetr_cli.training.reporter import StepProgress
from tests.conftest import REPOSITORY, Ran
from tests.training.fakes import FakeRun, Scores, assert_same, begin, losses_of, train

OVERRIDES = ("train.epochs=2", "train.checkpoint_every=2", "train.ema_momentum=1e-3")
SCORES = (0.1, 0.2)
STEPS = 10


@pytest.fixture(autouse=True)
def _quick(no_plots: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """No plots, and no pauses before something is tried again."""
    monkeypatch.setattr(disk_errors, "PAUSES_S", (0.0, 0.0, 0.0))


def begin_with_scores(path: Path, settings: Settings, *overrides: str) -> FakeRun:
    """A training with as many evaluations left as it has not done."""
    done = sum(line["kind"] == "eval" for line in RunFolder(path).metrics())
    scores = Scores(*SCORES)
    training = begin(path, settings, *OVERRIDES, *overrides, evaluate=scores)
    kept = sum(line["kind"] == "eval" for line in training.run.metrics())
    assert kept <= done
    del scores.scores[:kept]
    return training


@pytest.fixture
def straight(tmp_path: Path, tiny_settings: Settings) -> FakeRun:
    """The run that nothing happened to."""
    training = begin_with_scores(tmp_path / "straight", tiny_settings)
    train(training)
    return training


def assert_continues(path: Path, settings: Settings, straight: FakeRun, *, at_least: int = 0) -> None:
    """A restart continues from a checkpoint and ends like the undisturbed run."""
    resumed = begin_with_scores(path, settings)
    assert resumed.progress.step >= at_least
    train(resumed)
    assert_same(resumed, straight)
    assert losses_of(resumed) == losses_of(straight)
    kinds = [[(line["kind"], line["step"]) for line in run.run.metrics()] for run in (resumed, straight)]
    assert kinds[0] == kinds[1]


# ------------------------------------------------------------------------------------- disks that are full or read-only


class Writes:
    """Counts what is written to a disk, and lets it fail from one instant on, or at that instant only.

    Args:
        at: number of the first write that fails, from 1; 0 for none.
        number: of the system's error.
        once: whether the next write works again.
    """

    def __init__(self, at: int, number: int, *, once: bool = False) -> None:
        self.at, self.number, self.once = at, number, once
        self.count = 0
        self.kinds: list[str] = []

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Puts itself before whatever writes."""
        for owner, name in (
            *((Path, name) for name in ("rename", "replace", "mkdir", "hardlink_to", "touch")),
            (os, "fsync"), (shutil, "copy2"), (torch, "save"),
        ):  # fmt: skip
            patch.setattr(owner, name, self._failing(getattr(owner, name), name))
        patch.setattr(
            "codetr_cli.weights.checkpoint.save_file",
            self._failing(sys.modules["codetr_cli.weights.checkpoint"].save_file, "save_file"),
        )
        opened = Path.open

        def open_path(path: Path, mode: str = "r", *arguments: Any, **named: Any) -> Any:
            if mode.strip("bt") != "r":
                self.step(f"open {path.name}")
            return opened(path, mode, *arguments, **named)

        patch.setattr(Path, "open", open_path)

    def step(self, kind: str) -> None:
        """Counts a write, or lets it fail."""
        self.count += 1
        self.kinds.append(kind)
        if self.at and (self.count == self.at if self.once else self.count >= self.at):
            raise OSError(self.number, os.strerror(self.number))

    def _failing(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            self.step(name)
            return function(*arguments, **named)

        return run


def instants(total: int, count: int) -> list[int]:
    """Writes to fail at: the first and the last, and others drawn between."""
    draw = random.Random(0)
    return sorted({1, total, *draw.sample(range(1, total + 1), min(count, total))})


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS], ids=["full", "quota", "read-only"])
def test_a_disk_that_takes_nothing_more_stops_a_training_that_continues_later(
    tmp_path: Path, tiny_settings: Settings, straight: FakeRun, monkeypatch: pytest.MonkeyPatch, number: int
):
    """Whatever is written first when the disk is full: weights, state, sums, metrics, events, names."""
    words = {
        errno.ENOSPC: "no space left on the disk",
        errno.EDQUOT: "the quota is used up",
        errno.EROFS: "Read-only file system",
    }
    begin_with_scores(tmp_path / "counted", tiny_settings)
    counted = begin_with_scores(tmp_path / "counted", tiny_settings)
    with monkeypatch.context() as patch:
        writes = Writes(0, number)
        writes.install(patch)
        train(counted)
    assert {"save_file", "save", "rename", "replace", "open metrics.jsonl", "open events.log"} <= set(writes.kinds)
    for instant in instants(writes.count, 12 if number == errno.ENOSPC else 4):
        run = tmp_path / f"{number}-{instant}"
        stopped = begin_with_scores(run, tiny_settings)
        with monkeypatch.context() as patch:
            Writes(instant, number).install(patch)
            with pytest.raises(ResourceError) as caught:
                train(stopped)
        assert words[number] in str(caught.value), instant
        assert "the same command again to continue" in str(caught.value)
        events = (run / "events.log").read_text() if (run / "events.log").is_file() else ""
        complete = max((line["step"] for line in _complete(events)), default=0)
        assert_continues(run, tiny_settings, straight, at_least=complete)


def _complete(events: str) -> Iterator[dict[str, int]]:
    for line in events.splitlines():
        words = line.partition("checkpoint of step ")[2]
        if words and "copied" in words:
            yield {"step": int(words.split(":")[0])}


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO])
def test_what_a_network_disk_fails_at_once_is_done_again(
    tmp_path: Path, tiny_settings: Settings, straight: FakeRun, monkeypatch: pytest.MonkeyPatch, number: int
):
    counted = begin_with_scores(tmp_path / "counted", tiny_settings)
    with monkeypatch.context() as patch:
        writes = Writes(0, number)
        writes.install(patch)
        train(counted)
    for instant in instants(writes.count, 8):
        training = begin_with_scores(tmp_path / str(instant), tiny_settings)
        with monkeypatch.context() as patch:
            Writes(instant, number, once=True).install(patch)
            train(training)
        assert_same(training, straight)
        assert losses_of(training) == losses_of(straight)


def test_a_name_that_changed_without_an_answer_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source, target = tmp_path / "a", tmp_path / "b"
    source.touch()
    rename = Path.rename
    answers = iter((OSError(errno.EIO, "Input/output error"), None))

    def lost_answer(path: Path, other: Path) -> None:
        rename(path, other)
        error = next(answers)
        if error:
            raise error

    monkeypatch.setattr(Path, "rename", lost_answer)
    disk_errors.move(source, target)
    assert target.exists()
    with pytest.raises(FileNotFoundError):
        disk_errors.move(source, target)


def test_a_disk_that_keeps_failing_is_named(tmp_path: Path, tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch):
    training = begin_with_scores(tmp_path / "run", tiny_settings)
    with monkeypatch.context() as patch:
        Writes(1, errno.EIO).install(patch)
        with pytest.raises(ResourceError, match=r"the disk of .*run fails: .*Input/output error.*the same command"):
            train(training)


TMPFS = """
set -e
mount -t tmpfs -o size=$1 tmpfs "$2"
shift 2
exec "$@"
"""


@pytest.mark.slow
def test_a_real_disk_that_is_full(tmp_path: Path, preset: Path, tiny_coco: Path):
    """A small file system in memory; after the failure it grows, and the same command continues."""
    place = tmp_path / "small"
    place.mkdir()
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", TMPFS, "sh"]
    if shutil.which("unshare") is None or subprocess.run([*inside, "64k", place, "true"], check=False,
                                                         capture_output=True).returncode:  # fmt: skip
        pytest.skip("a user may mount nothing here")
    words = ["train", "--preset", str(preset), "--data", str(tiny_coco), "--run", str(place / "run"), "--device", "cpu",
             "--no-eval", "--quiet", "--set", "train.max_steps=4", "--set", "train.checkpoint_every=1"]  # fmt: skip
    script = f"""
import subprocess, sys
from codetr_cli.cli import main
sys.stderr.write(f"code {{main({words!r})}}\\n")
subprocess.run(["mount", "-o", "remount,size=64m", {str(place)!r}], check=True)
sys.stderr.write(f"code {{main({words!r})}}\\n")
"""
    # Room for a checkpoint and a part of the next one.
    ran = subprocess.run(
        [*inside, "4m", place, sys.executable, "-c", script],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert [line for line in ran.stderr.splitlines() if line.startswith("code")] == ["code 5", "code 0"], ran.stderr
    assert "no space left on the disk" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_plots_that_cannot_be_drawn_stop_nothing(
    tmp_path: Path, tiny_settings: Settings, straight: FakeRun, monkeypatch: pytest.MonkeyPatch
):
    def full(lines: object, folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    monkeypatch.setattr("codetr_cli.training.plots.draw_plots", full)
    training = begin_with_scores(tmp_path / "run", tiny_settings)
    train(training)
    assert_same(training, straight)
    assert "the plots could not be drawn" in training.run.events_path.read_text()


def test_a_run_folder_that_is_deleted_while_it_trains_is_named(
    tmp_path: Path, tiny_settings: Settings, straight: FakeRun
):
    training = begin_with_scores(tmp_path / "run", tiny_settings)
    step_done = training.reporter.step_done

    def delete(progress: StepProgress) -> None:
        step_done(progress)
        if progress.step == 5:
            (tmp_path / "run").rename(tmp_path / "elsewhere")

    training.reporter.step_done = delete  # type: ignore[method-assign]
    with pytest.raises(ResourceError, match=r"the run folder .*run or a part of it is gone.*deleted or moved"):
        train(training)
    assert training.progress.step < STEPS
    # Either nothing, or the checkpoint that was being written meanwhile: no run that a later start would continue.
    assert RunFolder(tmp_path / "run").status() in ("empty", "foreign")
    assert_continues(tmp_path / "elsewhere", tiny_settings, straight)


def test_a_process_that_cannot_write_its_part_of_a_sharded_state_is_a_matter_of_the_disk(
    tmp_path: Path, tiny_settings: Settings, straight: FakeRun, monkeypatch: pytest.MonkeyPatch
):
    def full(folder: Path, own: object, group: object) -> list[OSError | None]:
        return [None, OSError(errno.ENOSPC, "No space left on device")]

    monkeypatch.setattr(sharded_state, "_write", full)
    writers = object.__new__(sharded_state.ShardWriters)
    writers._group = None
    run = straight.run
    before = run.load()
    with pytest.raises(ResourceError, match="no space left"):
        run.save({}, {"step": 99}, settings=tiny_settings, class_names=["a", "b", "c"], category_ids=[1, 2, 3],
                 beside=lambda folder: writers.write_all(folder, {}))  # fmt: skip
    after = run.load()
    assert before is not None
    assert after is not None
    assert before.state["step"] == after.state["step"]


def test_settings_that_cannot_be_written_stop_before_the_training(
    tmp_path: Path, tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    folder = RunFolder(tmp_path / "run")
    with monkeypatch.context() as patch:
        writes = Writes(0, errno.ENOSPC)
        writes.install(patch)
        folder.open(tiny_settings, RunInputs(train_annotations="x.json"))
    for instant in range(1, writes.count):  # the last one syncs the folder, which not every file system can do
        folder = RunFolder(tmp_path / str(instant))
        with monkeypatch.context() as patch:
            Writes(instant, errno.ENOSPC).install(patch)
            with pytest.raises(ResourceError, match="no space left"):
                folder.open(tiny_settings, RunInputs(train_annotations="x.json"))
        assert folder.status() == "empty"
        folder.open(tiny_settings, RunInputs(train_annotations="x.json"))
        assert folder.settings() == tiny_settings


# -------------------------------------------------------------------------------------------------- damaged checkpoints


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "sums.json"])
def test_a_flipped_bit_or_a_lost_end_falls_back_to_the_previous_checkpoint(
    tmp_path: Path, tiny_settings: Settings, straight: FakeRun, name: str
):
    run = RunFolder(tmp_path / "run")
    shutil.copytree(straight.run.path, run.path)
    file = run.last / name
    whole = file.read_bytes()
    expected = run.load()
    assert expected is not None
    draw = random.Random(name)
    for place in (0, len(whole) - 1, *(draw.randrange(len(whole)) for _ in range(20))):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << draw.randrange(8)]) + whole[place + 1 :])
        saved = run.load()
        assert saved is not None
        if saved.state["step"] == expected.state["step"]:  # a bit of no consequence, as in a space of sums.json
            assert name == "sums.json", place
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        saved = run.load()
        assert saved is not None
        assert saved.state["step"] < expected.state["step"] or name == "sums.json"
    file.write_bytes(whole[: len(whole) // 2])
    assert_continues(run.path, tiny_settings, straight)


def test_both_checkpoints_damaged_is_an_error(straight: FakeRun):
    run = straight.run
    for folder in (run.last, run.previous):
        (folder / "state.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no checkpoint of .* can be read.*--restart"):
        run.load()


# --------------------------------------------------------------------------------------------------------------- clocks


@pytest.mark.parametrize("jump_s", [-1e8, 1e8], ids=["back", "forward"])
def test_a_clock_that_jumps_changes_nothing(
    tmp_path: Path, tiny_settings: Settings, straight: FakeRun, monkeypatch: pytest.MonkeyPatch, jump_s: float
):
    """The system's clock is set during training, as by a time server."""
    now, shown = time.time, time.strftime
    offset = 0.0
    monkeypatch.setattr(time, "time", lambda: now() + offset)
    monkeypatch.setattr(time, "strftime", lambda form, *when: shown(form, *(when or (time.localtime(time.time()),))))
    training = begin_with_scores(tmp_path / "run", tiny_settings)
    step_done = training.reporter.step_done

    def jump(progress: StepProgress) -> None:
        nonlocal offset
        step_done(progress)
        offset = jump_s if progress.step >= 4 else 0.0

    training.reporter.step_done = jump  # type: ignore[method-assign]
    saved_at = training.state.writer.written_at
    train(training)
    assert_same(training, straight)
    assert losses_of(training) == losses_of(straight)
    assert 0 <= training.state.writer.written_at - saved_at < 60
    for line in training.run.metrics():
        if line["kind"] == "train":
            assert line["images_per_s"] > 0
            assert 0 <= line["eta_s"] < 60
            assert 0 <= line["data_wait"] <= 1
        if line["kind"] == "eval":
            assert 0 <= line["seconds"] < 60
    lock = FileLock(tmp_path / "lock")
    assert lock.acquire(patience_s=5)
    lock.release()
    row = listing.read_run(tmp_path / "run")
    assert row.state == "finished"
    assert row.age_s is not None
    assert row.age_s >= 0  # a file from the future is new
    # And a run continues with the other clock.
    shutil.rmtree(training.run.last)
    assert_continues(tmp_path / "run", tiny_settings, straight)


def test_a_checkpoint_is_due_after_minutes_of_work_not_of_the_clock(
    tmp_path: Path, tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    training = begin(tmp_path / "run", tiny_settings, "train.epochs=1")
    offset = 0.0
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + offset)
    offset = 1e8
    train(training)
    events = list(_complete(training.run.events_path.read_text()))
    assert events == [{"step": 5}]  # only that of the epoch's end


# ----------------------------------------------------------------------------------------------- readers and neighbours


@pytest.fixture
def preset(tmp_path: Path, tiny_settings: Settings) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(to_toml(apply_overrides(tiny_settings, ["train.memory_check=false"])))
    return path


@pytest.fixture
def train_words(preset: Path, tiny_coco: Path, tmp_path: Path) -> list[object]:
    """`codetr train` of three steps of the tiny network in the folder `run`."""
    return ["train", "--preset", preset, "--data", tiny_coco, "--device", "cpu", "--no-eval", "--run", tmp_path / "run",
            "--set", "train.max_steps=3", "--set", "train.checkpoint_every=1"]  # fmt: skip


class Broken(io.TextIOBase):
    """A stream whose reader has left, or whose disk is full."""

    def __init__(self, number: int, descriptor: int) -> None:
        self.number, self.descriptor = number, descriptor

    def fileno(self) -> int:
        return self.descriptor

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))

    def isatty(self) -> bool:
        return False


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC], ids=["left", "full"])
def test_a_training_continues_when_its_output_cannot_be_written(
    train_words: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
):
    from codetr_cli.cli import main

    monkeypatch.setattr(console, "QUIET_SECONDS", 0.0)
    with (tmp_path / "nowhere").open("w") as nowhere, monkeypatch.context() as patch:
        for name in ("stdout", "stderr"):
            patch.setattr(sys, name, Broken(number, nowhere.fileno()))
        with suppress(OSError, SystemExit):  # from the answer, when all is done
            main([str(word) for word in train_words])
    assert RunFolder(tmp_path / "run").status() == "finished"


@pytest.mark.slow
def test_the_reader_of_a_pipe_may_leave(train_words: list[object], tmp_path: Path):
    ran = subprocess.run(
        ["sh", "-c", '"$@" 2>&1 | head -n 1', "sh", sys.executable, "-m", "codetr_cli", *map(str, train_words)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ran.stdout.startswith("new run in")
    assert ran.stderr == ""
    assert RunFolder(tmp_path / "run").status() == "finished"


HOLDER = """
import sys, time
from pathlib import Path
from codetr_cli.locks import FileLock
lock = FileLock(Path(sys.argv[1]))
assert lock.acquire()
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_training_in_a_folder_is_refused_until_the_first_is_gone(
    codetr: Callable[..., Ran], train_words: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("codetr_cli.training.setup.LOCK_PATIENCE_S", 0.1)
    assert codetr(*train_words).code == 0
    longer = [*train_words, "--set", "train.max_steps=4"]
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path / "run/.lock"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for words in (longer, [*longer, "--fresh"]):
            ran = codetr(*words)
            assert ran.code == 2
            assert "another training is writing into" in ran.err
        assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    finally:
        holder.send_signal(signal.SIGKILL)  # or its machine was rebooted: only the file is left
        holder.communicate(timeout=30)
    assert (tmp_path / "run/.lock").exists()
    assert codetr(*longer).code == 0


# -------------------------------------------------------------------------------------------------------- broken images


def test_an_image_damaged_during_training_is_named_and_the_run_continues_once_it_is_fixed(
    codetr: Callable[..., Ran], train_words: list[object], tmp_path: Path, tiny_coco: Path, tiny_settings: Settings
):
    dataset = build_dataset(tiny_settings, split="train", training=True, data=str(tiny_coco))
    loader = build_train_loader(dataset, micro_batch=2, workers=0, seed=0, rank=0, world_size=1, aspect_grouping=True)
    image = dataset.image_path(int(loader.sampler.batches(0)[-1][-1]))  # of the third step
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    ran = codetr(*train_words)
    assert ran.code == 3, ran.err
    assert image.name in ran.err
    assert "Traceback" not in ran.err
    assert losses_in(tmp_path / "run") == losses_in(tmp_path / "run")[:2]
    image.write_bytes(whole)
    ran = codetr(*train_words)
    assert ran.code == 0, ran.err
    assert "resumed after step 2 of 3" in (tmp_path / "run/events.log").read_text()
    assert codetr(*train_words, "--run", tmp_path / "straight").code == 0
    assert losses_in(tmp_path / "run") == losses_in(tmp_path / "straight")


def losses_in(run: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in RunFolder(run).metrics() if line["kind"] == "train"]
