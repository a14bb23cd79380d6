"""Whole videos: frames in are frames out, wherever the command was stopped."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import cv2
import pytest

from codetr_cli.distributed.part_files import FOLDER, PartFiles
from codetr_cli.errors import StoppedError
from codetr_cli.prediction.video import recording, segments
from codetr_cli.prediction.video.frames import FileFrames, VideoFrame
from codetr_cli.prediction.video.segments import SegmentWriter
from codetr_cli.runtime.signals import StopRequest
from tests.prediction.video.videos import (
    TIME_BASE,
    SceneDetector,
    av,
    grey,
    lines_of,
    one_disc,
    predict,
    read_video,
    variable_pts,
    write_video,
)

COUNT = 40
PTS = variable_pts(COUNT)


@pytest.fixture(autouse=True)
def _short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "SEGMENT_FRAMES", 9)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return write_video(tmp_path / "a.mp4", PTS, sound="aac")


def test_frames_in_are_frames_out(video: Path, tmp_path: Path, monkeypatch):
    outcome = predict(monkeypatch, SceneDetector(one_disc), [video], tmp_path / "out")
    (result,) = outcome.videos
    assert (result.frames, result.detections, result.objects, result.is_whole) == (COUNT, COUNT, {"disc": COUNT}, True)
    lines = lines_of(result.lines)
    assert [line["frame"] for line in lines] == list(range(COUNT))
    assert [line["pts"] for line in lines] == PTS
    assert [line["time"] for line in lines] == [float(at * TIME_BASE) for at in PTS]
    assert [line["detections"][0]["bbox"][0] for line in lines] == [float(number) for number in range(COUNT)]
    assert set(lines[0]["detections"][0]) == {"bbox", "score", "category_id", "category_name"}
    times, numbers, (_, size, sounds) = read_video(result.video)
    assert times == [at * TIME_BASE for at in PTS]
    assert len(numbers) == COUNT
    assert (size, sounds) == ((48, 64), 1)
    assert result.sentences() == []
    assert not (outcome.folder / FOLDER).exists()


def test_stride_and_range_keep_the_timestamps(video: Path, tmp_path: Path, monkeypatch):
    detector = SceneDetector(lambda number: [])
    options = {"stride": 3, "start": PTS[7] * TIME_BASE, "end": PTS[30] * TIME_BASE}
    (result,) = predict(monkeypatch, detector, [video], tmp_path / "out", **options).videos
    expected = list(range(7, 30, 3))
    assert detector.seen == expected
    lines = lines_of(result.lines)
    assert [line["frame"] for line in lines] == expected
    assert [line["pts"] for line in lines] == [PTS[number] for number in expected]
    times, numbers, facts = read_video(result.video)
    assert times == [(PTS[number] - PTS[7]) * TIME_BASE for number in expected]
    assert numbers == expected
    assert facts[2] == 1


def test_sound_that_an_mp4_file_cannot_hold(tmp_path: Path, monkeypatch):
    video = write_video(tmp_path / "a.mov", PTS[:5], sound="pcm_s16le")
    (result,) = predict(monkeypatch, SceneDetector(one_disc), [video], tmp_path / "out").videos
    assert read_video(result.video)[2][2] == 0
    assert "pcm_s16le" in result.sentences()[0]


def test_without_drawing(video: Path, tmp_path: Path, monkeypatch):
    outcome = predict(monkeypatch, SceneDetector(one_disc), [video], tmp_path / "out", draw=False)
    assert outcome.videos[0].video is None
    assert sorted(path.name for path in outcome.folder.iterdir()) == [".codetr_results", "a.jsonl"]


def test_a_sequence_with_a_broken_image(tmp_path: Path, monkeypatch):
    for number in range(6):
        cv2.imwrite(str(tmp_path / f"{number:04}.png"), grey(number))
    (tmp_path / "0004.png").write_bytes(b"broken")
    detector = SceneDetector(lambda number: [])
    said: list[str] = []
    options = {"rate": Fraction(10), "warn": said.append}
    outcome = predict(monkeypatch, detector, [tmp_path / "%04d.png"], tmp_path / "out", **options)
    (result,) = outcome.videos
    assert said == []
    lines = lines_of(result.lines)
    assert [line["frame"] for line in lines] == list(range(6))
    assert [bool(line["error"]) for line in lines] == [False, False, False, False, True, False]
    assert (result.frames, result.failed, result.is_whole) == (6, 1, False)
    times, numbers, _ = read_video(result.video)
    assert times == [Fraction(number, 10) for number in range(6)]
    assert [numbers[number] for number in (0, 1, 2, 3, 5)] == [0, 1, 2, 3, 5]


def test_a_sequence_with_gaps_names_its_files(tmp_path: Path, monkeypatch):
    for number in (7, 8, 12):
        cv2.imwrite(str(tmp_path / f"{number:04}.png"), grey(number))
    said: list[str] = []
    pattern = tmp_path / "%04d.png"
    (result,) = predict(monkeypatch, SceneDetector(one_disc), [pattern], tmp_path / "out", warn=said.append).videos
    assert [line["file"] for line in lines_of(result.lines)] == [str(tmp_path / f"{n:04}.png") for n in (7, 8, 12)]
    assert said == [f"3 numbers have no image in {pattern}: times are as if there were no gap."]


def test_a_video_that_begins_late_is_drawn_from_zero(tmp_path: Path, monkeypatch):
    pts = [20 * 12_800 + at for at in PTS[:5]]
    video = write_video(tmp_path / "a.mkv", pts, options={"bf": "0"})
    (result,) = predict(monkeypatch, SceneDetector(one_disc), [video], tmp_path / "out").videos
    assert lines_of(result.lines)[0]["time"] == 20
    assert read_video(result.video)[0][0] == 0


def test_frames_that_are_hours_apart(tmp_path: Path, monkeypatch):
    video = write_video(tmp_path / "a.mp4", [0, 7000 * 12_800], options={"bf": "0"})
    (result,) = predict(monkeypatch, SceneDetector(one_disc), [video], tmp_path / "out").videos
    assert read_video(result.video)[0] == [0, 7000]


def test_pixels_that_are_not_square_are_turned_with_the_video(tmp_path: Path, monkeypatch):
    video = tmp_path / "a.mp4"
    with av.open(str(video), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2)
        stream.set_display_rotation(90)
        for packets in (stream.encode(av.VideoFrame.from_ndarray(grey(0), format="rgb24")), stream.encode(None)):
            container.mux(packets)
    (result,) = predict(monkeypatch, SceneDetector(one_disc), [video], tmp_path / "out").videos
    with av.open(str(result.video)) as drawn:
        stream = drawn.streams.video[0]
        assert (stream.height, stream.width, stream.sample_aspect_ratio) == (64, 48, Fraction(1, 2))


def test_a_sequence_whose_first_image_is_broken_has_the_size_of_the_others(tmp_path: Path, monkeypatch):
    for number in range(3):
        cv2.imwrite(str(tmp_path / f"{number}.png"), grey(number))
    (tmp_path / "0.png").write_bytes(b"broken")
    (result,) = predict(monkeypatch, SceneDetector(lambda number: []), [tmp_path / "%d.png"], tmp_path / "out").videos
    _, numbers, (_, size, _) = read_video(result.video)
    assert (numbers[1:], size) == ([1, 2], (48, 64))


def test_a_truncated_video_whose_name_is_not_utf_8(tmp_path: Path, monkeypatch):
    video = tmp_path / os.fsdecode(b"\xff.mp4")
    write_video(tmp_path / "a.mp4", PTS, options={"movflags": "frag_keyframe", "g": "4"}).rename(video)
    monkeypatch.setattr(FileFrames, "_early_end", lambda self, info, end: f"{self._video.label} is truncated")
    (result,) = predict(monkeypatch, SceneDetector(one_disc), [video], tmp_path / "out").videos
    assert result.problems["early_end"] == f"{video} is truncated"
    assert result.frames == COUNT


def test_a_file_with_several_videos(tmp_path: Path, monkeypatch):
    video = tmp_path / "a.mkv"
    with av.open(str(video), "w") as container:
        streams = [container.add_stream("libx264", rate=25) for _ in range(2)]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(5):
            for stream in streams:
                frame = av.VideoFrame.from_ndarray(grey(number), format="rgb24")
                frame.pts = number
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    said: list[str] = []
    outcome = predict(monkeypatch, SceneDetector(one_disc), [video], tmp_path / "out", warn=said.append)
    assert [result.frames for result in outcome.videos] == [5]
    assert said == [f"{video} has 2 video streams: that of 64 x 48 pixels is predicted."]


def test_recordings_that_were_joined_keep_their_distances(tmp_path: Path, monkeypatch):
    """Timestamps jump back where the second one begins."""
    content = b""
    for start in (128_000, 0):
        part = write_video(tmp_path / "part.ts", [start + 512 * number for number in range(10)], options={"bf": "0"})
        content += part.read_bytes()
    video = tmp_path / "a.ts"
    video.write_bytes(content)
    (result,) = predict(monkeypatch, SceneDetector(one_disc), [video], tmp_path / "out").videos
    lines, (times, _, _) = lines_of(result.lines), read_video(result.video)
    assert lines[10]["time"] < 1 < 10 <= lines[0]["time"]
    assert [round(float(b - a), 2) for a, b in pairwise(times)] == [0.04] * 19
    assert "1 frame has a timestamp that is not after" in result.sentences()[0]


class Killed(BaseException):
    """Stands for a kill."""


def _kill_at(monkeypatch: pytest.MonkeyPatch, moment: int) -> list[int]:
    """Kills the command before or after its nth durable write; files that are being written stay as they are."""
    count = [0]

    def reach() -> None:
        count[0] += 1
        if count[0] == moment:
            raise Killed

    def around(owner: object, name: str) -> None:
        function = getattr(owner, name)

        def wrapped(*arguments: object, **more: object) -> object:
            reach()
            result = function(*arguments, **more)
            reach()
            return result

        monkeypatch.setattr(owner, name, wrapped)

    around(segments, "rename_synced")
    around(PartFiles, "add")
    around(recording, "write_result")
    around(SegmentWriter, "add")
    monkeypatch.setattr(SegmentWriter, "abort", lambda self: self._stack.close())
    return count


@pytest.mark.parametrize("track", [False, True])
def test_a_command_that_is_killed_anywhere_continues(video: Path, tmp_path: Path, monkeypatch, track: bool):
    options = {"stride": 2, "track": track}
    if track:
        pytest.importorskip("edgefirst.tracker")
    (whole,) = predict(monkeypatch, SceneDetector(one_disc), [video], tmp_path / "whole", **options).videos
    expected = whole.lines.read_bytes(), read_video(whole.video), whole.summary()
    assert (whole.tracks == 1) == track
    moments = [1, 2, 19, 20, 21, 23, 24, 25, 30, 58, 60, 62, 63] if track else range(1, 64, 9)
    killed = 0
    for moment in moments:
        out = tmp_path / str(moment)
        with monkeypatch.context() as patch:
            _kill_at(patch, moment)
            try:
                predict(patch, SceneDetector(one_disc), [video], out, **options)
            except Killed:
                killed += 1
        detector = SceneDetector(one_disc)
        again = predict(monkeypatch, detector, [video], out, **options)
        if again.folder != out:  # the command had ended
            continue
        assert len(detector.seen) <= COUNT // 2
        (result,) = again.videos
        assert (result.lines.read_bytes(), read_video(result.video)) == expected[:2], moment
        summary = {**result.summary(), "lines": expected[2]["lines"], "video": expected[2]["video"]}
        assert summary == expected[2]
        assert not (out / FOLDER).exists()
    assert killed >= 6


def test_a_stop_keeps_every_frame_that_is_done(video: Path, tmp_path: Path, monkeypatch):
    def stop(self: StopRequest) -> StopRequest:
        self.number = 15 if detector.seen[-1:] == [12] else None
        return self

    detector = SceneDetector(one_disc)
    detector.before = lambda number: stop(requests[0]) if number == 13 else None
    requests: list[StopRequest] = []
    monkeypatch.setattr(StopRequest, "__enter__", lambda self: requests.append(self) or self)
    with pytest.raises(StoppedError, match="frames are done") as caught:
        predict(monkeypatch, detector, [video], tmp_path / "out")
    assert caught.value.exit_code == 143
    done = int(re.search(r"(\d+) frames are done", str(caught.value))[1])
    assert 5 <= done <= 14  # those that were on their way are not
    again = SceneDetector(one_disc)
    (result,) = predict(monkeypatch, again, [video], tmp_path / "out").videos
    assert again.seen == list(range(done, COUNT))
    assert [line["frame"] for line in lines_of(result.lines)] == list(range(COUNT))


@pytest.mark.parametrize("start", [PTS[30] * TIME_BASE, None])
def test_a_stop_before_the_first_chosen_frame_does_not_wait_for_it(
    video: Path, tmp_path: Path, monkeypatch, start: Fraction | None
):
    """Frames before --start, or those that are done already, can take minutes."""
    monkeypatch.setattr(StopRequest, "__enter__", lambda self: requests.append(self) or self)
    requests: list[StopRequest] = []
    seen: list[int] = []
    original = FileFrames.frames

    def frames(self: FileFrames) -> Iterator[VideoFrame]:
        for frame in original(self):
            seen.append(frame.number)
            if frame.number == 3:
                requests[0].number = 2
            yield frame

    monkeypatch.setattr(FileFrames, "frames", frames)
    detector = SceneDetector(one_disc)
    with pytest.raises(StoppedError) as caught:
        predict(monkeypatch, detector, [video], tmp_path / "out", start=start)
    assert caught.value.exit_code == 130
    assert seen == [0, 1, 2, 3]
    monkeypatch.setattr(FileFrames, "frames", original)
    (result,) = predict(monkeypatch, detector, [video], tmp_path / "out", start=start).videos
    assert result.frames == (COUNT if start is None else COUNT - 30)


def test_ids_are_in_the_lines_and_stay_with_objects_that_cross(tmp_path: Path, monkeypatch):
    pytest.importorskip("edgefirst.tracker")

    def crossing(number: int):
        x = 1.0 * number
        return [
            ((x, 4.0, x + 16, 20.0), 0.9, 0),
            ((44 - x, 10.0, 60 - x, 28.0), 0.8, 0),
            ((22.0, 20.0, 40.0, 44.0), 0.7, 1),
        ]

    video = write_video(tmp_path / "a.mp4", PTS)
    (result,) = predict(monkeypatch, SceneDetector(crossing), [video], tmp_path / "out", track=True).videos
    rows = [[detection["track_id"] for detection in line["detections"]] for line in lines_of(result.lines)]
    assert rows == [rows[0]] * COUNT
    assert sorted(rows[0]) == [1, 2, 3]
    assert result.tracks == 3
    assert len(read_video(result.video)[0]) == COUNT


def test_a_changed_video_is_predicted_again(video: Path, tmp_path: Path, monkeypatch):
    with monkeypatch.context() as patch:
        _kill_at(patch, 60)
        with pytest.raises(Killed):
            predict(patch, SceneDetector(one_disc), [video], tmp_path / "out")
    write_video(video, PTS[:20])
    detector = SceneDetector(one_disc)
    (result,) = predict(monkeypatch, detector, [video], tmp_path / "out").videos
    assert len(detector.seen) == result.frames == 20


def test_lines_of_names_that_are_not_utf_8(tmp_path: Path, monkeypatch):
    detector = SceneDetector(one_disc)
    detector.class_names = ("a\udcffb", "bar", "ring")
    video = write_video(tmp_path / "a.mp4", PTS[:2])
    (result,) = predict(monkeypatch, detector, [video], tmp_path / "out").videos
    assert json.loads(result.lines.read_text().splitlines()[0])["detections"][0]["category_name"] == "a\udcffb"
