from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from codetr_cli import locks
from codetr_cli.config.schema import Settings
from codetr_cli.errors import CheckpointError, ConfigError, ResourceError
from codetr_cli.runs.checksums import write_sums
from codetr_cli.runs.folder import RunFolder, event_log, read_state
from codetr_cli.weights.checkpoint import load_checkpoint
from tests.runs.saved_runs import INPUTS, NAMES, save, weights


class Killed(BaseException):
    """Stands for a kill: nothing handles it."""


def reopened(folder: RunFolder) -> RunFolder:
    again = RunFolder(folder.path)
    again.recover()
    return again


# ------------------------------------------------------------------------------------------- places of checkpoints


def test_the_best_checkpoint_is_the_third_choice(folder: RunFolder, tiny_settings: Settings):
    save(folder, tiny_settings, 1)
    folder.mark_best()
    shutil.rmtree(folder.last)
    reasons: list[str] = []
    saved = reopened(folder).load(reasons.append)
    assert saved is not None
    assert (saved.state["step"], saved.folder) == (1, folder.best)
    assert reasons == [f"checkpoint last cannot be used: {folder.last} is gone"]


@pytest.mark.parametrize("name", ["last", "previous", "best"])
def test_a_link_to_a_disk_that_is_gone_in_the_place_of_a_checkpoint(
    folder: RunFolder, tiny_settings: Settings, name: str
):
    for step in (1, 2):
        save(folder, tiny_settings, step)
        folder.mark_best()
    place = folder.checkpoints_dir / name
    shutil.rmtree(place)
    place.symlink_to(folder.path / "nothing")
    reasons: list[str] = []
    saved = reopened(folder).load(reasons.append)
    assert saved is not None
    assert (saved.state["step"], len(reasons)) == ((1, 1) if name == "last" else (2, 0))
    save(folder, tiny_settings, 3)
    save(folder, tiny_settings, 4)
    folder.mark_best()
    assert [(folder.checkpoints_dir / one / "state.pt").is_file() for one in ("last", "previous", "best")] == [True] * 3


def test_only_links_to_a_disk_that_is_gone_are_checkpoints_that_cannot_be_read(folder: RunFolder):
    folder.last.symlink_to(folder.path / "nothing")
    with pytest.raises(CheckpointError, match="no checkpoint of"):
        reopened(folder).load()
    assert folder.last.is_symlink()


# ------------------------------------------------------------------------------------------------------------- contents


def test_a_new_folder_remembers_settings_and_origin(folder: RunFolder, tiny_settings: Settings):
    assert folder.status() == "interrupted"
    assert RunFolder(folder.path).settings() == tiny_settings
    assert RunFolder(folder.path).inputs() == INPUTS


def test_status_of_other_folders(tmp_path: Path, folder: RunFolder):
    assert RunFolder(tmp_path / "nothing").status() == "empty"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    assert RunFolder(tmp_path / "other").status() == "foreign"
    folder.log({"kind": "end", "step": 4})
    assert folder.status() == "finished"


@pytest.mark.parametrize(
    "name",
    [
        "plots/loss.png",
        "checkpoints/last/mine.pt",
        "checkpoints/best",
        "origin.json",
        "events.log",
        ".lock",
        "slurm/me",
    ],
)
def test_a_folder_with_files_that_a_run_would_replace_is_foreign(tmp_path: Path, name: str):
    """They have names that a run uses, but a run has them only after its settings."""
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    assert RunFolder(tmp_path).status() == "foreign"


@pytest.mark.parametrize("name", ["plots/losses.png", "origin.json", "events.log"])
def test_copied_settings_beside_files_of_others_are_no_run(folder: RunFolder, tmp_path: Path, name: str):
    (tmp_path / "copy" / "plots").mkdir(parents=True)
    copy = RunFolder(tmp_path / "copy")
    copy.settings_path.write_bytes(folder.settings_path.read_bytes())
    assert copy.status() == "interrupted"
    (copy.path / name).write_text("mine")
    assert copy.status() == "foreign"
    copy.metrics_path.touch()
    assert copy.status() == "interrupted"  # of a run that has begun


def test_logs_and_scripts_of_a_run_are_known(folder: RunFolder):
    folder.event("started")
    (folder.path / "slurm").mkdir()
    for name in ("train.sh", "train_2.sh", "17.log", ".codetr_results"):
        (folder.path / "slurm" / name).touch()
    folder.lock().release()
    assert folder.status() == "interrupted"
    folder.settings_path.unlink()
    assert folder.status() == "empty"


def test_a_folder_killed_before_its_settings_were_written_counts_as_empty(folder: RunFolder):
    folder.settings_path.unlink()
    assert folder.status() == "empty"


def test_rewinding_drops_later_lines_the_end_mark_and_half_a_line(folder: RunFolder):
    for step in (1, 2, 3):
        folder.log({"kind": "train", "step": step})
    folder.log({"kind": "eval", "step": 2, "metrics": {}})
    folder.log({"kind": "end", "step": 2})
    with folder.metrics_path.open("a") as file:
        file.write('{"kind": "train", "st')
    folder.rewind(2)
    assert [(line["kind"], line["step"]) for line in folder.metrics()] == [("train", 1), ("train", 2), ("eval", 2)]
    folder.log({"kind": "train", "step": 3})
    assert len(folder.metrics_path.read_text().splitlines()) == 4


def test_rewinding_to_the_start_empties_the_metrics(folder: RunFolder):
    folder.log({"kind": "train", "step": 1})
    folder.rewind(0)
    assert folder.metrics() == []


# ---------------------------------------------------------------------------------------------------------- checkpoints


def test_without_a_checkpoint_there_is_nothing_to_load(folder: RunFolder):
    assert reopened(folder).load() is None


def test_a_checkpoint_comes_back_whole(folder: RunFolder, tiny_settings: Settings):
    save(folder, tiny_settings, 1)
    saved = folder.load()
    assert saved is not None
    assert torch.equal(saved.weights.state["layer.weight"], weights(1)["layer.weight"])
    assert saved.weights.class_names == NAMES
    assert saved.state == {"step": 1, "optimizer": {"state": {}, "param_groups": [], "x": [1, 2.5]}}


def test_recovery_deletes_half_written_files_and_nothing_else(folder: RunFolder, tiny_settings: Settings):
    """The folder of checkpoints may be a link to one that has hidden folders of its own."""
    save(folder, tiny_settings, 1)
    (folder.checkpoints_dir / ".ssh").mkdir()
    leftovers = [folder.path / ".settings.toml.1.tmp", folder.plots_dir / ".losses.png.1.tmp"]
    for leftover in leftovers:
        leftover.touch()
    (folder.checkpoints_dir / ".fresh-last").mkdir()
    folder.recover()
    assert sorted(path.name for path in folder.checkpoints_dir.iterdir()) == [".ssh", "last"]
    assert not any(leftover.exists() for leftover in leftovers)


def test_generations(folder: RunFolder, tiny_settings: Settings):
    for step in (1, 2, 3):
        save(folder, tiny_settings, step)
        if step == 2:
            folder.mark_best()
    steps = {name: read_state(folder.checkpoints_dir / name / "state.pt")["step"] for name in
             ("last", "previous", "best")}  # fmt: skip
    assert steps == {"last": 3, "previous": 2, "best": 2}
    assert sorted(p.name for p in folder.checkpoints_dir.iterdir()) == ["best", "last", "previous"]


def test_a_damaged_newest_checkpoint_falls_back_to_the_previous(folder: RunFolder, tiny_settings: Settings):
    save(folder, tiny_settings, 1)
    save(folder, tiny_settings, 2)
    state = folder.last / "state.pt"
    state.write_bytes(state.read_bytes()[:-40])
    with event_log(folder):
        saved = folder.load()
    assert saved is not None
    assert saved.state["step"] == 1
    assert "checkpoint last cannot be used" in folder.events_path.read_text()


def test_no_readable_checkpoint_is_an_error(folder: RunFolder, tiny_settings: Settings):
    save(folder, tiny_settings, 1)
    (folder.last / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="--restart"):
        folder.load()


def test_weights_and_state_of_different_steps_are_refused(folder: RunFolder, tiny_settings: Settings):
    save(folder, tiny_settings, 1)
    save(folder, tiny_settings, 2)
    shutil.copy(folder.previous / "state.pt", folder.last / "state.pt")
    saved = folder.load()
    assert saved is not None
    assert saved.state["step"] == 1


def test_weights_of_a_run_are_a_file_of_their_own(folder: RunFolder, tiny_settings: Settings, tmp_path: Path):
    save(folder, tiny_settings, 1)
    shutil.copy(folder.last / "model.safetensors", tmp_path / "mine.safetensors")
    assert torch.equal(load_checkpoint(tmp_path / "mine.safetensors").state["layer.weight"], weights(1)["layer.weight"])


def test_a_malicious_state_is_not_executed(folder: RunFolder, tiny_settings: Settings, tmp_path: Path):
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "executed",))

    save(folder, tiny_settings, 1)
    torch.save({"step": 1, "optimizer": Evil()}, folder.last / "state.pt")
    write_sums(folder.last, {"state.pt": folder.last / "state.pt"})
    with pytest.raises(CheckpointError):
        folder.load()
    assert not (tmp_path / "executed").exists()


def kill_at(monkeypatch: pytest.MonkeyPatch, instant: int) -> Callable[[], int]:
    """Makes the file operation of that number end the process, so to say; returns how many there were."""
    count = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == instant:
                raise Killed
            return function(*args, **kwargs)

        return run

    for owner, name in (
        *((Path, n) for n in ("rename", "replace", "mkdir", "hardlink_to")),
        (os, "fsync"), (shutil, "rmtree"), (torch, "save"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))
    return lambda: count


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_kill_at_any_instant_leaves_the_newest_whole_checkpoint(
    tmp_path: Path, tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch, steps: int
):
    """Kills saving checkpoint number `steps` at each of its file operations in turn."""
    for instant in range(1, 100):
        run = RunFolder(tmp_path / str(instant))
        run.open(tiny_settings, INPUTS)
        for step in range(1, steps):
            save(run, tiny_settings, step)
            run.mark_best()
        with monkeypatch.context() as patch:
            operations = kill_at(patch, instant)
            try:
                save(run, tiny_settings, steps)
                run.mark_best()
            except Killed:
                pass
        again = reopened(run)
        saved = again.load()
        found = saved.state["step"] if saved else 0
        assert found in (steps - 1, steps), instant
        assert (read_state(again.best / "state.pt")["step"] if again.best.exists() else 0) in (
            steps - 1,
            steps,
        ), instant
        assert not list(again.checkpoints_dir.glob(".*"))
        save(again, tiny_settings, steps + 1)  # and work continues
        resumed = again.load()
        assert resumed is not None
        assert resumed.state["step"] == steps + 1
        if operations() < instant:
            assert found == steps
            break
    assert instant > 10


def test_recovery_can_be_killed_too(folder: RunFolder, tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch):
    save(folder, tiny_settings, 1)
    save(folder, tiny_settings, 2)
    folder.last.rename(folder.checkpoints_dir / ".fresh-last")
    folder.previous.rename(folder.last)
    pristine = folder.path.with_name("pristine")
    shutil.copytree(folder.path, pristine)
    for instant in range(1, 100):
        shutil.rmtree(folder.path)
        shutil.copytree(pristine, folder.path)
        with monkeypatch.context() as patch:
            operations = kill_at(patch, instant)
            with suppress(Killed):
                folder.recover()
        saved = reopened(folder).load()
        assert saved is not None
        assert saved.state["step"] == 2
        if operations() < instant:
            break


# ------------------------------------------------------------------------------------------------------------- no space


@pytest.mark.parametrize("where", ["weights", "state", "best"])
def test_a_full_disk_says_so_and_leaves_the_checkpoints(
    folder: RunFolder, tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch, where: str
):
    save(folder, tiny_settings, 1)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if where == "weights":
            patch.setattr("codetr_cli.weights.checkpoint.save_file", full)
        elif where == "state":
            patch.setattr(torch, "save", full)
        else:
            patch.setattr(Path, "hardlink_to", full)
        with pytest.raises(ResourceError, match="no space left"):
            folder.mark_best() if where == "best" else save(folder, tiny_settings, 2)
    saved = reopened(folder).load()
    assert saved is not None
    assert saved.state["step"] == 1
    assert not list(folder.checkpoints_dir.glob(".*"))


def test_a_disk_without_hard_links_gets_copies(
    folder: RunFolder, tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    def refused(*args: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    save(folder, tiny_settings, 1)
    monkeypatch.setattr(Path, "hardlink_to", refused)
    folder.mark_best()
    assert (folder.best / "state.pt").read_bytes() == (folder.last / "state.pt").read_bytes()


def test_no_space_for_a_log_line(folder: RunFolder, monkeypatch: pytest.MonkeyPatch):
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(ResourceError, match=r"no space left.*same command"):
        folder.log({"kind": "train", "step": 1})


# ---------------------------------------------------------------------------------------------------------------- locks


def test_events_are_what_the_package_logs(folder: RunFolder):
    package = logging.getLogger("codetr_cli")
    before = package.level, list(package.handlers)
    with event_log(folder):
        logging.getLogger("codetr_cli.training.loop").debug("step %d", 3)
        logging.getLogger("codetr_cli.anything").warning("two\nlines")
        logging.getLogger("another").warning("not ours")
    logging.getLogger("codetr_cli.anything").error("after the run")
    assert (package.level, package.handlers) == before
    lines = folder.events_path.read_text().splitlines()
    assert [line[21:] for line in lines] == ["step 3", "two\\nlines"]
    assert lines[0][:21] == time.strftime("%Y-%m-%d ") + lines[0][11:19] + "  "


def test_an_event_without_space_on_the_disk_is_the_error_of_the_disk(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
):
    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("codetr_cli.runs.folder.append", full)
    with event_log(folder), pytest.raises(ResourceError, match="no space left"):
        logging.getLogger("codetr_cli.training").info("saved")


def test_two_processes_do_not_share_a_folder(folder: RunFolder):
    lock = folder.lock()
    script = (
        "import sys; from pathlib import Path; from codetr_cli.locks import FileLock; "
        "sys.exit(0 if FileLock(Path(sys.argv[1])).acquire() else 9)"
    )
    command = [sys.executable, "-c", script, str(folder.path / ".lock")]
    assert subprocess.run(command, check=False).returncode == 9
    lock.release()
    assert subprocess.run(command, check=False).returncode == 0


def test_a_held_lock_names_the_folder(folder: RunFolder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(locks, "_try_lock", lambda file: False)
    with pytest.raises(ConfigError, match="another training is writing"):
        folder.lock()


def test_a_checkpoint_with_nan_is_not_continued_from(folder: RunFolder, tiny_settings: Settings, monkeypatch):
    save(folder, tiny_settings, 1)
    monkeypatch.setattr("tests.runs.saved_runs.weights", lambda step: {"w": torch.tensor([float("nan")])})
    save(folder, tiny_settings, 2)
    reasons: list[str] = []
    saved = folder.load(reasons.append)
    assert saved is not None
    assert saved.state["step"] == 1
    assert "NaN or infinite: 1 of 1 entries, w (1 of 1 values)" in reasons[0]
