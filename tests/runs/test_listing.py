from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from codetr_cli.config.overrides import apply_overrides, to_toml
from codetr_cli.config.schema import Settings
from codetr_cli.losses.collaborative import CollaborativeObjective
from codetr_cli.runs.folder import RunFolder, RunInputs
from codetr_cli.runs.listing import list_runs, read_run
from tests.conftest import REPOSITORY, Ran
from tests.runs.saved_runs import HOLDER


def train_line(step: int, epoch: int, loss: float = 12.5) -> dict[str, Any]:
    return {"kind": "train", "step": step, "epoch": epoch, "loss": loss, "groups": {}, "losses": {"a": 1.0}}


def eval_line(step: int, epoch: int, ap: float, best: float | None = None) -> dict[str, Any]:
    more = {} if best is None else {"best": best}
    return {"kind": "eval", "step": step, "epoch": epoch, "metrics": {"AP": ap}, **more}


def end_line(step: int, epoch: int, kind: str = "end") -> dict[str, Any]:
    return {"kind": kind, "step": step, "epoch": epoch}


@pytest.fixture
def make(tmp_path: Path, tiny_settings: Settings) -> Callable[..., RunFolder]:
    """Makes a run folder with lines of metrics, as old as is asked for."""

    def run(name: str, *lines: dict[str, Any], overrides: tuple[str, ...] = (), age_s: float = 0.0) -> RunFolder:
        folder = RunFolder(tmp_path / "runs" / name)
        settings = apply_overrides(tiny_settings, ["train.epochs=12", *overrides])
        folder.open(settings, RunInputs(train_annotations="train.json", val_annotations="val.json"))
        for line in lines:
            folder.log(line)
        for path in folder.path.iterdir():
            os.utime(path, (time.time() - age_s,) * 2)
        return folder

    return run


def rows(codetr: Callable[..., Ran], folder: Path) -> dict[str, dict[str, Any]]:
    ran = codetr("runs", folder, "--json")
    assert ran.code == 0, ran.err
    return {str(Path(row["run"]).relative_to(folder)): row for row in ran.json["runs"]}


def test_a_table_of_runs_in_every_state(tmp_path: Path, make: Callable[..., RunFolder], codetr: Callable[..., Ran]):
    make("tiny/1", train_line(5, 0), eval_line(5, 1, 0.25, 0.25), eval_line(10, 2, 0.2, 0.25), end_line(10, 2), age_s=9)
    make("tiny/2", train_line(5, 0), eval_line(5, 1, 0.1, 0.1), train_line(7, 1, 3.5), age_s=7200)
    make("tiny/3", train_line(5, 0), end_line(6, 0, "diverged"), age_s=3 * 86400)
    make("other/4", overrides=("train.max_steps=90",), age_s=50)
    found = rows(codetr, tmp_path / "runs")
    assert list(found) == ["tiny/1", "other/4", "tiny/2", "tiny/3"]  # the newest first
    states = {name: row["state"] for name, row in found.items()}
    assert states == {
        "tiny/1": "finished", "tiny/2": "interrupted", "tiny/3": "diverged", "other/4": "interrupted",
    }  # fmt: skip
    assert [row["best_ap"] for row in found.values()] == [0.25, None, 0.1, None]
    assert [row["epochs_done"] for row in found.values()] == [2, 0, 1, 0]
    assert [row["epochs"] for row in found.values()] == [12, None, 12, 12]
    assert (found["tiny/2"]["loss"], found["tiny/2"]["step"]) == (3.5, 7)
    assert (found["other/4"]["loss"], found["other/4"]["max_steps"]) == (None, 90)
    assert found["tiny/2"]["age_s"] == pytest.approx(7200, abs=60)
    ran = codetr("runs", tmp_path / "runs")
    assert ran.code == 0
    assert ran.err == ""
    lines = ran.out.splitlines()
    assert lines[0] == "Runs"
    assert " ".join(lines[1].split()) == "run preset state best AP epochs step last loss last update"
    assert lines[3].split()[:7] == ["tiny/1", "tiny", "finished", "0.250", "2/12", "10", "12.5"]
    assert lines[4].split()[:7] == ["other/4", "tiny", "interrupted", "-", "0", "0/90", "-"]
    assert "3 days ago" in lines[6]


def test_a_run_that_a_process_holds_is_running(make: Callable[..., RunFolder], codetr: Callable[..., Ran]):
    folder = make("tiny/1", train_line(5, 0))
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, folder.path / ".lock"], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert read_run(folder.path).state == "running"
        holder.kill()
    assert read_run(folder.path).state == "interrupted"


def test_where_a_disk_has_no_locks_the_time_tells(make: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("codetr_cli.runs.listing.is_locked", lambda path: None)
    assert read_run(make("a", train_line(1, 0)).path).state == "running"
    assert read_run(make("b", train_line(1, 0), age_s=3600).path).state == "interrupted"
    assert read_run(make("c", train_line(1, 0), end_line(1, 1)).path).state == "finished"


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("settings.toml", b"name = ", "settings.toml cannot be read"),
        ("settings.toml", b"\xff\xfe", "settings.toml cannot be read"),
        ("settings.toml", b"name = 'x'", "settings.toml cannot be read"),
        ("settings.toml", None, "has no settings.toml"),
        ("metrics.jsonl", b"\x00\x01\n\xff\n", "metrics.jsonl cannot be read"),
        ("metrics.jsonl", b'{"kind": "eval", "step": 3}\n', "metrics.jsonl cannot be read"),
        ("metrics.jsonl", b'{"kind": "train", "step": "x", "epoch": 0, "loss": 1}\n', "metrics.jsonl cannot be read"),
        ("metrics.jsonl", b'{"kind": "train", "step": NaN, "epoch": 0, "loss": 1}\n', "metrics.jsonl cannot be read"),
        ("metrics.jsonl", b'{"kind": "train", "step": 1, "epoch": Infinity}\n', "metrics.jsonl cannot be read"),
        ("metrics.jsonl", b'{"kind": "train", "step": 1, "epoch": {}}\n', "metrics.jsonl cannot be read"),
        ("metrics.jsonl", b'{"kind": "eval", "step": 1, "epoch": 1, "best": "x"}\n', "metrics.jsonl cannot be read"),
        ("metrics.jsonl", b'{"kind": "eval", "step": 1, "epoch": 1, "metrics": 3}\n', "metrics.jsonl cannot be read"),
        ("metrics.jsonl", b"[" * 200_000 + b"\n\n", "metrics.jsonl cannot be read"),
        ("metrics.jsonl", b"x" * (3 << 20), "metrics.jsonl cannot be read: a line of it has more than"),
        ("metrics.jsonl", b"x\n" * 50_000, "metrics.jsonl cannot be read: no line of it"),
        ("settings.toml", b"a = " + b"[" * 100_000, "settings.toml cannot be read: it is nested too deeply"),
        ("settings.toml", b"a." * 100_000 + b"a = 1", "settings.toml cannot be read: it has a key of more than"),
        ("settings.toml", b"#" * (2 << 20), "settings.toml cannot be read: it has more than"),
        ("settings.toml", b"name = 3\n[train]\nepochs = 1", "settings.toml cannot be read"),
        ("settings.toml", b"name = 'x'\n[train]\nepochs = 'y'", "settings.toml cannot be read"),
        ("settings.toml", b"name = 'x'\n[train]\nepochs = 1\nmax_steps = [1]", "settings.toml cannot be read"),
        ("settings.toml", b"name = 'x'\n[train]\nepochs = " + b"1" * 5000, "settings.toml cannot be read"),
        ("settings.toml", b"name = 'x'\ntrain = 3", "settings.toml cannot be read"),
    ],
)
def test_a_broken_run_is_shown_as_such(
    tmp_path: Path,
    make: Callable[..., RunFolder],
    codetr: Callable[..., Ran],
    name: str,
    content: bytes | None,
    problem: str,
):
    make("tiny/1", train_line(5, 0), age_s=100)
    broken = make("tiny/2", train_line(5, 0)).path / name
    broken.unlink() if content is None else broken.write_bytes(content)
    found = rows(codetr, tmp_path / "runs")
    assert found["tiny/1"]["state"] == "interrupted"
    assert found["tiny/2"]["state"] == "broken"
    assert problem in found["tiny/2"]["problem"]
    ran = codetr("runs", tmp_path / "runs")
    assert ran.code == 0
    assert f"{tmp_path}/runs/tiny/2: its {problem}".replace("its has", "it has") in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("name", ["settings.toml", "metrics.jsonl"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "circle", "device"])
def test_what_is_no_file_breaks_its_run_only(
    tmp_path: Path, make: Callable[..., RunFolder], codetr: Callable[..., Ran], name: str, kind: str
):
    make("tiny/1", train_line(5, 0))
    path = make("tiny/2", train_line(5, 0)).path / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path if kind == "circle" else "/dev/zero")
    found = rows(codetr, tmp_path / "runs")
    assert found["tiny/1"]["state"] == "interrupted"
    assert found["tiny/2"]["state"] == "broken"
    assert f"its {name} cannot be read" in found["tiny/2"]["problem"]


def test_a_lock_that_is_a_pipe_stops_nothing(make: Callable[..., RunFolder]):
    folder = make("tiny/1", train_line(5, 0), age_s=7200)
    os.mkfifo(folder.path / ".lock")
    assert read_run(folder.path).state == "interrupted"


def test_folders_that_cannot_be_read_and_links_hide_nothing(
    tmp_path: Path, make: Callable[..., RunFolder], codetr: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
):
    make("tiny/1", train_line(5, 0))
    make("tiny/2", train_line(5, 0))
    (tmp_path / "runs/closed").mkdir()
    (tmp_path / "runs/a_circle").symlink_to("a_circle")
    for number in range(60):  # 60**4 paths
        (tmp_path / f"runs/link{number}").symlink_to(".")
    (tmp_path / "runs/a_name").symlink_to("tiny/1")
    scandir = os.scandir

    def closed(path: Path) -> Any:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    found = rows(codetr, tmp_path / "runs")
    assert sorted(found) == ["closed", "tiny/1", "tiny/2"]
    assert found["closed"]["problem"] == "it cannot be read: Permission denied"


def test_long_texts_and_numbers_that_are_none_stay_a_row(make: Callable[..., RunFolder], codetr: Callable[..., Ran]):
    folder = make("tiny/1", train_line(5, 0, math.nan)).path
    (folder / "settings.toml").write_text(f'name = "{"n" * 5000}"\n[train]\nepochs = 1\n')
    row = rows(codetr, folder)["."]
    assert row["loss"] is None
    assert len(row["preset"]) < 200
    assert codetr("runs", folder).code == 0


def test_a_line_cut_short_by_a_kill_breaks_nothing(make: Callable[..., RunFolder]):
    folder = make("a", train_line(5, 0, 3.0))
    with folder.metrics_path.open("a") as file:
        file.write('{"kind": "train", "step": 6')
    assert (read_run(folder.path).state, read_run(folder.path).loss) == ("interrupted", 3.0)
    folder.metrics_path.write_text('{"kind": "tr')
    assert (read_run(folder.path).state, read_run(folder.path).loss) == ("interrupted", None)


def test_runs_of_an_earlier_version_tell_their_best_ap(make: Callable[..., RunFolder]):
    folder = make("a", eval_line(1, 1, 0.1), eval_line(2, 2, 0.4), eval_line(3, 3, 0.3))
    assert read_run(folder.path).best_ap == 0.4
    assert read_run(make("b", eval_line(1, 1, -1.0, -1.0)).path).best_ap is None


def test_one_run_alone_and_folders_that_are_no_runs(
    tmp_path: Path, make: Callable[..., RunFolder], codetr: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
):
    folder = make("tiny/1", train_line(5, 0))
    assert [row.run for row in list_runs(folder.path)] == [str(folder.path)]
    (tmp_path / "runs/notes").mkdir()
    (tmp_path / "runs/.cache/x").mkdir(parents=True)
    (tmp_path / "runs/loop").symlink_to(tmp_path / "runs")
    assert str(folder.path) in [row.run for row in list_runs(tmp_path / "runs")]
    (tmp_path / "empty").mkdir()
    assert f"no runs in {tmp_path}/empty" in codetr("runs", tmp_path / "empty").out
    assert rows(codetr, tmp_path / "empty") == {}
    monkeypatch.chdir(tmp_path)
    assert "tiny/1" in codetr("runs").out
    ran = codetr("runs", "nowhere")
    assert ran.code == 2
    assert "no folder nowhere" in ran.err


def test_hundreds_of_long_runs_take_no_time_and_no_torch(tmp_path: Path, make: Callable[..., RunFolder]):
    first = make("tiny/0", train_line(5, 0), eval_line(5, 1, 0.25, 0.25))
    line = json.dumps({**train_line(5, 1), "losses": {f"d{i}.loss_cls": 0.123456789 for i in range(40)}}) + "\n"
    with first.metrics_path.open("a") as file:
        file.write(line * 150)  # an epoch of COCO
    for number in range(1, 300):
        folder = tmp_path / "runs/tiny" / str(number)
        folder.mkdir()
        for name in ("settings.toml", "origin.json", "metrics.jsonl"):
            (folder / name).hardlink_to(first.path / name)
    started = time.process_time()
    found = list_runs(tmp_path / "runs")
    assert time.process_time() - started < 3
    assert len(found) == 300
    assert {(row.best_ap, row.loss, row.state) for row in found} == {(0.25, 12.5, "interrupted")}
    script = (
        "import sys; from codetr_cli.cli import main; code = main(['runs', sys.argv[1], '--json']); "
        "sys.exit(code or 'torch' in sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "runs"], cwd=REPOSITORY, capture_output=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert len(json.loads(ran.stdout)["runs"]) == 300


def test_a_run_that_diverged_is_listed_as_diverged(
    tmp_path: Path,
    tiny_coco: Path,
    tiny_settings: Settings,
    codetr: Callable[..., Ran],
    monkeypatch: pytest.MonkeyPatch,
):
    forward = CollaborativeObjective.forward

    def spoiled(self: CollaborativeObjective, *inputs: Any) -> dict[str, Tensor]:
        return {name: value * (math.nan if name == "loss_cls" else 1) for name, value in forward(self, *inputs).items()}

    monkeypatch.setattr(os, "fsync", lambda file: None)
    preset, run = tmp_path / "tiny.toml", tmp_path / "run"
    preset.write_text(to_toml(tiny_settings))
    with monkeypatch.context() as patch:
        patch.setattr(CollaborativeObjective, "forward", spoiled)
        ran = codetr(
            "train", "--preset", preset, "--data", tiny_coco, "--device", "cpu", "--no-eval", "--run", run,
            "--set", "train.max_nonfinite_steps=1", "--set", "train.batch_size=4",
        )  # fmt: skip
        assert ran.code == 6
        assert str(run / "diverged") in ran.err
    assert rows(codetr, tmp_path)["run"]["state"] == "diverged"
