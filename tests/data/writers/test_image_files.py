from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from codetr_cli.data.writers.image_files import copy_file
from codetr_cli.data.writers.slicing import SliceRule
from codetr_cli.errors import DatasetError
from codetr_cli.images.decoder import read_image
from tests.data.writers.conversion import convert
from tests.data.writers.odd_sets import write_odd_coco


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODETR_CACHE", str(tmp_path / "cache"))


def tables(out: Path) -> dict[str, dict]:
    return {split: json.loads((out / f"instances_{split}.json").read_text()) for split in ("train", "val")}


@pytest.mark.parametrize("overlap", [0.0, 0.3])
def test_tiles_show_their_part_of_the_source(tmp_path: Path, overlap: float) -> None:
    """Pixels, positions of objects, ids: of every tile, against the source."""
    source = write_odd_coco(tmp_path / "source")
    written = convert(source, tmp_path / "out", "coco", slicing=SliceRule(30, 20, overlap))
    assert not written.counts["in_no_tile"]
    for split, table in tables(tmp_path / "out").items():
        before = json.loads((source / "annotations" / f"instances_{split}2017.json").read_text())
        originals = {entry["id"]: entry for entry in before["annotations"]}
        sources = {image["id"]: image for image in before["images"]}
        covered = {image_id: np.zeros((48, 64), bool) for image_id in sources}
        assert len({image["id"] for image in table["images"]}) == len(table["images"])
        assert [entry["id"] for entry in table["annotations"]] == list(
            range(table["annotations"][0]["id"], table["annotations"][0]["id"] + len(table["annotations"]))
        )
        tiles = {image["id"]: image for image in table["images"]}
        for image in table["images"]:
            x, y, w, h = image["tile"]
            origin = sources[image["source_image_id"]]
            assert image["source_file_name"] == origin["file_name"]
            assert image["license"] == 4
            covered[origin["id"]][y : y + h, x : x + w] = True
            whole = read_image(source / f"{split}2017" / origin["file_name"])
            pixels = read_image(tmp_path / "out" / image["file_name"])
            assert pixels.shape == (h, w, 3) == (image["height"], image["width"], 3)
            difference = np.abs(pixels.astype(int) - whole[y : y + h, x : x + w]).mean()
            assert difference < (6 if origin["file_name"].endswith(".jpg") else 1e-9)
        assert all(each.all() for each in covered.values())
        seen = set()
        for entry in table["annotations"]:
            original = originals[entry["source_id"]]
            x, y, w, h = tiles[entry["image_id"]]["tile"]
            assert tiles[entry["image_id"]]["source_image_id"] == original["image_id"]
            assert entry["attributes"] == original["attributes"]
            left, top, width, height = original["bbox"]
            x1, y1 = max(left, x), max(top, y)
            x2, y2 = min(left + width, x + w), min(top + height, y + h)
            assert entry["bbox"] == pytest.approx([x1 - x, y1 - y, x2 - x1, y2 - y1], abs=1e-3)
            assert entry["area"] == pytest.approx((x2 - x1) * (y2 - y1), rel=1e-3)
            seen.add(entry["source_id"])
        assert seen == set(originals)


def test_small_images_are_copied_whole(tmp_path: Path) -> None:
    source = write_odd_coco(tmp_path / "source")
    convert(source, tmp_path / "out", "coco", slicing=SliceRule(64, 100))
    image = tables(tmp_path / "out")["val"]["images"][0]
    assert image["file_name"] == "val/plain_0_0.jpg"
    assert image["tile"] == [0, 0, 64, 48]
    assert (tmp_path / "out" / image["file_name"]).read_bytes() == (source / "val2017" / "plain.jpg").read_bytes()


def test_rotated_images_are_written_upright_even_if_they_are_not_cut(tmp_path: Path) -> None:
    source = write_odd_coco(tmp_path / "source")
    convert(source, tmp_path / "out", "coco", slicing=SliceRule(64, 100))
    image = tables(tmp_path / "out")["val"]["images"][1]
    assert image["source_file_name"] == "two words.jpg"
    with Image.open(tmp_path / "out" / image["file_name"]) as written:
        assert written.size == (image["width"], image["height"]) == (64, 48)
        assert 0x0112 not in written.getexif()
    whole = read_image(source / "val2017" / "two words.jpg")
    assert np.abs(read_image(tmp_path / "out" / image["file_name"]).astype(int) - whole).mean() < 6


def test_empty_tiles_are_dropped_on_request(tmp_path: Path) -> None:
    source = write_odd_coco(tmp_path / "source")
    written = convert(source, tmp_path / "out", "coco", slicing=SliceRule(16, 16, 0.0), keep_empty=False)
    table = tables(tmp_path / "out")["train"]
    assert {image["id"] for image in table["images"]} == {entry["image_id"] for entry in table["annotations"]}
    assert written.counts["empty"] >= 2


@pytest.mark.parametrize("how", ["link", "symlink", "none"])
def test_images_are_linked_on_request(tmp_path: Path, how: str) -> None:
    source = write_odd_coco(tmp_path / "source")
    convert(source, tmp_path / "out", "yolo", images=how)
    path, original = tmp_path / "out" / "images" / "val" / "plain.jpg", source / "val2017" / "plain.jpg"
    if how == "none":
        assert not path.exists()
        assert (tmp_path / "out" / "labels" / "val" / "plain.txt").is_file()
        return
    assert path.is_symlink() == (how == "symlink")
    assert path.samefile(original)


def test_unusable_images_are_named_or_skipped(tmp_path: Path) -> None:
    source = write_odd_coco(tmp_path / "source")
    (source / "train2017" / "plain.jpg").write_bytes(b"no image")
    (source / "val2017" / "a.b.jpg").unlink()
    with pytest.raises(DatasetError, match=r"plain\.jpg .*data\.bad_files=skip"):
        convert(source, tmp_path / "out", "voc")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    written = convert(source, tmp_path / "out", "voc", skip_bad=True)
    assert written.counts["unusable"] == 2
    assert [images for images, _ in written.splits.values()] == [7, 7]


def test_images_of_another_size_than_listed_are_not_cut(tmp_path: Path) -> None:
    source = write_odd_coco(tmp_path / "source")
    cv2.imwrite(str(source / "train2017" / "plain.jpg"), np.zeros((50, 64, 3), np.uint8))
    with pytest.raises(DatasetError, match="64 x 50 in the file, 64 x 48 listed"):
        convert(source, tmp_path / "out", "coco", slicing=SliceRule(30, 20))
    assert convert(source, tmp_path / "out", "coco").counts["size_differs"] == 1


def test_nothing_is_written_over(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        copy_file(tmp_path / "a.png", tmp_path / "b.png")
    assert (tmp_path / "b.png").read_bytes() == b"mine"
