from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codetr_cli.images.regions import ArrayRegions
from codetr_cli.inference import fonts
from codetr_cli.inference.draw_options import DrawOptions
from codetr_cli.inference.prediction import Prediction
from codetr_cli.prediction.ground_truth import ImageTruth
from codetr_cli.prediction.montage import GridShape
from codetr_cli.prediction.picture_files import MAX_DRAWN_SIDE
from codetr_cli.prediction.pictures import PictureOptions, Pictures
from codetr_cli.prediction.sources.input_list import InputImage
from codetr_cli.result_files import RECORD_NAME

IMAGE = InputImage(Path("a.jpg"), "a.jpg", 1)


@dataclass(frozen=True)
class Place:
    folder: Path

    @property
    def path(self) -> Path:
        return self.folder / ".parts"


@dataclass(frozen=True)
class Parts:
    """An image that is read in parts."""

    size: tuple[int, int]

    def read(self, left, top, width, height):
        return np.zeros((height, width, 3), np.uint8)

    def reduced(self, height, width):
        return self.read(0, 0, width, height)


class Truth:
    """An object like the only detection, in images of one size."""

    def __init__(self, size):
        self.size = size

    def find(self, image):
        everything = np.ones(1, bool)
        boxes = np.array([[0, 0, self.size[1] / 2, self.size[0] / 2]], float)
        return ImageTruth(boxes, np.zeros(1, np.int64), ["a"], ~everything, everything, everything, self.size)

    def notes(self, class_names):
        return []


def prediction(size):
    box = np.array([[0, 0, size[1] / 2, size[0] / 2]], np.float32)
    return Prediction(box, np.array([0.9], np.float32), np.array([0]), np.array([1]), ["a"], size, classes=["a"])


@pytest.fixture
def make(tmp_path):
    (tmp_path / ".parts").mkdir()

    def make(options, **more):
        return Pictures(
            options=options, place=Place(tmp_path), names=[Path("a.png")], class_names=["a"], request="r" * 32, **more
        )

    return make


def test_an_image_in_memory_is_drawn_at_its_size(make, tmp_path):
    regions = ArrayRegions(np.zeros((300, 400, 3), np.uint8))
    pictures = make(PictureOptions())
    assert pictures.make(0, IMAGE, regions, prediction((300, 400))) == {"drawn": str(tmp_path / "a.png")}
    with Image.open(tmp_path / "a.png") as drawn:
        assert drawn.size == (400, 300)
    assert pictures.is_complete(0)
    assert (tmp_path / RECORD_NAME).is_file()
    (tmp_path / "a.png").unlink()
    assert not pictures.is_complete(0)


@pytest.mark.parametrize("against", [False, True])
def test_an_image_that_is_read_in_parts_is_reduced(make, tmp_path, against):
    size = (4000, 12_000)
    pictures = make(PictureOptions(grid=GridShape.parse("1")), truth=Truth(size) if against else None)
    facts = pictures.make(0, IMAGE, Parts(size), prediction(size))
    assert facts.get("against") == ({"hits": 1, "misses": 0, "false_alarms": 0} if against else None)
    with Image.open(tmp_path / "a.png") as drawn:
        assert drawn.width == pytest.approx(MAX_DRAWN_SIDE * (2 if against else 1), rel=0.02)
    assert pictures.is_complete(0)
    assert pictures.write_montage([IMAGE]) == ["grid.jpg"]
    assert (tmp_path / "grid.jpg").is_file()
    assert not replace(pictures, request="s" * 32).is_complete(0), "drawn for another request"


def test_an_image_of_another_size_than_annotated_is_not_compared(make, tmp_path):
    regions = ArrayRegions(np.zeros((300, 400, 3), np.uint8))
    facts = make(PictureOptions(), truth=Truth((30, 40))).make(0, IMAGE, regions, prediction((300, 400)))
    assert facts["against"] is None
    with Image.open(tmp_path / "a.png") as drawn:
        assert drawn.size == (400, 300)


def test_each_option_makes_another_request(tmp_path):
    annotations = tmp_path / "truth.json"
    annotations.write_text("{}")
    variants = [
        PictureOptions(),
        PictureOptions(draw=False),
        PictureOptions(grid=GridShape.parse("4")),
        PictureOptions(drawing=DrawOptions(quality=50)),
        PictureOptions(against=annotations),
        PictureOptions(against=annotations, view="overlay"),
        PictureOptions(against=tmp_path),
    ]
    requests = [repr(options.request()) for options in variants]
    annotations.write_text("{ }")
    requests.append(repr(PictureOptions(against=annotations).request()))
    assert len(set(requests)) == len(requests)
    hidden = PictureOptions(draw=False, drawing=DrawOptions(quality=50))
    assert hidden.request() == PictureOptions(draw=False).request(), "nothing is drawn"


def test_names_without_a_font_are_a_warning(make, monkeypatch):
    monkeypatch.setattr(fonts, "_font_for", lambda text: None)
    assert "class name (a)" in make(PictureOptions()).warnings()[0]
    assert make(PictureOptions(draw=False)).warnings() == []
    assert make(PictureOptions(drawing=DrawOptions(labels="none"))).warnings() == []
