from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from codetr_cli.commands import _watch_screen as screen
from codetr_cli.commands import watch as verb
from codetr_cli.config.schema import Settings
from codetr_cli.runs.folder import RunFolder, RunInputs
from codetr_cli.runs.process_record import PROCESS_NAME, ProcessRecord
from codetr_cli.runs.watch import RunStatus, RunWatcher
from tests.conftest import REPOSITORY, Ran

GROUPS = ("denoising", "decoder", "positive queries", "proposals", "rpn", "roi", "atss")


def train_line(step: int, **values: Any) -> dict[str, Any]:
    return {
        "kind": "train",
        "step": step,
        "total_steps": 40,
        "epoch": step // 10,
        "lr": 2e-4,
        "grad_norm": 12.5,
        "loss": 100.0 / step,
        "groups": dict.fromkeys(GROUPS, 10.0 / step),
        "images_per_s": 45.25,
        "data_wait": 0.03,
        "memory_bytes": 12 << 30,
        "ram_free_bytes": 5 << 30,
        "eta_s": 4000.0 - 100 * step,
        "time": time.time(),
        **values,
    }


def eval_line(step: int, ap: float) -> dict[str, Any]:
    metrics = {"AP": ap, "AP50": 1.5 * ap, "APs": -1.0}
    return {"kind": "eval", "step": step, "epoch": step // 10, "metrics": metrics, "best": ap, "seconds": 3.0}


@pytest.fixture
def folder(tmp_path: Path, tiny_settings: Settings) -> RunFolder:
    """A run of a process on another machine, after 30 of 40 steps and three evaluations."""
    folder = RunFolder(tmp_path / "runs" / "tiny" / "1")
    folder.open(tiny_settings, RunInputs(train_annotations="train.json"))
    for step in range(1, 31):
        folder.log(train_line(step))
        if step % 10 == 0:
            folder.log(eval_line(step, {10: 0.1, 20: 0.3, 30: 0.25}[step]))
    folder.event("evaluation of step 30 (epoch 3): AP 0.2500")
    record = ProcessRecord(host="node7", pid=1234, started=1.0, device="NVIDIA H200")
    (folder.path / PROCESS_NAME).write_text(json.dumps(asdict(record)))
    (folder.plots_dir / "losses.png").touch()
    return folder


def text_of(status: RunStatus, width: int, height: int | None = None) -> list[str]:
    lines = screen.screen_lines(status, width, height)
    return ["".join(text for text, _ in line) for line in lines]


def status_of(folder: RunFolder, **changes: Any) -> RunStatus:
    return replace(RunWatcher(folder.path).look().status, **changes)


def test_one_screen(folder: RunFolder, codetr: Callable[..., Ran]):
    ran = codetr("watch", folder.path, "--once")
    assert (ran.code, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert lines[0] == f"running  {folder.path} (tiny)"
    assert re.match(r"process 1234 on node7 cannot be seen from here, last line \d+ s ago", lines[1])
    assert re.match(r"epoch 1 of 1, step 30/40 ━+╌+  75%, 16 min \d\d s left", lines[2])
    table = dict(re.findall(r"^ *(\w[\w/ ]*?) {2,}([^ ]+)", ran.out, re.MULTILINE))
    assert table["loss"] == "3.333"
    assert table["positive queries"] == "0.3333"
    assert table["AP"] == "0.250"
    assert table["AP50"] == "0.375"
    assert "best 0.300 at step 20" in ran.out
    assert "APs" not in table
    assert table["learning rate"] == "0.0002"
    assert table["images/s"] == "45.25"
    assert "waiting for data 3% of the time" in ran.out
    assert re.search(r"GPU memory +12.0 GiB at most +free RAM +5.0 GiB", ran.out)
    assert "evaluation of step 30 (epoch 3): AP 0.2500" in ran.out
    assert re.search(r"^plots +plots/losses.png \(\d.* ago\)$", ran.out, re.MULTILINE)


def test_json(folder: RunFolder, codetr: Callable[..., Ran]):
    ran = codetr("watch", folder.path, "--json")
    assert ran.code == 0
    found = ran.json
    assert (found["run"], found["preset"], found["state"]) == (str(folder.path), "tiny", "running")
    assert (found["step"], found["total_steps"], found["epoch"]) == (30, 40, 3)
    assert found["process"]["host"] == "node7"
    assert found["process"]["is_alive"] is None
    assert found["ap_by_step"] == [[10, 0.1], [20, 0.3], [30, 0.25]]
    assert found["best_evaluation"]["step"] == 20
    assert (found["memory_bytes"], found["ram_free_bytes"]) == (12 << 30, 5 << 30)
    assert found["plots"] == [str(folder.plots_dir / "losses.png")]


def test_the_newest_run_of_a_folder(folder: RunFolder, codetr: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch):
    older = folder.path.with_name("2")
    older.mkdir()
    (older / "settings.toml").write_text(folder.settings_path.read_text())
    os.utime(older / "settings.toml", (1e9, 1e9))
    monkeypatch.chdir(folder.path.parent.parent.parent)
    assert codetr("watch", "--json").json["run"] == str(Path("runs/tiny/1"))
    os.utime(older / "settings.toml", (2e9, 2e9))
    assert codetr("watch", "--json").json["run"] == str(Path("runs/tiny/2"))


def test_there_is_no_run(tmp_path: Path, codetr: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for words in ((), (tmp_path / "none",), (tmp_path,)):
        ran = codetr("watch", *words)
        assert ran.code == 2
        assert "codetr train" in ran.err


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("height", [5, 12, 24, 50])
def test_the_screen_fits_the_terminal(folder: RunFolder, width: int, height: int):
    lines = text_of(status_of(folder, events=["2026-11-30 09:40:15  something"] * 50), width, height)
    assert len(lines) <= height
    assert lines[0].startswith("running  ")
    assert lines[0].endswith("/1 (tiny)")
    if height >= screen.TALL:
        assert max(map(len, lines)) <= width
    if height >= 24:
        assert lines[-1].startswith("plots")
        assert sum(line.startswith("  ") for line in lines) >= len(GROUPS)
        assert sum("something" in line for line in lines) >= screen.LEAST_EVENTS
    if height >= 12:
        assert any(line.startswith("AP ") for line in lines)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"state": "interrupted", "is_seen": True},
            "process 1234 on node7 is gone; the same command continues the run",
        ),
        ({"state": "running", "is_seen": True}, "process 1234 on node7 is alive, last line 3 min 20 s ago"),
        ({"state": "running", "process": None}, "the process cannot be seen from here"),
        ({"state": "silent", "age_s": 3 * 86400.0}, "has written nothing for long, last line 3 days ago"),
        ({"state": "finished"}, "last line 3 min 20 s ago"),
        ({"problem": "its metrics.jsonl cannot be read"}, "its metrics.jsonl cannot be read"),
    ],
)
def test_the_state_in_words(folder: RunFolder, changes: dict[str, Any], expected: str):
    assert expected in screen.state_text(status_of(folder, **{"age_s": 200.0, **changes}))


def test_a_run_without_lines(folder: RunFolder, codetr: Callable[..., Ran]):
    folder.metrics_path.unlink()
    folder.events_path.unlink()
    ran = codetr("watch", folder.path, "--once")
    assert ran.code == 0
    assert "starting" not in ran.out.splitlines()[1]
    assert "step 0" in ran.out


def test_without_a_terminal_changes_are_lines(
    folder: RunFolder, codetr: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(verb, "PLAIN_S", 0.0)
    changes = [
        lambda: folder.event("something new"),
        lambda: folder.log(train_line(31, loss=7.5)),
        lambda: None,
        lambda: folder.log({"kind": "end", "step": 40, "epoch": 1, "early": False}),
    ]
    monkeypatch.setattr(verb.time, "sleep", lambda seconds: changes.pop(0)())
    ran = codetr("watch", folder.path)
    assert (ran.code, ran.err) == (0, "")
    new, moved, ended, end = ran.out.splitlines()[-4:]
    assert new.endswith("  something new")
    assert re.fullmatch(r"step 31/40, loss 7.5, AP 0.250 \(best 0.300\), 45.25 images/s, .* left", moved)
    assert ended.startswith("finished: last line ")
    assert end.startswith("step 40/40, loss 7.5, AP 0.250")


def test_a_finished_run_is_shown_once(folder: RunFolder, codetr: Callable[..., Ran]):
    folder.log({"kind": "end", "step": 30, "epoch": 1, "early": False})
    ran = codetr("watch", folder.path)
    assert ran.code == 0
    assert "finished" in ran.out.splitlines()[0]


def on_a_terminal(
    folder: RunFolder, ending: Callable[[int], None], size: tuple[int, int] = (24, 80)
) -> tuple[int, str]:
    """Watches on a terminal of so many lines and columns until `ending`, called with its pid, has had its effect."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    words = [sys.executable, "-m", "codetr_cli", "watch", str(folder.path), "--every", "0.2"]
    environment = {**os.environ, "TERM": "xterm-256color", "PYTHONPATH": str(REPOSITORY)}
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # programs in the background ignore it
    process = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, close_fds=True)
    signal.signal(signal.SIGINT, before)
    os.close(theirs)
    seen, is_asked = b"", False
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and select.select([ours], [], [], 20)[0]:
        try:
            seen += os.read(ours, 1 << 16)
        except OSError:  # the other side is closed
            break
        if not is_asked and seen.count(b"\x1b[H") > 3:
            is_asked = True
            ending(process.pid)
    if process.poll() is None and time.monotonic() >= deadline:
        process.kill()
    os.close(ours)
    return process.wait(20), seen.decode()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_the_terminal_has_its_content_again(folder: RunFolder, number: int, code: int):
    ended, seen = on_a_terminal(folder, lambda pid: os.kill(pid, number))
    assert ended == code
    assert seen.count("\x1b[?1049h") == seen.count("\x1b[?1049l") == 1
    assert seen.rindex("\x1b[?25h") > seen.rindex("\x1b[?25l")  # the cursor
    after = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen[seen.index("\x1b[?1049l") :])
    assert ("step 30/40" in after) == (number == signal.SIGINT)  # the last state stays
    assert "Traceback" not in seen


def test_the_screen_ends_with_the_training(folder: RunFolder):
    ended, seen = on_a_terminal(folder, lambda pid: folder.log({"kind": "end", "step": 40, "epoch": 1}))
    assert ended == 0
    assert "finished" in seen[seen.index("\x1b[?1049l") :]


def test_text_of_a_stranger_commands_no_terminal(folder: RunFolder, codetr: Callable[..., Ran]):
    folder.log(train_line(31, groups={"\x1b[2J[red]x": 1.0}))
    with folder.events_path.open("a") as file:
        file.write("2026-11-30 09:40:15  \x1b]0;owned\x07 [bold]y[/bold]\n")
    ran = codetr("watch", folder.path, "--once")
    assert "\x1b" not in ran.out
    assert "\\x1b[2J[red]x" in ran.out
    assert "\\x1b]0;owned\\x07 [bold]y[/bold]" in ran.out
