"""What the page computes: the same detections as the detector's own, from one run of the network."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from codetr_cli.config.overrides import apply_overrides, parse_settings
from codetr_cli.errors import ConfigError, DatasetError, StoppedError
from codetr_cli.inference.detector import Detector
from codetr_cli.inference.options import TileOptions
from codetr_cli.runtime.signals import StopRequest
from codetr_cli.serving import page_detection
from codetr_cli.serving.page_detection import PageDetector, is_video
from tests.conftest import TINY_TABLE
from tests.inference.fakes import write_checkpoint


def make_detector(folder: Path, *overrides: str) -> PageDetector:
    settings = apply_overrides(parse_settings(TINY_TABLE, where="this test"), list(overrides))
    path = write_checkpoint(folder / "tiny.safetensors", settings)
    return PageDetector(Detector.load(path, device="cpu"))


@pytest.fixture
def page(tmp_path: Path) -> PageDetector:
    return make_detector(tmp_path)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photos/street.png"
    path.parent.mkdir()
    blocks = np.random.default_rng(1).integers(0, 255, (15, 22, 3), dtype=np.uint8)
    Image.fromarray(blocks).resize((220, 150)).save(path)
    return path


def score_of(page: PageDetector, photo: Path, rank: int) -> float:
    """A score that so many detections have at least."""
    return float(page.detector.predict(photo, score=0).scores[rank])


@pytest.mark.parametrize("candidates", ["num_queries", "max_detections"])
@pytest.mark.parametrize("tiles", ["off", "96x80"])
@pytest.mark.parametrize("nms", ["none", "hard", "soft"])
def test_the_detections_are_those_of_the_detector(tmp_path, photo, nms, tiles, candidates):
    page = make_detector(tmp_path, f"test.candidates={candidates}", "test.nms_iou=0.3")
    seen = page.see(photo, replace(page.defaults, tiles=tiles))
    score = score_of(page, photo, 12)
    options = replace(page.defaults, score=score, nms=nms, tiles=tiles, max_dets=15)
    ours = page.chosen(seen, options)
    tile_options = None if tiles == "off" else TileOptions.parse(tiles)
    expected = page.detector.predict(photo, score=score, nms=nms, tiles=tile_options, max_dets=15)
    assert len(expected) > 5
    assert seen.is_tiled == (tiles != "off")
    np.testing.assert_array_equal(ours.boxes, expected.boxes)
    np.testing.assert_array_equal(ours.scores, expected.scores)
    np.testing.assert_array_equal(ours.labels, expected.labels)


def test_another_threshold_of_nms_is_that_of_the_settings(tmp_path, photo):
    page, other = make_detector(tmp_path), make_detector(tmp_path, "test.nms_iou=0.1")
    ours = page.chosen(page.see(photo, page.defaults), replace(page.defaults, score=0, nms_iou=0.1))
    expected = other.detector.predict(photo, score=0)
    np.testing.assert_array_equal(ours.scores, expected.scores)
    assert not np.array_equal(ours.scores, page.detector.predict(photo, score=0).scores)


def test_the_network_runs_once(page, photo, monkeypatch, tmp_path):
    runs = []
    detect = page.detector.detect
    monkeypatch.setattr(page.detector, "detect", lambda *words: runs.append(1) or detect(*words))
    seen = page.see(photo, page.defaults)
    for number, score in enumerate((0.9, 0.1, 0)):
        options = replace(page.defaults, score=score, nms="hard", nms_iou=0.2, classes=("disc",))
        page.write_image(seen, options, tmp_path / str(number))
    assert runs == [1]


def test_classes_and_their_number_are_chosen(page, photo):
    seen = page.see(photo, page.defaults)
    options = replace(page.defaults, score=0)
    names = page.chosen(seen, options).class_names
    chosen = sorted(set(names))[:1]
    kept = page.chosen(seen, replace(options, classes=tuple(chosen)))
    assert set(kept.class_names) == set(chosen)
    assert len(kept) == sum(name in chosen for name in names) < len(names)
    assert len(page.chosen(seen, replace(options, classes=tuple(chosen), max_dets=1))) == 1


def test_files_of_an_image(page, photo, tmp_path):
    seen = page.see(photo, page.defaults)
    score = score_of(page, photo, 4)
    options = replace(page.defaults, score=score)
    image = page.write_image(seen, options, tmp_path / "results/1")
    found = page.detector.predict(photo, score=score)
    assert json.loads(image.coco.read_text()) == found.to_coco(0)
    native = json.loads(image.native.read_text())
    assert (native["file_name"], native["width"], native["height"]) == ("street.png", 220, 150)
    assert [each["category_name"] for each in native["detections"]] == found.class_names
    assert [row[1] for row in image.rows] == found.class_names
    np.testing.assert_allclose([row[3:] for row in image.rows], found.boxes, atol=0.051)
    assert [path.name for path in (image.drawn, image.coco)] == ["street_detections.jpg", "street_coco.json"]
    drawn = cv2.cvtColor(cv2.imread(str(image.drawn)), cv2.COLOR_BGR2RGB)
    assert np.abs(drawn.astype(int) - np.asarray(found.draw(photo)).astype(int)).mean() < 4  # JPEG
    assert image.shown == image.drawn
    assert f"{len(found)} detections" in image.summary
    assert "220 x 150 pixels" in image.summary


def test_a_large_image_is_shown_smaller(page, photo, tmp_path, monkeypatch):
    monkeypatch.setattr(page_detection, "MAX_SHOWN_SIDE", 110)
    image = page.write_image(page.see(photo, page.defaults), replace(page.defaults, score=0), tmp_path / "1")
    assert cv2.imread(str(image.shown)).shape == (75, 110, 3)
    assert cv2.imread(str(image.drawn)).shape == (150, 220, 3)


def test_the_page_shows_what_the_checkpoint_is(page, tmp_path):
    assert page.title == "tiny · tiny.safetensors · 3 classes"
    run = write_checkpoint(tmp_path / "model.safetensors", parse_settings(TINY_TABLE, where="this test"))
    assert PageDetector(Detector.load(run, device="cpu")).title == "tiny · 3 classes"


def test_auxiliary_heads_keep_their_nms(tmp_path, photo):
    page = make_detector(tmp_path, "test.head=atss")
    assert not page.chooses_nms
    options = replace(page.defaults, score=0, nms="none")
    ours, expected = page.chosen(page.see(photo, options), options), page.detector.predict(photo, score=0, max_dets=20)
    np.testing.assert_array_equal(ours.scores, expected.scores)


@pytest.mark.parametrize("nms", ["hard", "soft"])
def test_masks_are_those_of_the_detector(tmp_path, photo, monkeypatch, nms):
    monkeypatch.setattr(page_detection, "LOWEST_MASK_SCORE", 1e-3)
    page = make_detector(tmp_path, "model.mask.kind=refine", "model.mask.dim=16", "model.mask.iou_fc_dim=8")
    assert page.lowest_score == 1e-3
    score = score_of(page, photo, 6)
    ours = page.chosen(page.see(photo, page.defaults), replace(page.defaults, score=score, nms=nms))
    expected = page.detector.predict(photo, score=score, nms=nms)
    np.testing.assert_array_equal(ours.scores, expected.scores)
    np.testing.assert_allclose(ours.mask_scores, expected.mask_scores, rtol=1e-5)
    assert ours.masks == expected.masks


def test_bad_files_are_named_without_their_folder(page, photo):
    broken = photo.with_name("broken.png")
    broken.write_bytes(photo.read_bytes()[:2000])
    with pytest.raises(DatasetError, match=r"cannot read image broken\.png: ") as raised:
        page.see(broken, page.defaults)
    assert str(photo.parent) not in str(raised.value)
    with pytest.raises(ConfigError, match="tiles '12y': give width and height"):
        page.see(photo, replace(page.defaults, tiles="12y"))


def test_too_many_pixels_are_refused(tmp_path, photo):
    path = write_checkpoint(tmp_path / "tiny.safetensors", parse_settings(TINY_TABLE, where="this test"))
    page = PageDetector(Detector.load(path, device="cpu", overrides=["data.max_pixels=10000"]))
    with pytest.raises(
        DatasetError, match=r"220 x 150 pixels.* allow it with `codetr demo --set data.max_pixels=33000`"
    ):
        page.see(photo, page.defaults)


# -------------------------------------------------------------------------------------------------------------- videos


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    pytest.importorskip("av", reason="videos need PyAV")
    from tests.prediction.video.videos import variable_pts, write_video

    (tmp_path / "clips").mkdir()
    noise = np.random.default_rng(2).integers(0, 255, (12, 96, 128, 3), dtype=np.uint8)
    return write_video(tmp_path / "clips/street.mp4", variable_pts(12), picture=lambda number: noise[number])


def no_stop() -> StopRequest:
    return StopRequest(lambda number: None, lambda: None)


def test_a_video_is_drawn(page, clip, tmp_path):
    counts: list[tuple[int, int | None]] = []
    options = replace(page.defaults, score=0, max_dets=2, stride=2)
    video = page.predict_video(
        clip, options, tmp_path / "results/1", stop=no_stop(), progress=lambda *count: counts.append(count)
    )
    lines = [json.loads(line) for line in video.lines.read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(0, 2 * len(lines), 2))
    assert all(len(line["detections"]) == 2 for line in lines)
    assert sum(row[1] for row in video.rows) == 2 * len(lines)
    assert video.drawn.stat().st_size > 500
    assert [count for count, _ in counts] == list(range(1, len(lines) + 1))
    assert str(clip.parent) not in video.summary
    assert f"{len(lines)} frames of street.mp4" in video.summary
    assert sorted(path.suffix for path in (tmp_path / "results/1").iterdir() if path.name[0] != ".") == [
        ".jsonl",
        ".mp4",
    ]


def test_classes_and_nms_are_chosen_in_a_video(page, clip, tmp_path):
    options = replace(page.defaults, score=0, stride=4)
    what = {"stop": no_stop(), "progress": lambda done, total: None}
    every = page.predict_video(clip, options, tmp_path / "1", **what)
    name = every.rows[0][0]
    one = page.predict_video(clip, replace(options, classes=(name,)), tmp_path / "2", **what)
    assert one.rows == [row for row in every.rows if row[0] == name]
    other = page.predict_video(clip, replace(options, nms="hard", nms_iou=0.1), tmp_path / "3", **what)
    assert other.rows != every.rows


def test_a_video_stops_on_request(page, clip, tmp_path):
    stop = no_stop()

    def progress(done: int, total: int | None) -> None:
        stop.number = 2

    with pytest.raises(StoppedError):
        page.predict_video(clip, page.defaults, tmp_path / "1", stop=stop, progress=progress)


def test_a_file_that_is_no_video(page, tmp_path):
    pytest.importorskip("av", reason="videos need PyAV")
    path = tmp_path / "fake.mp4"
    path.write_text("hello")
    with pytest.raises(DatasetError, match="is not a video"):
        page.predict_video(path, page.defaults, tmp_path / "1", stop=no_stop(), progress=lambda done, total: None)
    assert is_video(path)
    assert not is_video(tmp_path / "a.jpg")
