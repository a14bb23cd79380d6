"""What opens, and that a file opens nothing but itself."""

from __future__ import annotations

import random
import sys
from fractions import Fraction
from itertools import islice
from pathlib import Path

import pytest

from codetr_cli.errors import DatasetError, ResourceError
from codetr_cli.prediction.video import container
from codetr_cli.prediction.video.container import open_video
from codetr_cli.prediction.video.frames import FileFrames
from codetr_cli.prediction.video.inputs import VideoInput
from tests.prediction.video.videos import TIME_BASE, av, write_video

MPEG4 = Fraction(1, 10_000)


def opened(path: Path, max_pixels: int = 10_000):
    with open_video(VideoInput(str(path), "file", "x", (path,)), max_pixels=max_pixels) as (_, _, info):
        return info


def test_what_the_header_says(tmp_path: Path):
    info = opened(write_video(tmp_path / "a.mp4", [0, 500, 1000]))
    assert (info.size, info.time_base, info.codec, info.live) == ((48, 64), TIME_BASE, "h264", False)
    assert info.seconds is not None
    assert Fraction(1000, 12_800) < info.seconds < Fraction(3000, 12_800)


PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n"
HOSTILE = {
    "hls": PLAYLIST,
    "concat": "ffconcat version 1.0\nfile '{}'\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=-\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n# {}\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{}</BaseURL></MPD>',
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("prefix", ["", "file:", "concat:"])
def test_a_file_cannot_name_another_file(tmp_path: Path, kind: str, prefix: str):
    other = write_video(tmp_path / "other.mp4", [0, 500])
    path = tmp_path / "a.mp4"
    path.write_text(HOSTILE[kind].format(f"{prefix}{other}"))
    with pytest.raises(DatasetError, match="is not a video that codetr reads"):
        opened(path)


def test_a_name_is_no_protocol(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "a.mp4", [0, 500])
    write_video(tmp_path / "b.mp4", [0, 500, 1000])
    Path("b.mp4").rename("concat:a.mp4")
    assert (opened(Path("concat:a.mp4")).seconds or 0) > Fraction(1000, 12_800)


@pytest.mark.parametrize("content", [b"", b"hello" * 1000, b"\0" * 5000, b"\0\0\0\x18ftypmp42" + b"\0" * 100])
def test_what_is_no_video(tmp_path: Path, content: bytes):
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"a\.mp4"):
        opened(path)


def test_sound_alone_is_no_video(tmp_path: Path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=48_000)
        file.mux(stream.encode(None))
    with pytest.raises(DatasetError, match=r"a\.mp4"):
        opened(path)


def test_large_frames_are_refused_before_they_are_decoded(tmp_path: Path):
    path = write_video(tmp_path / "a.mp4", [0])
    with pytest.raises(DatasetError, match=r"64 x 48 pixels.*data\.max_pixels=3072"):
        opened(path, max_pixels=3071)


def test_special_files_are_not_opened():
    with pytest.raises(DatasetError, match="a device"):
        opened(Path("/dev/zero"))


def test_without_the_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ResourceError, match=r'pip install "codetr-cli\[video\]"'):
        container.import_av()


def test_errors_do_not_show_passwords():
    video = VideoInput("rtsp://user:secret@127.0.0.1:1/x", "url", "x")
    with pytest.raises(ResourceError, match="cannot open") as caught, open_video(video, max_pixels=1):
        pass
    assert "secret" not in str(caught.value)
    assert "127.0.0.1:1/x" in str(caught.value)


def test_a_camera_that_is_not_there():
    with (
        pytest.raises(ResourceError, match=r"camera"),
        open_video(VideoInput("camera:987", "camera", "x"), max_pixels=1),
    ):
        pass


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".nut"])
def test_damaged_files_give_frames_or_one_of_our_errors(tmp_path: Path, suffix: str):
    """Headers, indexes, names that are not text, frames."""
    content = write_video(
        tmp_path / f"a{suffix}", list(range(0, 10_000, 500)), codec="mpeg4", time_base=MPEG4
    ).read_bytes()
    noise = random.Random(suffix)
    path = tmp_path / f"b{suffix}"
    results = set()
    for _ in range(100):
        damaged = bytearray(content)
        for _ in range(noise.choice((1, 5, 50))):
            damaged[noise.randrange(len(damaged))] = noise.randrange(256)
        path.write_bytes(damaged[: noise.randrange(len(damaged))] if noise.random() < 0.3 else damaged)
        results.add(outcome(path))
    assert results == {"read", "refused"}


def outcome(path: Path) -> str:
    """What becomes of a damaged file; any error but ours fails the test."""
    try:
        frames = FileFrames(VideoInput(str(path), "file", "b", (path,)), max_pixels=9000).frames()
        for frame in islice(frames, 100):
            frame.decode()
    except DatasetError:
        return "refused"
    return "read"
