"""What happens on the page of `codetr demo`, and the components that show it."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codetr_cli.errors import DatasetError, ResourceError
from codetr_cli.inference.detector import Detector
from codetr_cli.serving import page as page_module
from codetr_cli.serving.page import OpenFile, Page, close, find_examples, import_gradio
from codetr_cli.serving.page_detection import PageDetector
from tests.forked import run_forked
from tests.inference.fakes import CLASS_NAMES, write_checkpoint


@pytest.fixture
def detector(tmp_path: Path, tiny_settings) -> PageDetector:
    return PageDetector(Detector.load(write_checkpoint(tmp_path / "tiny.safetensors", tiny_settings), device="cpu"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("b.png", "a.png"):
        pixels = np.random.default_rng(1).integers(0, 255, (90, 120, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


@pytest.fixture
def page(detector: PageDetector, tmp_path: Path) -> Page:
    return Page(detector, tmp_path / "results")


def test_a_picture_is_detected_when_it_is_opened(page, detector, photos):
    opened, shown = page.open_file(photos / "a.png", replace(detector.defaults, score=0))
    assert opened is not None
    assert not shown.failed
    assert len(shown.rows) == len(detector.detector.predict(photos / "a.png", score=0))
    assert all(path.is_file() for path in (shown.picture, *shown.downloads))
    assert page.open_file(None, detector.defaults) == (None, page_module.Shown(text=page_module.NOTHING_OPEN))


def test_another_score_does_not_run_the_network(page, detector, photos, monkeypatch):
    opened, first = page.open_file(photos / "a.png", replace(detector.defaults, score=0))
    monkeypatch.setattr(detector.detector, "detect", lambda *words: pytest.fail("the network runs again"))
    shown = page.refine(opened, replace(detector.defaults, score=1, nms="hard"))
    assert shown is not None
    assert list(shown.rows) == []
    assert "0 detections" in shown.text
    assert shown.picture != first.picture  # a browser keeps files by their name
    assert page.refine(None, detector.defaults) is None


def test_other_tiles_run_the_network_again(page, detector, photos):
    opened, _ = page.open_file(photos / "a.png", detector.defaults)
    shown = page.choose_tiles(opened, replace(detector.defaults, tiles="64"))
    assert shown is not None
    assert "in tiles" in shown.text
    assert page.choose_tiles(None, detector.defaults) is None


def test_a_video_waits_for_the_button(page, detector, tmp_path):
    opened, shown = page.open_file(tmp_path / "street.mp4", detector.defaults)
    assert shown.text == "street.mp4 is a video: press Detect to run the network on its frames."
    assert page.choose_tiles(opened, detector.defaults) is None
    assert page.refine(opened, detector.defaults) is None
    assert opened.stop.number is None
    page.stop(opened)
    assert opened.stop.number is not None
    opened.stop.number = None
    page.stop_all()
    assert opened.stop.number is not None


def test_a_video_is_detected(page, detector, tmp_path):
    pytest.importorskip("av", reason="videos need PyAV")
    from tests.prediction.video.videos import variable_pts, write_video

    opened, _ = page.open_file(write_video(tmp_path / "street.mp4", variable_pts(5)), detector.defaults)
    counts = []
    shown = page.detect(opened, replace(detector.defaults, score=0), lambda *count: counts.append(count))
    assert not shown.failed, shown.text
    assert shown.video is not None
    assert shown.downloads == (shown.video.with_suffix(".jsonl"), None, shown.video)
    assert [count for count, _ in counts] == [1, 2, 3, 4, 5]
    shown = page.detect(opened, replace(detector.defaults, score=0), lambda *count: page.stop(opened))
    assert (shown.text, shown.failed) == ("Stopped.", False)


def test_errors_are_shown_without_folders(page, detector, photos, monkeypatch, caplog):
    (photos / "text.png").write_text("hello")
    opened, shown = page.open_file(photos / "text.png", detector.defaults)
    assert shown.failed
    assert shown.text.startswith("cannot read image text.png: ")
    assert str(photos) not in shown.text
    assert shown.picture is None
    assert page.refine(opened, detector.defaults) is None

    (photos / "a.png").rename(photos / "c.png")
    opened, _ = page.open_file(photos / "c.png", detector.defaults)
    (photos / "c.png").unlink()
    shown = page.refine(opened, detector.defaults)
    assert shown is not None
    assert shown.failed
    assert "c.png: no such file" in shown.text

    def fail(*words):
        raise MemoryError("out of memory")

    monkeypatch.setattr(detector, "see", fail)
    assert "not enough memory" in page.open_file(photos / "b.png", detector.defaults)[1].text
    monkeypatch.setattr(detector, "see", lambda *words: 1 // 0)
    with caplog.at_level(logging.ERROR):
        shown = page.open_file(photos / "b.png", detector.defaults)[1]
    assert shown.failed
    assert shown.text.startswith("unexpected ZeroDivisionError")
    assert "Traceback" in caplog.text


def test_results_do_not_pile_up(page, detector, photos):
    opened, _ = page.open_file(photos / "a.png", detector.defaults)
    for score in (0.1, 0.2, 0.3, 0.4):
        page.refine(opened, replace(detector.defaults, score=score))
    assert [path.name for path in sorted(opened.folder.iterdir())] == ["3", "4"]
    close(opened)
    assert not opened.folder.exists()
    close(None)


def test_folders_of_results_cannot_be_guessed(page, detector, photos):
    first, second = (page.open_file(photos / "a.png", detector.defaults)[0] for _ in range(2))
    assert first.folder != second.folder
    assert min(len(each.folder.name) for each in (first, second)) >= 20


# ------------------------------------------------------------------------------------------------------------ examples


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_examples_are_the_pictures_of_a_folder(photos, tmp_path, caplog, page, detector):
    (photos / "broken.png").write_bytes((photos / "a.png").read_bytes()[:200])
    (photos / "more").mkdir()
    (photos / "a.png").rename(photos / "more/a.png")
    with caplog.at_level(logging.WARNING):
        found = find_examples(photos, tmp_path / "thumbnails")
    assert [each.path.name for each in found] == ["b.png", "a.png"]
    assert "cannot read image" in caplog.text
    assert "broken.png" in caplog.text
    assert all(size_of(each.thumbnail) == (120, 90) for each in found)
    shown = Page(detector, tmp_path / "results", found).open_example(1, detector.defaults)[1]
    assert not shown.failed


def test_examples_may_be_videos(tmp_path):
    pytest.importorskip("av", reason="videos need PyAV")
    from tests.prediction.video.videos import variable_pts, write_video

    (tmp_path / "clips").mkdir()
    write_video(tmp_path / "clips/street.mp4", variable_pts(3))
    (tmp_path / "clips/fake.mp4").write_text("hello")
    (found,) = find_examples(tmp_path / "clips", tmp_path / "thumbnails")
    assert found.path.name == "street.mp4"
    assert size_of(found.thumbnail) == (64, 48)


def test_there_are_not_too_many_examples(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, "MAX_EXAMPLES", 1)
    assert len(find_examples(photos, tmp_path / "thumbnails")) == 1


def test_a_folder_without_examples(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="contains no picture or video"):
        find_examples(tmp_path / "empty", tmp_path / "thumbnails")


# ---------------------------------------------------------------------------------------------------------- components


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ResourceError, match=r'pip install "codetr-cli\[demo\]"'):
        import_gradio()


COMPONENTS = """
import json, sys
from pathlib import Path
from codetr_cli.inference.detector import Detector
from codetr_cli.serving.page import Page, find_examples, import_gradio
from codetr_cli.serving.page_detection import PageDetector

checkpoint, photos, folder = sys.argv[1:]
detector = PageDetector(Detector.load(checkpoint, device="cpu"))
blocks = Page(detector, Path(folder), find_examples(Path(photos), Path(folder, "examples"))).build(import_gradio())
functions = [(each.concurrency_id, each.concurrency_limit) for each in blocks.fns.values()]
found = {"config": blocks.get_config_file(), "functions": functions, "analytics": blocks.analytics_enabled}
print(json.dumps(found, default=str))
"""


@pytest.fixture
def built(tmp_path: Path, photos: Path, tiny_settings) -> dict:
    """What Gradio makes of the page, in a process of its own: Gradio opens event loops that it does not close."""
    if find_spec("gradio") is None:
        pytest.skip("the extra [demo] is not installed")
    checkpoint, folder = write_checkpoint(tmp_path / "tiny.safetensors", tiny_settings), tmp_path / "results"
    gradio = {"GRADIO_TEMP_DIR": str(folder), "GRADIO_ANALYTICS_ENABLED": "False"}
    done = run_forked("-c", COMPONENTS, checkpoint, photos, folder, **gradio)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_components(built):
    labels = {each["props"].get("label"): each["props"] for each in built["config"]["components"]}
    assert labels["Minimum score"]["value"] == 0.3
    assert (labels["NMS"]["value"], labels["IoU threshold of NMS"]["value"]) == ("soft", 0.8)
    assert [choice[0] for choice in labels["Classes"]["choices"]] == CLASS_NAMES
    assert len(labels["Examples"]["value"]) == 2
    assert built["analytics"] is False
    assert {each["api_visibility"] for each in built["config"]["dependencies"]} == {"private"}
    # The detector is used by one request after the other.
    assert [limit for name, limit in built["functions"] if name == "network"] == [1, 1, 1, 1]


def test_one_open_file_is_not_another(tmp_path):
    assert OpenFile(tmp_path, tmp_path) != OpenFile(tmp_path, tmp_path)
