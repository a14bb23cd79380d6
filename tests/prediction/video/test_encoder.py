from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from codetr_cli.errors import ResourceError
from codetr_cli.prediction.video import encoder
from codetr_cli.prediction.video.encoder import VideoFormat, choose_codec, join_pieces, open_piece
from tests.prediction.video.videos import TIME_BASE, av, grey, read_video, variable_pts


def write_pieces(folder: Path, pts: list[int], *, cut: int, video: VideoFormat, picture=grey) -> list[Path]:
    pieces = []
    for index, start in enumerate(range(0, len(pts), cut)):
        pieces.append(folder / f"{index}.piece")
        with open_piece(pieces[-1], video) as piece:
            for number in range(start, min(start + cut, len(pts))):
                piece.add(picture(number), pts[number])
    return pieces


@pytest.mark.parametrize(
    "time_base",
    [TIME_BASE, Fraction(1001, 30_000), Fraction(1, 1000), Fraction(1, 90_000), Fraction(1, 1_000_000_000)],
    ids=str,
)
def test_joined_pieces_have_all_frames_with_their_timestamps(tmp_path: Path, time_base: Fraction):
    pts = [3 + at for at in variable_pts(25)]
    pieces = write_pieces(tmp_path, pts, cut=9, video=VideoFormat((48, 64), time_base, Fraction(30)))
    join_pieces(pieces, tmp_path / "a.mp4", time_base)
    times, numbers, facts = read_video(tmp_path / "a.mp4")
    assert times == [at * time_base for at in pts]
    assert numbers == list(range(25))
    assert facts == ("h264" if choose_codec() != "mpeg4" else "mpeg4", (48, 64), 0)


def test_a_codec_without_fine_timestamps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """MPEG-4 has at most 65,535 units in a second; packets have others."""
    monkeypatch.setattr(encoder, "choose_codec", lambda: "mpeg4")
    pts = variable_pts(12)
    pieces = write_pieces(tmp_path, pts, cut=5, video=VideoFormat((48, 64), Fraction(1, 90_000), Fraction(30)))
    join_pieces(pieces, tmp_path / "a.mp4", Fraction(1, 90_000))
    times, _, facts = read_video(tmp_path / "a.mp4")
    assert times == [at * Fraction(1, 90_000) for at in pts]
    assert facts[0] == "mpeg4"


@pytest.mark.parametrize("size", [(47, 63), (1, 1), (48, 65)])
def test_odd_sides_become_even(tmp_path: Path, size: tuple[int, int]):
    video = VideoFormat(size, TIME_BASE, Fraction(30))
    pieces = write_pieces(tmp_path, [0, 500], cut=2, video=video, picture=lambda number: grey(number, size))
    join_pieces(pieces, tmp_path / "a.mp4", TIME_BASE)
    height, width = read_video(tmp_path / "a.mp4")[2][1]
    assert (height, width) == (size[0] + size[0] % 2, size[1] + size[1] % 2)


def test_frames_of_another_size_are_scaled_into_the_video(tmp_path: Path):
    sizes = [(48, 64), (96, 128), (64, 48), (20, 20)]
    video = VideoFormat((48, 64), TIME_BASE, Fraction(30))
    pieces = write_pieces(
        tmp_path, [0, 500, 1000, 1500], cut=9, video=video, picture=lambda number: grey(30, sizes[number])
    )
    join_pieces(pieces, tmp_path / "a.mp4", TIME_BASE)
    with av.open(str(tmp_path / "a.mp4")) as container:
        means = [frame.to_ndarray(format="rgb24")[:, 32].mean() for frame in container.decode(video=0)]
    assert len(means) == 4
    assert np.abs(np.array(means) - 153).max() < 10


@pytest.mark.parametrize("size", [(48, 64), (720, 64)])
def test_colours_are_kept(tmp_path: Path, size: tuple[int, int]):
    red = np.zeros((*size, 3), np.uint8)
    red[:] = (200, 40, 60)
    pieces = write_pieces(
        tmp_path, [0], cut=1, video=VideoFormat(size, TIME_BASE, Fraction(30)), picture=lambda number: red
    )
    join_pieces(pieces, tmp_path / "a.mp4", TIME_BASE)
    with av.open(str(tmp_path / "a.mp4")) as container:
        frame = next(container.decode(video=0))
        assert frame.colorspace == (1 if size[0] >= 720 else 6)
        colours = {"src_colorspace": "ITU709"} if size[0] >= 720 else {"src_colorspace": "ITU601"}
        pixels = frame.to_ndarray(format="rgb24", **colours)
    assert np.abs(pixels[20, 20].astype(int) - (200, 40, 60)).max() <= 6


def test_a_build_without_encoders(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(encoder, "_CODECS", {"no_such_codec": {}})
    choose_codec.cache_clear()
    with pytest.raises(ResourceError, match="--no-draw"):
        choose_codec()
    choose_codec.cache_clear()


def test_a_folder_that_is_gone(tmp_path: Path):
    with (
        pytest.raises(ResourceError, match="cannot write"),
        open_piece(tmp_path / "gone" / "a.piece", VideoFormat((48, 64), TIME_BASE, Fraction(30))) as piece,
    ):
        piece.add(grey(0), 0)
