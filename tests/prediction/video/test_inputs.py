from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from codetr_cli.errors import ConfigError, DatasetError
from codetr_cli.prediction.video.inputs import parse_rate, parse_time, split_inputs
from codetr_cli.result_files import write_result


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"x")


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_videos_and_other_words_are_separated():
    touch("a.MP4", "b.jpg", "c/d.mkv", "e.mp4/f.jpg")
    words = [
        "a.MP4",
        "b.jpg",
        "c",
        "c/d.mkv",
        "e.mp4",
        "camera:0",
        "rtsp://u:p@host/x",
        "https://host/y.m3u8",
        "s3://z/a",
    ]
    videos, others = split_inputs(words)
    assert [(video.kind, video.name) for video in videos] == [
        *(("file", "a"), ("file", "d"), ("camera", "camera_0"), ("url", "host_x"), ("url", "host_y"))
    ]
    assert others == ["b.jpg", "c", "e.mp4", "s3://z/a"]
    assert videos[3].label == "rtsp://***@host/x"


def test_names_of_results_differ_on_any_file_system():
    touch("a/x.mp4", "b/X.mkv", "x.mov", "long/" + "y" * 250 + ".avi")
    videos, _ = split_inputs(["a/x.mp4", "b/X.mkv", "x.mov", "a/x.mp4", "long/" + "y" * 250 + ".avi"])
    assert [video.name for video in videos[:3]] == ["x", "X_2", "x_3"]
    assert len(videos) == 4
    assert len(f"{videos[3].name}.jsonl") <= 255


def test_a_pattern_gives_videos_that_codetr_has_not_drawn():
    touch("v/a.mp4", "v/b.mp4", "v/c.jpg")
    with write_result(Path("v/drawn.mp4"), by="predict") as temporary:
        temporary.write_bytes(b"drawn")
    videos, _ = split_inputs(["v/*.mp4"])
    assert [video.text for video in videos] == ["v/a.mp4", "v/b.mp4"]
    with pytest.raises(DatasetError, match="no video matches"):
        split_inputs(["w/*.mp4"])


def test_image_sequences_are_in_the_order_of_their_numbers():
    touch("f/im9.jpg", "f/im10.jpg", "f/im08.jpg", "f/000002.png", "f/000010.png", "f/1.png", "f/1234567.png")
    (six, any_) = split_inputs(["f/%06d.png", "f/im%d.jpg"])[0]
    assert [path.name for path in six.files] == ["000002.png", "000010.png", "1234567.png"]
    assert [path.name for path in any_.files] == ["im9.jpg", "im10.jpg"]
    assert (six.name, any_.name) == ("f", "im")
    with pytest.raises(DatasetError, match="there is no image"):
        split_inputs(["f/%03d.jpg"])


@pytest.mark.parametrize("name", ["gone.mp4", "folder.mp4x/gone.mkv"])
def test_a_video_that_is_gone(name: str):
    with pytest.raises(DatasetError, match="No such file"):
        split_inputs([name])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90.25", Fraction(361, 4)), ("1:30", 90), ("0:01:30.5", Fraction(181, 2)), ("10:00:00", 36_000)],
)
def test_times(text: str, seconds: Fraction):
    assert parse_time(text, "--start") == seconds


@pytest.mark.parametrize("text", ["", "-1", "1:60:00", "a", "1:2:3:4", "1e3", "nan", "1:"])
def test_what_is_no_time(text: str):
    with pytest.raises(ConfigError, match="--start"):
        parse_time(text, "--start")


def test_rates():
    assert parse_rate("25") == 25
    assert parse_rate("29.97") == Fraction(2997, 100)
    assert parse_rate("30000/1001") == Fraction(30_000, 1001)
    for text in ("0", "-1", "1/0", "a", "1001", "9" * 100):
        with pytest.raises(ConfigError, match="--fps"):
            parse_rate(text)
