from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from codetr_cli.annotations.outlines import decode
from codetr_cli.config.data_settings import DataConfig
from codetr_cli.data.coco import CocoDataset
from codetr_cli.data.demo import MAX_OBJECTS, MIN_SIDE, MIN_VISIBLE, OUTLINES, draw_picture, visible_box, write_demo
from codetr_cli.data.transforms import ResizeShortLong
from codetr_cli.formats.resolve import find_data
from codetr_cli.images.decoder import read_image


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "data"
    write_demo(folder, train=24, val=6, size=160)
    return folder


def test_the_folder_has_the_published_layout(demo: Path) -> None:
    for split, count in (("train", 24), ("val", 6)):
        paths = find_data(DataConfig(root=str(demo)), None, split)
        dataset = CocoDataset(
            images_dir=paths.images_dir,
            annotations_path=paths.annotations_path,
            transform=ResizeShortLong(short_sides=(64,), long_side=96),
            training=True,
        )
        assert len(dataset) == count
        assert dataset.class_names == list(OUTLINES)
        assert all(1 <= len(dataset[i][1]["labels"]) <= MAX_OBJECTS for i in range(count))
        names = (demo / f"{split}2017.txt").read_text().splitlines()
        assert names == [f"{split}2017/{name}" for name in dataset.file_names]
        assert len(set(dataset.aspect_flags.tolist())) == 2


def test_annotations_fit_the_images(demo: Path) -> None:
    content = json.loads((demo / "annotations" / "instances_train2017.json").read_text())
    sizes = {}
    for image in content["images"]:
        pixels = read_image(demo / "train2017" / image["file_name"])
        assert pixels.shape[:2] == (image["height"], image["width"])
        assert max(pixels.shape) == 160
        sizes[image["id"]] = pixels.shape
    for entry in content["annotations"]:
        x, y, w, h = entry["bbox"]
        height, width = sizes[entry["image_id"]][:2]
        assert min(x, y) >= 0
        assert x + w <= width
        assert y + h <= height
        assert min(w, h) >= MIN_SIDE
        assert 0 < entry["area"] <= w * h
        assert entry["iscrowd"] == 0
        block = decode(entry["segmentation"], (height, width))
        assert [block.left, block.top, *block.pixels.shape[::-1]] == entry["bbox"]
        assert block.pixels.sum() == entry["area"]


def polygon_area(points: np.ndarray) -> float:
    x, y = points.T
    return abs(float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum())) / 2


def test_boxes_enclose_the_visible_pixels_of_overlapping_objects() -> None:
    overlaps = 0
    for seed in range(20):
        _, objects = draw_picture(np.random.default_rng(seed), 192)
        masks = np.stack([mask for _, mask in objects])
        # Visible pixels belong to one object only, and enough of every one is left.
        assert masks.sum(axis=0).max() == 1
        for shape, mask in objects:
            x, y, w, h = visible_box(mask)
            assert mask[y : y + h, x : x + w].sum() == mask.sum()
            assert all(side.any() for side in (mask[y], mask[y + h - 1], mask[:, x], mask[:, x + w - 1]))
            area = polygon_area(shape.points)
            assert mask.sum() >= 0.999 * MIN_VISIBLE * area
            overlaps += mask.sum() < 0.95 * area
    assert overlaps > 3


def test_pictures_repeat_with_the_seed_and_differ_otherwise(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_demo(tmp_path / name, train=2, val=1, size=128, seed=seed)
    files = [path.relative_to(tmp_path / "a") for path in sorted((tmp_path / "a").rglob("*")) if path.is_file()]
    assert len(files) == 7
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
    images = [tmp_path / folder / "train2017" / "000001.jpg" for folder in "ac"]
    assert images[0].read_bytes() != images[1].read_bytes()
    val = tmp_path / "a" / "val2017" / "000001.jpg"
    assert val.read_bytes() != images[0].read_bytes()


def test_visible_box_is_tight() -> None:
    mask = np.zeros((9, 8), bool)
    mask[2, 3] = mask[6, 5] = True
    assert visible_box(mask) == [3, 2, 3, 5]
