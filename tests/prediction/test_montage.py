from __future__ import annotations

import numpy as np
import pytest

from codetr_cli.errors import ConfigError
from codetr_cli.images.regions import ArrayRegions
from codetr_cli.inference.draw_options import DrawOptions
from codetr_cli.inference.palette import class_colour
from codetr_cli.inference.prediction import Prediction
from codetr_cli.inference.rle import encode_crop
from codetr_cli.prediction.montage import BACKGROUND, GridShape, draw_montage, draw_thumbnail, read_thumbnail
from codetr_cli.prediction.picture_files import write_picture


@pytest.mark.parametrize(
    ("text", "shape"),
    [("1", (1, 1, 1)), ("9", (3, 3, 9)), ("10", (3, 4, 10)), ("2x5", (2, 5, 10)), ("1X7", (1, 7, 7))],
)
def test_shapes(text, shape):
    assert GridShape.parse(text) == GridShape(*shape)


@pytest.mark.parametrize("text", ["", "0", "0x5", "-1", "x", "2x", "2x3x4", "401", "9999x9999", "3.5", "9" * 1000])
def test_other_texts_are_refused(text):
    with pytest.raises(ConfigError, match="--grid"):
        GridShape.parse(text)


def prediction(size, *, masks=False):
    height, width = size
    box = np.array([[width * 0.25, height * 0.25, width * 0.75, height * 0.75]], np.float32)
    mask = np.zeros(size, bool)
    mask[height // 4 : height * 3 // 4, width // 4 : width * 3 // 4] = True
    codes = [encode_crop(mask, 0, 0, size)] if masks else None
    return Prediction(box, np.array([0.9]), np.array([0]), np.array([1]), ["thing"], size, masks=codes)


@pytest.mark.parametrize("masks", [False, True])
def test_thumbnails_have_lines_of_their_own_size(masks):
    image = ArrayRegions(np.zeros((900, 1200, 3), np.uint8))
    small = draw_thumbnail(image, prediction((900, 1200), masks=masks), DrawOptions(), 240)
    assert small.shape == (180, 240, 3)
    assert tuple(small[90, 60]) == class_colour("thing")
    assert (small[90, 120] > 0).any() == masks
    tiny = draw_thumbnail(ArrayRegions(np.zeros((20, 30, 3), np.uint8)), prediction((20, 30)), DrawOptions(), 240)
    assert tiny.shape == (20, 30, 3), "not enlarged"


def test_a_montage_has_every_picture_and_caption():
    red, blue = np.full((60, 200, 3), (255, 0, 0), np.uint8), np.full((200, 100, 3), (0, 0, 255), np.uint8)
    shape = GridShape(2, 2, 4)
    picture = draw_montage([("a.jpg", red), ("folder/" * 50 + "b.jpg", blue), ("c.jpg", None)], shape)
    assert (picture == (255, 0, 0)).all(axis=2).sum() == red[..., 0].size
    assert (picture == (0, 0, 255)).all(axis=2).sum() == blue[..., 0].size
    assert tuple(picture[0, 0]) == BACKGROUND
    assert picture.shape[1] < 3 * 200
    assert (draw_montage([("c.jpg", None)], shape) != 255).any(), "what is missing is named"


def test_few_images_do_not_leave_empty_rows():
    red = np.full((200, 200, 3), (255, 0, 0), np.uint8)
    one = draw_montage([("a.jpg", red)], GridShape(5, 5, 25))
    assert max(one.shape) < 300
    assert draw_montage([], GridShape(2, 2, 4)).size


def test_the_largest_montage_has_a_bounded_size():
    shape = GridShape.parse("400")
    cell = np.zeros((shape.cell_px, shape.cell_px, 3), np.uint8)
    assert max(draw_montage([("a", cell)] * 400, shape).shape) < 4000


def test_a_broken_thumbnail_is_none(tmp_path):
    write_picture(tmp_path / "1.tmp", np.zeros((5, 6, 3), np.uint8), ".png", 100)
    assert read_thumbnail(tmp_path / "1.tmp").shape == (5, 6, 3)
    (tmp_path / "2.tmp").write_bytes((tmp_path / "1.tmp").read_bytes()[:30])
    assert read_thumbnail(tmp_path / "2.tmp") is None
    assert read_thumbnail(tmp_path / "3.tmp") is None
