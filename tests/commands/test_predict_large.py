"""Files that are too large to be decoded whole."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codetr_cli.images import large_images
from codetr_cli.prediction import picture_files
from tests.inference.fakes import write_run

rasterio = pytest.importorskip("rasterio")
SIZE = (150, 260)


def write_tiff(path: Path, seed: int) -> None:
    """A TIFF with tiles of 32 pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (3, *SIZE)).astype(np.uint8)
    layout = {"height": SIZE[0], "width": SIZE[1], "count": 3, "dtype": "uint8", "blockxsize": 32, "blockysize": 32}
    with (
        warnings.catch_warnings(action="ignore"),
        rasterio.open(path, "w", tiled=True, compress="lzw", **layout) as file,
    ):
        file.write(pixels)


def test_large_files_are_read_in_parts_and_drawn_smaller(codetr, tmp_path, tiny_settings, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs/tiny/1", tiny_settings, "last")
    Path("scenes").mkdir()
    for seed, name in enumerate(("a.tif", "b.tif", "c.tif")):
        write_tiff(Path("scenes", name), seed)
    content = bytearray(Path("scenes/b.tif").read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    Path("scenes/b.tif").write_bytes(content)
    limit = ("--set", "data.max_pixels=20000")
    refused = codetr("predict", "scenes", *limit, "--out", "refused")
    assert refused.code == 3
    assert "260 x 150 pixels, more than data.max_pixels = 20000" in refused.err
    assert "predict it with tiles" in refused.err
    monkeypatch.setattr(large_images, "WHOLE_PIXELS", 10_000)
    monkeypatch.setattr(large_images, "read_image", None)
    monkeypatch.setattr(picture_files, "MAX_DRAWN_SIDE", 130)
    words = ("predict", "scenes", *limit, "--tiles", "100x80", "--score", "0.01", "--crops", "--json")
    ran = codetr(*words, "--image-format", "png")
    assert ran.code == 3
    assert [image["file_name"] for image in ran.json["images"]] == ["a.tif", "c.tif"]
    assert all((image["height"], image["width"]) == SIZE for image in ran.json["images"])
    assert [Path(failed["file"]).name for failed in ran.json["failed"]] == ["b.tif"]
    assert "the file is damaged" in ran.json["failed"][0]["error"]
    assert len(ran.json["detections"]) > 0
    with Image.open(ran.json["images"][0]["drawn"]) as drawn:
        assert drawn.size == (130, 75)
    crops = list(Path(ran.json["out"], "crops").rglob("*.jpg"))
    assert len(crops) == len(ran.json["detections"])
