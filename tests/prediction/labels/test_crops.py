"""Parts of images in boxes, as files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from codetr_cli.errors import ConfigError
from codetr_cli.images.regions import ArrayRegions
from codetr_cli.inference.prediction import Prediction
from codetr_cli.prediction.inputs import InputImage
from codetr_cli.prediction.labels.crops import CropWriter
from tests.prediction.labels.predictions import prediction_of

NAMES = ["cat", "Barrel/bucket", "CAT", "../up"]


def writer(folder: Path, *names: str, request: str = "r", force: bool = False) -> CropWriter:
    images = [InputImage(Path(name), name, number) for number, name in enumerate(names)]
    folder.mkdir(exist_ok=True)
    return CropWriter(folder, images, NAMES, scratch=folder, request=request, force=force)


def prediction(*rows: tuple[int, tuple[float, ...]]) -> Prediction:
    return prediction_of([(label, 1.0, box) for label, box in rows], NAMES, range(len(NAMES)), (40, 60))


def crops(folder: Path) -> dict[str, tuple[int, ...]]:
    """The size of each crop."""
    return {
        path.relative_to(folder / "crops").as_posix(): cv2.imread(str(path)).shape[:2]
        for path in sorted((folder / "crops").rglob("*.jpg"))
    }


def test_a_folder_a_class_and_whole_pixels_in_the_image(tmp_path: Path) -> None:
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[10:20, 30:50, 0] = 255
    found = prediction((0, (30.4, 10.2, 49.5, 19.1)), (1, (-5, -5, 3, 4)), (0, (55, 35, 99, 99)), (2, (60, 0, 70, 9)))
    assert writer(tmp_path / "out", "a.jpg").write(0, ArrayRegions(pixels), found) == 3
    assert crops(tmp_path / "out") == {"Barrel_bucket/a_2.jpg": (4, 3), "cat/a_1.jpg": (10, 20), "cat/a_3.jpg": (5, 5)}
    blue, green, red = cv2.imread(str(tmp_path / "out" / "crops" / "cat" / "a_1.jpg"))[5, 10].tolist()
    assert (red > 240, green < 15, blue < 15) == (True, True, True)


def test_no_two_crops_have_one_name(tmp_path: Path) -> None:
    names = ["a.jpg", "a.png", "A.JPG", "b/a.jpg", "b_a.jpg", "a_1.jpg", "images/x", "ü" * 200 + ".jpg"]
    crop = writer(tmp_path / "out", *names)
    found = prediction(*[(label, (0, 0, 9, 9)) for label in (0, 2, 3)])
    for number in range(len(names)):
        assert crop.write(number, ArrayRegions(np.zeros((40, 60, 3), np.uint8)), found) == 3
    written = crops(tmp_path / "out")
    assert len(written) == len({name.lower() for name in written}) == 3 * len(names)
    assert {name.split("/")[0] for name in written} == {"cat", "CAT_2", "_.._up"}


def test_crops_of_others_stay(tmp_path: Path) -> None:
    pixels, found = np.zeros((40, 60, 3), np.uint8), prediction((0, (0, 0, 9, 9)))
    writer(tmp_path, "a.jpg").write(0, ArrayRegions(pixels), found)
    writer(tmp_path, "a.jpg").write(0, ArrayRegions(pixels), found)  # the same command does an image again after a kill
    with pytest.raises(ConfigError, match="already exists"):
        writer(tmp_path, "a.jpg", request="other").write(0, ArrayRegions(pixels), found)
    writer(tmp_path, "a.jpg", request="other", force=True).write(0, ArrayRegions(pixels), found)
    (tmp_path / "crops" / "cat" / "a_1.jpg").write_bytes(b"mine")
    with pytest.raises(ConfigError, match="never replaced"):
        writer(tmp_path, "a.jpg", request="other", force=True).write(0, ArrayRegions(pixels), found)
