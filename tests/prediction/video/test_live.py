"""Cameras and streams: the newest frames, lost connections, and addresses over HTTP."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from codetr_cli.errors import DatasetError, ResourceError, StoppedError
from codetr_cli.prediction.video import live, recording
from codetr_cli.prediction.video.container import open_video
from codetr_cli.prediction.video.frames import FileFrames, VideoFrame
from codetr_cli.prediction.video.inputs import VideoInput
from codetr_cli.runtime.signals import StopRequest
from tests.prediction.video.videos import (
    TIME_BASE,
    SceneDetector,
    lines_of,
    number_of,
    one_disc,
    predict,
    read_video,
    variable_pts,
    write_video,
)

CAMERA = VideoInput("camera:0", "camera", "camera_0")
PTS = variable_pts(20)


def opened_info(path: Path) -> Any:
    with open_video(VideoInput(str(path), "file", "x", (path,)), max_pixels=10_000) as (_, _, info):
        return replace(info, live=True)


class Connections:
    """Stands for a camera: each connection gives the frames of a video, or an error."""

    def __init__(self, *connections: Path | Exception) -> None:
        self._connections = list(connections)

    def info(self) -> Any:
        """Of the first connection."""
        return next(opened_info(each) for each in self._connections if isinstance(each, Path))

    @contextmanager
    def open(self, video: VideoInput, *, max_pixels: int) -> Iterator[tuple[Any, Any, Any]]:
        connection = self._connections.pop(0) if self._connections else DatasetError("the end")
        if isinstance(connection, Exception):
            raise connection
        source = VideoInput(str(connection), "file", "x", (connection,))
        with open_video(source, max_pixels=max_pixels) as (container, stream, info):
            yield container, stream, replace(info, live=True)


def frames_of(
    monkeypatch: pytest.MonkeyPatch,
    connections: Connections,
    *,
    waiting: int = 1000,
    stopped: Callable[[], bool] = lambda: False,
    **more: Any,
) -> tuple[live.LiveFrames, list[str]]:
    said: list[str] = []
    monkeypatch.setattr(live, "open_video", connections.open)
    monkeypatch.setattr(live, "WAITING", waiting)
    monkeypatch.setattr(live, "LONGEST_PAUSE_S", 0.002)
    source = live.LiveFrames(
        CAMERA, connections.info(), max_pixels=10_000, stopped=stopped, warn=said.append, pause_s=0.001, **more
    )
    return source, said


def until_the_end(source: live.LiveFrames) -> list[VideoFrame]:
    frames = list(source.frames())
    assert source.problems.early_end == "camera:0 was given up after 6 attempts: the end"
    return frames


def test_a_lost_connection_is_made_again_and_time_continues(tmp_path: Path, monkeypatch):
    path = write_video(tmp_path / "a.mkv", [5000 + at for at in PTS])
    lost = ResourceError("the network is down.")
    source, said = frames_of(monkeypatch, Connections(path, lost, path, DatasetError("the end")))
    frames = until_the_end(source)
    assert [frame.number for frame in frames] == list(range(40))
    assert [number_of(frame.decode()) for frame in frames] == [*range(20), *range(20)]
    assert frames[0].time == 0
    assert all(a.pts < b.pts for a, b in pairwise(frames))
    assert [frame.pts - frames[20].pts for frame in frames[20:]] == [frame.pts for frame in frames[:20]]
    assert source.problems.reconnects == 2 + 6
    assert said[0] == "camera:0: the stream ended. Connecting again in 0.001 s (attempt 1)."
    assert "the network is down. Connecting" in said[1]


@pytest.mark.parametrize("error", [ResourceError("no route to host"), DatasetError("a page, not a video")])
def test_a_stream_that_stays_away_is_given_up(tmp_path: Path, monkeypatch, error: Exception):
    path = write_video(tmp_path / "a.mkv", PTS)
    source, said = frames_of(monkeypatch, Connections(path, *[error] * 20))
    assert len(list(source.frames())) == 20
    assert source.problems.early_end == f"camera:0 was given up after 6 attempts: {error}"
    assert len(said) == 6


def test_a_stream_without_any_frame_is_an_error(tmp_path: Path, monkeypatch):
    connections = Connections(*[ResourceError("no route to host")] * 20)
    monkeypatch.setattr(connections, "info", lambda: opened_info(write_video(tmp_path / "a.mkv", PTS)))
    source, _ = frames_of(monkeypatch, connections)
    with pytest.raises(ResourceError, match="given up after 6 attempts: no route to host"):
        list(source.frames())


@pytest.mark.parametrize("error", [ResourceError("no route to host"), DatasetError("a page, not a video")])
def test_frames_of_a_stream_that_is_lost_are_kept(tmp_path: Path, monkeypatch, error: Exception):
    path = write_video(tmp_path / "a.mkv", PTS)
    info = opened_info(path)
    frames_of(monkeypatch, Connections(path, *[error] * 20))
    monkeypatch.setattr(live, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(recording, "FileFrames", lambda video, max_pixels: SimpleNamespace(info=info))
    outcome = predict(monkeypatch, SceneDetector(one_disc), ["camera:0"], tmp_path / "out")
    (result,) = outcome.videos
    assert (outcome.failed, result.frames, result.is_whole) == ({}, 20, False)
    assert len(lines_of(result.lines)) == len(read_video(result.video)[0]) == 20


def test_frames_of_an_earlier_start_are_kept_when_the_stream_cannot_be_opened(tmp_path: Path, monkeypatch):
    path = write_video(tmp_path / "a.mkv", PTS)
    info = opened_info(path)
    frames_of(monkeypatch, Connections(path))
    monkeypatch.setattr(recording, "SEGMENT_FRAMES", 5)

    def broken(number: int) -> None:
        if number == 12:
            raise OSError(28, "No space left on device")

    detector = SceneDetector(one_disc)
    detector.before = broken
    monkeypatch.setattr(recording, "FileFrames", lambda video, max_pixels: SimpleNamespace(info=info))
    with pytest.raises(OSError, match="No space"):
        predict(monkeypatch, detector, ["camera:0"], tmp_path / "out")

    def refuse(video: VideoInput, *, max_pixels: int) -> None:
        raise DatasetError("a page, not a video")

    monkeypatch.setattr(recording, "FileFrames", refuse)
    with pytest.raises(ResourceError, match=r"a page, not a video\. 10 frames are done and kept"):
        predict(monkeypatch, SceneDetector(one_disc), ["camera:0"], tmp_path / "out")
    assert len(list((tmp_path / "out" / ".parts").glob("video0-*.jsonl"))) == 2


def test_frames_are_dropped_rather_than_collected(tmp_path: Path, monkeypatch):
    path = write_video(tmp_path / "a.mkv", PTS)
    source, _ = frames_of(monkeypatch, Connections(path, DatasetError("the end")), waiting=4)
    frames = source.frames()
    first = next(frames)
    for thread in threading.enumerate():
        if thread.name == "live-frames":
            thread.join(5)
    rest = [frame.number for frame in frames]
    assert len(rest) <= 4
    assert first.number + len(rest) + source.problems.dropped in (19, 20, 20 - 1 + first.number)
    assert source.problems.dropped >= 15


def test_a_stop_ends_the_frames(tmp_path: Path, monkeypatch):
    path = write_video(tmp_path / "a.mkv", PTS)
    stopped: list[bool] = []
    source, _ = frames_of(monkeypatch, Connections(*[path] * 1000), stopped=lambda: bool(stopped))
    for frame in source.frames():
        if frame.number == 30:
            stopped.append(True)
    assert frame.number >= 30


def test_a_stream_that_continues_after_a_kill(tmp_path: Path, monkeypatch):
    path = write_video(tmp_path / "a.mkv", PTS)
    source, _ = frames_of(
        monkeypatch, Connections(path, DatasetError("the end")), number=7, pts=900, time_base=Fraction(1, 100)
    )
    frames = until_the_end(source)
    assert (frames[0].number, frames[0].pts, frames[0].time) == (7, 900, 9)
    assert abs(float(frames[-1].time - 9 - PTS[-1] * TIME_BASE)) < 0.02


def test_a_stop_of_a_stream_gives_files_that_play(tmp_path: Path, monkeypatch):
    """The result is complete, with an exit code of a stop."""
    path = write_video(tmp_path / "a.mkv", PTS)
    connections = Connections(*[path] * 1000)
    requests: list[StopRequest] = []
    monkeypatch.setattr(StopRequest, "__enter__", lambda self: requests.append(self) or self)
    monkeypatch.setattr(live, "open_video", connections.open)
    monkeypatch.setattr(live, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(live, "WAITING", 1000)
    info = opened_info(path)
    monkeypatch.setattr(recording, "FileFrames", lambda video, max_pixels: SimpleNamespace(info=info))
    detector = SceneDetector(one_disc)

    def stop(number: int) -> None:
        if len(detector.seen) == 15:
            requests[0].number = 2

    detector.before = stop
    outcome = predict(monkeypatch, detector, ["camera:0"], tmp_path / "out")
    assert outcome.stopped == 2
    (result,) = outcome.videos
    lines = lines_of(result.lines)
    times, _, _ = read_video(result.video)
    assert len(times) == len(lines) == result.frames >= 16
    assert times == [line["pts"] * info.time_base for line in lines]
    assert not (outcome.folder / ".parts").exists()


def test_a_stop_before_the_first_frame(tmp_path: Path, monkeypatch):
    path = write_video(tmp_path / "a.mkv", PTS)
    monkeypatch.setattr(live, "open_video", Connections(*[path] * 9).open)
    info = opened_info(path)
    monkeypatch.setattr(recording, "FileFrames", lambda video, max_pixels: SimpleNamespace(info=info))
    monkeypatch.setattr(StopRequest, "__enter__", lambda self: setattr(self, "number", 2) or self)
    with pytest.raises(StoppedError, match="before the first frame"):
        predict(monkeypatch, SceneDetector(one_disc), ["camera:0"], tmp_path / "out")


# ------------------------------------------------------------------------------------------------------------ over HTTP


class Quiet(SimpleHTTPRequestHandler):
    def end_headers(self) -> None:
        if self.path == "/stream":  # does not say how long it is
            self._headers_buffer = [line for line in self._headers_buffer if b"Content-Length" not in line]
        super().end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a server of the files in `tmp_path`."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()
        thread.join()


def playlist(*names: str) -> str:
    return "\n".join(
        ["#EXTM3U", "#EXT-X-TARGETDURATION:1", *(f"#EXTINF:1,\n{name}" for name in names), "#EXT-X-ENDLIST"]
    )


def test_a_file_over_http_is_no_live_stream(tmp_path: Path, server: str, monkeypatch):
    write_video(tmp_path / "a.mp4", PTS)
    outcome = predict(monkeypatch, SceneDetector(one_disc), [f"{server}/a.mp4"], tmp_path / "out")
    (result,) = outcome.videos
    assert result.frames == 20
    assert result.lines.name == "127.0.0.1_a.jsonl"
    assert read_video(result.video)[0] == [at * TIME_BASE for at in PTS]


def test_a_file_over_http_that_is_replaced_is_predicted_again(tmp_path: Path, server: str, monkeypatch):
    monkeypatch.setattr(recording, "SEGMENT_FRAMES", 5)
    write_video(tmp_path / "a.mkv", PTS)

    def fail(number: int) -> None:
        if number == 12:
            raise OSError(28, "No space left on device")

    detector = SceneDetector(one_disc)
    detector.before = fail
    with pytest.raises(OSError, match="No space"):
        predict(monkeypatch, detector, [f"{server}/a.mkv"], tmp_path / "out")
    write_video(tmp_path / "a.mkv", variable_pts(30, seed=1))
    said: list[str] = []
    detector = SceneDetector(one_disc)
    (result,) = predict(monkeypatch, detector, [f"{server}/a.mkv"], tmp_path / "out", warn=said.append).videos
    assert detector.seen == list(range(30))
    assert [line["frame"] for line in lines_of(result.lines)] == list(range(30))
    assert said == [f"{server}/a.mkv has changed: it is predicted from its beginning again."]


def test_a_file_over_http_that_does_not_say_its_duration_is_no_live_stream(tmp_path: Path, server: str):
    path = write_video(tmp_path / "a.mkv", PTS)
    content = path.read_bytes()
    duration = content.index(b"\x44\x89\x88")  # as programs write it that record
    path.write_bytes(content[:duration] + b"\xec\x89" + content[duration + 2 :])
    source = FileFrames(VideoInput(f"{server}/a.mkv", "url", "x"), max_pixels=10_000)
    assert not source.info.live
    assert len(list(source.frames())) == 20


def test_a_stream_over_http_without_an_end_is_live(tmp_path: Path, server: str):
    (tmp_path / "stream").write_bytes(write_video(tmp_path / "a.ts", PTS).read_bytes())
    source = FileFrames(VideoInput(f"{server}/stream", "url", "x"), max_pixels=10_000)
    assert source.info.live


def test_a_playlist_with_an_end(tmp_path: Path, server: str):
    write_video(tmp_path / "a.ts", PTS)
    (tmp_path / "list.m3u8").write_text(playlist("a.ts"))
    source = FileFrames(VideoInput(f"{server}/list.m3u8", "url", "x"), max_pixels=10_000)
    assert not source.info.live
    assert [number_of(frame.decode()) for frame in source.frames()] == list(range(20))


@pytest.mark.parametrize("prefix", ["file://", "", "concat:", "crypto+file://"])
def test_a_playlist_cannot_name_files_of_this_machine(tmp_path: Path, server: str, prefix: str):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    secret = write_video(folder / "secret.ts", PTS)
    (tmp_path / "list.m3u8").write_text(playlist(f"{prefix}{secret}"))
    with pytest.raises((DatasetError, ResourceError)):
        list(FileFrames(VideoInput(f"{server}/list.m3u8", "url", "x"), max_pixels=10_000).frames())


def test_an_address_without_a_file(server: str):
    with pytest.raises(ResourceError, match=r"cannot open .*gone\.mp4.*404|cannot open .*gone\.mp4"):
        FileFrames(VideoInput(f"{server}/gone.mp4", "url", "x"), max_pixels=10_000)
