from __future__ import annotations

import random
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from codetr_cli.images.decoder import BrokenImageError
from codetr_cli.prediction.video.frames import FileFrames, SequenceFrames, VideoFrame, chosen, pixels_of
from codetr_cli.prediction.video.inputs import VideoInput, split_inputs
from tests.prediction.video.videos import TIME_BASE, av, grey, number_of, variable_pts, write_video

PTS_OF_SLIDES = [0, 12_800, 25_600]


def frames_of(path: Path, max_pixels: int = 100_000) -> tuple[list[VideoFrame], FileFrames]:
    source = FileFrames(VideoInput(str(path), "file", "x", (path,)), max_pixels=max_pixels)
    return list(source.frames()), source


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_every_frame_has_its_number_and_its_timestamp(tmp_path: Path, suffix: str):
    pts = variable_pts(40)
    frames, source = frames_of(write_video(tmp_path / f"a{suffix}", pts))
    assert [frame.number for frame in frames] == list(range(40))
    assert [number_of(frame.decode()) for frame in frames] == list(range(40))
    exact = Fraction(1, 2000) if suffix == ".mkv" else 0  # its timestamps are milliseconds
    assert all(abs(frame.time - at * TIME_BASE) <= exact for frame, at in zip(frames, pts, strict=True))
    assert source.problems.bad_count == source.problems.untimed == 0
    assert source.problems.early_end == ""


def test_frames_without_timestamps_have_the_rate_of_the_video(tmp_path: Path):
    path = write_video(tmp_path / "a.h264", [500 * number for number in range(10)], options={"bf": "0"})
    frames, source = frames_of(path)
    assert [number_of(frame.decode()) for frame in frames] == list(range(10))
    steps = {b.time - a.time for a, b in pairwise(frames)}
    assert len(steps) == 1
    assert steps.pop() > 0
    assert source.problems.untimed in (0, 10)


def test_frames_of_a_file_with_timestamps_in_order_of_coding(tmp_path: Path):
    """AVI files number their packets; those of frames between two others come later."""
    path = tmp_path / "a.avi"
    write_video(path, range(30), options={"bf": "3"}, time_base=Fraction(1, 30))
    frames, source = frames_of(path)
    assert [number_of(frame.decode()) for frame in frames] == list(range(30))
    assert [frame.time for frame in frames] == [Fraction(number, 30) for number in range(30)]
    assert source.problems.early_end == ""


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_last_frame_that_stays_for_long_is_no_truncation(tmp_path: Path, suffix: str):
    """As recorders of screens write it."""
    path, long = write_video(tmp_path / f"a{suffix}", PTS_OF_SLIDES, options={"bf": "0"}), tmp_path / f"b{suffix}"
    with av.open(str(path)) as source, av.open(str(long), "w") as copy:
        stream = copy.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream, packet.duration = stream, round(60 / packet.time_base)
                copy.mux(packet)
    frames, source = frames_of(long)
    assert (len(frames), source.problems.early_end) == (3, "")
    assert source.info.seconds > 60


@pytest.mark.parametrize(("rotation", "turns"), [(90, 1), (180, 2), (-90, 3)])
def test_frames_are_upright(tmp_path: Path, rotation: int, turns: int):
    picture = np.full((48, 64, 3), 20, np.uint8)
    picture[:24, :32] = 220
    path = write_video(tmp_path / "a.mp4", [0, 500], picture=lambda number: picture, rotation=rotation)
    frames, _ = frames_of(path)
    pixels = frames[1].decode()
    expected = np.rot90(picture, turns)
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).mean() < 8


def test_a_truncated_video_is_read_to_its_end(tmp_path: Path):
    path = write_video(tmp_path / "a.mp4", variable_pts(40), options={"g": "1"})
    fast = tmp_path / "fast.mp4"
    _write_header_first(path, fast)
    fast.write_bytes(fast.read_bytes()[: fast.stat().st_size * 4 // 5])
    frames, source = frames_of(fast)
    assert 10 < len(frames) < 40
    assert [number_of(frame.decode()) for frame in frames[:10]] == list(range(10))
    assert "truncated" in source.problems.early_end


def _write_header_first(path: Path, target: Path) -> None:
    from codetr_cli.prediction.video.encoder import join_pieces

    piece = target.with_suffix(".nut")
    with av.open(str(path)) as source, av.open(str(piece), "w", format="nut") as copy:
        stream = copy.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                copy.mux(packet)
    join_pieces([piece], target, TIME_BASE)


def test_bad_frames_are_counted_and_named(tmp_path: Path):
    path = write_video(tmp_path / "a.nut", variable_pts(40), options={"g": "1"})
    content = bytearray(path.read_bytes())
    noise = random.Random(0)
    for _ in range(30):
        content[noise.randrange(len(content) // 4, len(content))] = noise.randrange(256)
    path.write_bytes(content)
    frames, source = frames_of(path)
    assert 5 < len(frames) < 40
    assert source.problems.bad_count > 0
    number, why = source.problems.bad[0]
    assert 0 <= number <= 40
    assert "cannot be" in why


def test_a_frame_that_is_too_large_is_no_pixels(tmp_path: Path):
    """The size of a stream may change on its way; the decoder refuses larger ones, too."""
    path = write_video(tmp_path / "a.mp4", [0])
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    decode = pixels_of(frame, VideoInput("a.mp4", "file", "a"), max_pixels=3071)
    with pytest.raises(BrokenImageError, match="64 x 48 pixels"):
        decode()


def test_a_frame_that_cannot_be_converted_is_no_pixels():
    def fail(format: str) -> None:
        raise av.error.InvalidDataError(1, "Invalid data")

    frame = SimpleNamespace(width=4, height=4, rotation=0, to_ndarray=fail)
    with pytest.raises(BrokenImageError, match="cannot be converted: invalid data"):
        pixels_of(frame, VideoInput("a.mp4", "file", "a"), max_pixels=100)()


def test_a_sequence_has_the_rate_that_is_given(tmp_path: Path):
    for number in (3, 4, 7):
        cv2.imwrite(str(tmp_path / f"{number:04}.png"), grey(number))
    (tmp_path / "0007.png").write_bytes(b"broken")
    (video,), _ = split_inputs([str(tmp_path / "%04d.png")])
    frames = list(SequenceFrames(video, rate=Fraction(30_000, 1001), max_pixels=10_000).frames())
    assert [frame.time for frame in frames] == [0, Fraction(1001, 30_000), Fraction(1001, 15_000)]
    assert [number_of(frame.decode()) for frame in frames[:2]] == [3, 4]
    with pytest.raises(BrokenImageError):
        frames[2].decode()


def test_frames_are_chosen_by_time_and_stride():
    frames = [VideoFrame(number, 1000 + 10 * number, Fraction(1, 100), dict) for number in range(20)]

    def numbers(**how: object) -> list[int]:
        return [frame.number for frame in chosen(iter(frames), **how)]  # type: ignore[arg-type]

    assert numbers() == list(range(20))
    assert numbers(stride=7) == [0, 7, 14]
    assert numbers(start=Fraction(1, 2)) == list(range(5, 20))
    assert numbers(start=Fraction("0.45"), end=Fraction("0.8"), stride=2) == [5, 7]
    assert numbers(start=Fraction(9)) == []
    assert numbers(end=Fraction(11), first=Fraction(0)) == list(range(10))
