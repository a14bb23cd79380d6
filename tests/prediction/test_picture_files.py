from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from codetr_cli.images.regions import ArrayRegions
from codetr_cli.inference.draw_options import DrawOptions
from codetr_cli.inference.prediction import Prediction
from codetr_cli.prediction import picture_files
from codetr_cli.prediction.picture_files import drawn_on, encode_picture, write_picture


@pytest.fixture
def picture():
    rng = np.random.default_rng(0)
    return np.asarray(Image.fromarray(rng.integers(0, 255, (8, 12, 3), dtype=np.uint8)).resize((120, 80)))


@pytest.mark.parametrize(("suffix", "kind", "error"), [(".JPG", "JPEG", 6), (".png", "PNG", 0), (".webp", "WEBP", 6)])
def test_a_written_picture_is_read_back(tmp_path, picture, suffix, kind, error):
    write_picture(tmp_path / "temporary", picture, suffix, 92)
    with Image.open(tmp_path / "temporary") as image:
        assert image.format == kind
        found = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(found - picture).mean() <= error


@pytest.mark.parametrize("suffix", [".jpeg", ".webp"])
def test_lower_quality_makes_smaller_files(picture, suffix):
    sizes = [len(encode_picture(picture, suffix, quality)) for quality in (1, 60, 100)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2] / 3


def test_pictures_too_large_for_their_format_are_reduced():
    wide = np.zeros((4, 20_000, 3), np.uint8)
    with Image.open(io.BytesIO(encode_picture(wide, ".webp", 80))) as image:
        assert image.size == (picture_files.SIDE_LIMITS[".webp"], 3)
    with Image.open(io.BytesIO(encode_picture(wide, ".png", 80))) as image:
        assert image.size == (20_000, 4)


class InParts:
    """An image that is not in memory."""

    def __init__(self, pixels):
        self.image, self.size, self.sizes = ArrayRegions(pixels), pixels.shape[:2], []

    def read(self, left, top, width, height):
        raise AssertionError("not needed")

    def reduced(self, height, width):
        self.sizes.append((height, width))
        return self.image.reduced(height, width)


def test_an_image_that_is_read_in_parts_is_drawn_smaller(picture, monkeypatch):
    monkeypatch.setattr(picture_files, "MAX_DRAWN_SIDE", 60)
    found = Prediction(
        boxes=np.array([[20, 10, 100, 70]], np.float32),
        scores=np.array([0.9], np.float32),
        labels=np.zeros(1, np.int64),
        category_ids=np.ones(1, np.int64),
        class_names=["ship"],
        image_size=(80, 120),
    )
    options, image = DrawOptions(labels="none"), InParts(picture)
    drawn = drawn_on(image, found, options)
    assert image.sizes == [(40, 60)]
    np.testing.assert_array_equal(drawn, found.resized((40, 60)).drawn_on(image.image.reduced(40, 60), options))
    assert drawn_on(ArrayRegions(picture), found, options).shape == (80, 120, 3)
