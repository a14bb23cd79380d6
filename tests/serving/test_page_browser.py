"""The page of `codetr demo` in a headless browser: needs the extra [demo], Playwright and Chromium."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from codetr_cli.config.overrides import parse_settings
from codetr_cli.inference.detector import Detector
from tests.conftest import REPOSITORY, TINY_TABLE
from tests.inference.fakes import write_checkpoint

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
pytest.importorskip("gradio", reason="the extra [demo] is not installed")  # takes seconds to import: last
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Served:
    """A page of a tiny network, and folders with pictures and a video."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.photos = folder, folder / "photos"
        self.photos.mkdir()
        for number in range(3):
            blocks = np.random.default_rng(number).integers(0, 255, (12, 16, 3), dtype=np.uint8)
            Image.fromarray(blocks).resize((160, 120)).save(self.photos / f"photo{number}.png")
        self.checkpoint = write_checkpoint(folder / "tiny.safetensors", parse_settings(TINY_TABLE, where="this test"))
        self.detector = Detector.load(self.checkpoint, device="cpu")

    def start(self) -> None:
        words = ["demo", self.checkpoint, "--port", "0", "--device", "cpu", "--json", "--max-upload", "1"]
        self.server = subprocess.Popen(
            [sys.executable, "-m", "codetr_cli", *map(str, words), "--examples", str(self.photos)],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            text=True,
        )
        text = ""
        while not text.rstrip().endswith("}"):
            line = self.server.stdout.readline()
            assert line, "the server has ended"
            text += line
        self.address = json.loads(text)["address"]

    def stop(self) -> None:
        self.server.send_signal(signal.SIGINT)
        assert self.server.wait(60) == 130
        self.server.stdout.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("page"))
    served.start()
    yield served
    served.stop()


class Tab:
    """A browser tab with the page."""

    def __init__(self, page: Any, address: str) -> None:
        self.page, self.address = page, address
        self.requests: list[str] = []
        self.errors: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(address)
        page.wait_for_selector("text=Minimum score")

    @property
    def status(self) -> str:
        return self.page.inner_text(".codetr-status")

    def wait_for(self, pattern: str, seconds: float = 60) -> str:
        end = time.monotonic() + seconds
        while not re.search(pattern, self.status):
            assert time.monotonic() < end, f"{pattern} does not come: {self.status}"
            time.sleep(0.05)
        return self.status

    def drop(self, path: Path) -> None:
        clear = self.page.query_selector("button[aria-label='Clear']")
        if clear:
            clear.click()
            self.wait_for("Drop a picture")
        self.page.set_input_files("input[type=file]", str(path))

    def set_score(self, score: float) -> None:
        number = self.page.get_by_label("number input for Minimum score")
        number.fill(str(score))
        number.press("Enter")

    def download(self, label: str, folder: Path) -> Path:
        with self.page.expect_download() as started:
            self.page.get_by_text(label).click()
        path = folder / started.value.suggested_filename
        started.value.save_as(path)
        return path


@pytest.fixture
def tab(served: Served) -> Iterator[Tab]:
    with playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = Tab(browser.new_page(viewport={"width": 1280, "height": 900}), served.address)
        yield tab
        browser.close()
    own = (served.address, "data:", "blob:")
    assert [url for url in tab.requests if not url.startswith(own)] == []
    assert tab.errors == []


def test_a_picture(tab, served, tmp_path):
    photo = served.photos / "photo1.png"
    tab.drop(photo)
    tab.wait_for("detections? .*160 x 120 pixels")
    tab.set_score(0.01)
    expected = served.detector.predict(photo, score=0.01)
    tab.wait_for(f"^{len(expected)} detections")
    assert json.loads(tab.download("Download COCO", tmp_path).read_text()) == expected.to_coco(0)
    native = tab.download("Download JSON", tmp_path)
    assert native.name == "photo1.json"
    assert json.loads(native.read_text())["file_name"] == "photo1.png"
    with Image.open(tab.download("Download drawn", tmp_path)) as drawn:
        assert drawn.size == (160, 120)
    tab.page.get_by_label("hard", exact=True).check()
    expected = served.detector.predict(photo, score=0.01, nms="hard")
    tab.wait_for(f"^{len(expected)} detections")
    tiles = tab.page.get_by_label("Tiles")
    tiles.click()
    tiles.fill("64")
    tiles.press("Enter")
    tab.wait_for("in tiles")


def test_two_tabs_are_apart(tab, served):
    other = Tab(tab.page.context.browser.new_page(), served.address)
    for each, name in ((tab, "photo0.png"), (other, "photo2.png")):
        each.page.set_input_files("input[type=file]", str(served.photos / name))
    for each in (tab, other):
        each.wait_for("160 x 120 pixels")
    other.set_score(0.01)
    other.wait_for(f"^{len(served.detector.predict(served.photos / 'photo2.png', score=0.01))} detections")
    assert tab.status.startswith("0 detections")


def test_an_example(tab):
    tab.page.locator("button.thumbnail-item").nth(2).click()
    tab.wait_for("160 x 120 pixels")


def test_a_video(tab, served, tmp_path):
    pytest.importorskip("av", reason="videos need PyAV")
    from tests.prediction.video.videos import variable_pts, write_video

    tab.drop(write_video(tmp_path / "clip.mp4", variable_pts(6)))
    tab.wait_for("press Detect")
    tab.set_score(0)
    tab.page.get_by_role("button", name="Detect").click()
    tab.wait_for("6 frames of clip.mp4")
    tab.page.wait_for_selector("video", state="visible")
    assert tab.download("Download drawn", tmp_path).name == "clip_detections.mp4"
    assert len(tab.download("Download JSON", tmp_path).read_text().splitlines()) == 6


def test_files_that_cannot_be_used(tab, served, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes((served.photos / "photo0.png").read_bytes()[:300])
    tab.drop(broken)
    assert "broken.png" in tab.wait_for("^cannot read image")
    assert tab.page.get_attribute(".codetr-status", "role") == "alert"
    text = tmp_path / "clip.mp4"
    text.write_text("hello")
    tab.drop(text)
    tab.wait_for("press Detect")
    tab.page.get_by_role("button", name="Detect").click()
    tab.wait_for("clip.mp4 is not a video")
    large = tmp_path / "large.jpg"
    large.write_bytes(bytes(2_000_000))
    tab.drop(large)
    tab.page.wait_for_selector("text=/maximum allowed size/")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(tab, width, scheme):
    tab.page.emulate_media(color_scheme=scheme)
    tab.page.set_viewport_size({"width": width, "height": 800})
    tab.page.locator("button.thumbnail-item").first.click()
    tab.wait_for("160 x 120 pixels")
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    results, settings = (
        tab.page.locator(place).first.bounding_box() for place in (".codetr-results", "text=Minimum score")
    )
    assert (results["x"] > settings["x"]) if width > 800 else (results["y"] < settings["y"])
