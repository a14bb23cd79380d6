from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from codetr_cli.prediction import picture_files
from codetr_cli.prediction.picture_files import encode_picture, write_picture


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
