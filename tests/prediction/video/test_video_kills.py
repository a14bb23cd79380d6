"""Videos whose command is killed by the system at random instants, in processes of their own."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.inference.fakes import write_run
from tests.prediction.video.videos import TIME_BASE, read_video, variable_pts, write_video

pytestmark = pytest.mark.slow

PTS = variable_pts(200)
PROGRAM = """
import sys
from codetr_cli.prediction.video import recording
recording.SEGMENT_FRAMES = 7
from codetr_cli.cli import main
sys.exit(main(sys.argv[1:]))
"""


def start(folder: Path, out: str) -> subprocess.Popen[bytes]:
    words = [
        "predict",
        "a.mp4",
        "--score",
        "0",
        "--max-dets",
        "5",
        "--track",
        "--out",
        out,
        "--checkpoint",
        "runs/tiny/1",
    ]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, *words]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=quiet, stderr=quiet)


def wait_for_segments(folder: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if len(list((folder / ".parts").glob("video0-*.jsonl"))) >= count:
            return
        time.sleep(0.01)


def test_ten_kills_and_a_stop_leave_the_results_of_one_run(tmp_path: Path, tiny_settings):
    pytest.importorskip("edgefirst.tracker")
    write_run(tmp_path / "runs/tiny/1", tiny_settings, "last")
    write_video(tmp_path / "a.mp4", PTS, sound="aac")
    whole = start(tmp_path, "whole")
    assert whole.wait(300) == 0
    moments = random.Random(0)
    kills = 0
    for attempt in range(40):
        process = start(tmp_path, "out")
        if kills < 10:
            before = len(list((tmp_path / "out" / ".parts").glob("video0-*.jsonl")))
            wait_for_segments(tmp_path / "out", before + moments.randint(0, 2), process)
            time.sleep(moments.uniform(0, 0.2))
            process.send_signal(signal.SIGKILL if attempt != 4 else signal.SIGTERM)
            kills += process.wait(60) in (-signal.SIGKILL, 143)
            if process.returncode == 0:
                break
        elif process.wait(300) == 0:
            break
    assert kills >= 5
    assert (tmp_path / "out/a.jsonl").read_bytes() == (tmp_path / "whole/a.jsonl").read_bytes()
    times, _, facts = read_video(tmp_path / "out/a.mp4")
    assert times == [at * TIME_BASE for at in PTS]
    assert facts == read_video(tmp_path / "whole/a.mp4")[2]
    assert not (tmp_path / "out/.parts").exists()
