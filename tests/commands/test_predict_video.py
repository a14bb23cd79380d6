from __future__ import annotations

import json
import re
import shlex
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from codetr_cli.prediction.video import container, frames, live
from codetr_cli.prediction.video.inputs import VideoInput
from codetr_cli.runtime.signals import StopRequest
from tests.conftest import REPOSITORY
from tests.inference.fakes import write_run
from tests.prediction.video.videos import TIME_BASE, lines_of, read_video, variable_pts, write_video

PTS = variable_pts(6)


@pytest.fixture
def video(tmp_path: Path, tiny_settings, monkeypatch) -> Path:
    """A video in the current directory, which has a run."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs/tiny/1", tiny_settings, "last")
    return write_video(Path("a.mp4"), PTS)


def test_a_video_gives_lines_and_a_drawn_video(codetr, video):
    ran = codetr("predict", video, "--score", 0, "--max-dets", 4, "--json")
    assert ran.code == 0, ran.err
    (result,) = ran.json["videos"]
    assert ran.json["checkpoint"].endswith("runs/tiny/1/checkpoints/last/model.safetensors")
    assert (result["frames"], result["detections"], result["lines"]) == (6, 24, "predictions/a.jsonl")
    assert (result["source"], result["video"], ran.json["failed"]) == ("a.mp4", "predictions/a.mp4", [])
    lines = lines_of(Path(result["lines"]))
    assert [len(line["detections"]) for line in lines] == [4] * 6
    assert {row["category_id"] for line in lines for row in line["detections"]} <= {2, 3, 7}
    assert read_video(Path(result["video"]))[0] == [at * TIME_BASE for at in PTS]
    again = codetr("predict", video, "--score", 0, "--max-dets", 4, "--out", "b", "--no-draw")
    assert "6 frames: b/a.jsonl" in again.out
    assert Path("b/a.jsonl").read_bytes() == Path("predictions/a.jsonl").read_bytes()
    assert codetr("predict", video, "--json").json["out"] == "predictions_2"
    assert codetr("predict", video, "--force", "--json", "--stride", 4).json["videos"][0]["frames"] == 2


def test_detections_are_those_of_the_frames_as_images(codetr, video):
    from tests.prediction.video.videos import av

    with av.open(str(video)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            Image.fromarray(frame.to_ndarray(format="rgb24")).save(f"{number:02}.png")
    of_video = codetr("predict", video, "--score", 0, "--max-dets", 4, "--no-draw", "--json")
    of_sequence = codetr("predict", "%02d.png", "--score", 0, "--max-dets", 4, "--no-draw", "--json", "--fps", 5)
    a, b = (lines_of(Path(ran.json["videos"][0]["lines"])) for ran in (of_video, of_sequence))
    assert [line["detections"] for line in a] == [line["detections"] for line in b]
    assert [line["time"] for line in b] == [0, 0.2, 0.4, 0.6, 0.8, 1]


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["a.mp4", "b.jpg"], 2, "separate commands"),
        (["a.mp4", "--gpus", "2"], 2, "--gpus"),
        (["a.mp4", "--procs", "2"], 2, "--procs"),
        (["a.mp4", "--slurm"], 2, "--slurm"),
        (["a.mp4", "--shard-size", "5"], 2, "--shard-size is for images"),
        (["a.mp4", "--fps", "5"], 2, "a.mp4 has timestamps of its own"),
        (["camera:0", "camera:1"], 2, "camera:0 has no end"),
        (["a.mp4", "--format", "coco"], 2, "--format is for images"),
        (["s3://bucket/a.mp4"], 3, "s3://bucket/a.mp4: videos are read from files"),
        (["b.jpg", "--stride", "2"], 2, "--stride is for videos"),
        (["b.jpg", "--track"], 2, "--track is for videos"),
        (["a.mp4", "--start", "x"], 2, "--start"),
        (["a.mp4", "--end", "0:00"], 2, "--end"),
        (["a.mp4", "--start", "5", "--end", "4"], 2, "is not after"),
        (["a.mp4", "--start", "5"], 3, "no frame between"),
        (["gone.mp4"], 3, "gone.mp4"),
        (["text.mp4"], 3, "is not a video"),
        (["a.mp4", "--set", "data.max_pixels=3000"], 3, "data.max_pixels=3072"),
    ],
)
def test_wrong_words_and_files(codetr, video, words, code, part):
    Path("text.mp4").write_text("hello")
    ran = codetr("predict", *words, "--no-draw")
    assert ran.code == code, ran.err
    assert part in " ".join(ran.err.split())
    assert "Traceback" not in ran.err


def test_a_broken_video_beside_a_good_one(codetr, video):
    Path("b.mp4").write_text("hello")
    ran = codetr("predict", "b.mp4", video, "--no-draw", "--json")
    assert ran.code == 3
    assert [entry["video"] for entry in ran.json["failed"]] == ["b.mp4"]
    assert [entry["frames"] for entry in ran.json["videos"]] == [6]


def test_without_the_packages(codetr, video, monkeypatch):
    monkeypatch.setitem(sys.modules, "edgefirst.tracker", None)
    ran = codetr("predict", video, "--track")
    assert ran.code == 5
    assert 'pip install "codetr-cli[track]"' in " ".join(ran.err.split())
    monkeypatch.setitem(sys.modules, "av", None)
    ran = codetr("predict", video)
    assert ran.code == 5
    assert 'pip install "codetr-cli[video]"' in " ".join(ran.err.split())


def test_ids(codetr, video):
    pytest.importorskip("edgefirst.tracker")
    ran = codetr("predict", video, "--track", "--score", 0, "--max-dets", 2, "--json")
    assert ran.code == 0, ran.err
    rows = [row for line in lines_of(Path("predictions/a.jsonl")) for row in line["detections"]]
    assert all("track_id" in row for row in rows)
    assert json.loads(ran.out)["videos"][0]["tracks"] == len({row["track_id"] for row in rows} - {None})


def test_documented_commands(codetr, video, monkeypatch):
    """Those with files run; the streams are files that end in a stop."""
    pytest.importorskip("edgefirst.tracker")
    page = (REPOSITORY / "docs" / "predict.md").read_text(encoding="utf-8")
    section = page.partition("## Videos and streams")[2].partition("\n## ")[0]
    written = re.findall(r"^codetr (predict [^#\n]+)", section, flags=re.MULTILINE)
    assert len(written) == 6
    long = [12_800 * number for number in range(0, 131, 10)]  # of more than two minutes
    write_video(Path("street.mp4"), long)
    Path("frames").mkdir()
    Image.new("RGB", (64, 48)).save("frames/000000.jpg")
    requests: list[StopRequest] = []
    monkeypatch.setattr(StopRequest, "__enter__", lambda self: requests.append(self) or self)
    monkeypatch.setattr(live, "FIRST_PAUSE_S", 0.001)

    @contextmanager
    def open_stream(source: VideoInput, *, max_pixels: int):
        opened.append(source.text)
        if len(opened) % 3 == 0:  # the first is for the header
            deadline = time.monotonic() + 60
            while not any(Path().rglob("*.jsonl.tmp")) and time.monotonic() < deadline:
                time.sleep(0.01)
            requests[-1].number = 2
        file = VideoInput("a.mp4", "file", "a", (Path("a.mp4"),))
        with container.open_video(file, max_pixels=max_pixels) as (source_, stream, info):
            yield source_, stream, replace(info, live=True)

    opened: list[str] = []
    for command in written:
        is_stream = "://" in command or "camera:" in command
        with monkeypatch.context() as patch:
            if is_stream:
                patch.setattr(frames, "open_video", open_stream)
                patch.setattr(live, "open_video", open_stream)
                opened.clear()
            ran = codetr(*shlex.split(command))
        assert ran.code == (130 if is_stream else 0), f"{command}: {ran.err}"
    assert lines_of(Path("street/example.org_live_stream.jsonl"))
    assert "password" not in "".join(path.name for path in Path().rglob("*"))
