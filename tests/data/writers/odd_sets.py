"""A data set with everything that a layout may stumble over, and how two data sets are compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from codetr_cli.annotations.objects import read_annotations
from codetr_cli.formats.found import FoundDataset, ReadOptions
from codetr_cli.formats.open import open_dataset

CLASSES = {
    3: "cat",
    7: "red panda",
    8: 'it\'s "50%": #1, <a&b>',
    90: "Füchse 狐 \U0001f468\u200d\U0001f469\xa0\U0010fffd\\",
}
BOXES = [
    (3, [0, 0, 64, 48]),
    (7, [10.5, 20.25, 30.125, 7.875]),
    (8, [63, 47, 1, 1]),
    (90, [0, 12, 1.5, 2]),
    (90, [33, 5, 17, 29]),
]
NAMES = [
    "plain.jpg",
    "two words.jpg",
    "a.b.jpg",
    "#1 it's.png",
    "ü 狐.png",
    "deep/er/plain.jpg",
    "images/x.jpg",
    "n 1.jpg",
]


class Seen(NamedTuple):
    """What a reader sees of an image: its pixels, and class, box and crowd flag of each object."""

    pixels: bytes
    objects: list[tuple[str, tuple[float, ...], int]]


def pixels_of(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_odd_coco(root: Path, *, crowd: bool = True) -> Path:
    """The published layout with two splits: odd names, equal names in both, odd images, boxes at edges, no objects."""
    for number, split in enumerate(("train", "val")):
        images: list[dict[str, Any]] = []
        objects: list[dict[str, Any]] = []
        folder = root / f"{split}2017"
        for index, name in enumerate(NAMES):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            seed = 100 * number + index
            _write_image(path, seed)
            image_id = 1000 * (number + 1) + 3 * index
            images.append({"id": image_id, "file_name": name, "width": 64, "height": 48, "license": 4})
            for position, (category, box) in enumerate(BOXES if name != "a.b.jpg" else []):
                shifted = [box[0], box[1], box[2], box[3]]
                objects.append(
                    {
                        "id": 5 + 7 * len(objects),
                        "image_id": image_id,
                        "category_id": category,
                        "bbox": shifted,
                        "area": box[2] * box[3],
                        "iscrowd": int(crowd and position == 4),
                        "attributes": {"tag": f"{name}{position}"},
                    }
                )
        table = {
            "info": {"year": 2017},
            "images": images,
            "annotations": objects,
            "categories": [{"id": key, "name": name, "supercategory": "thing"} for key, name in CLASSES.items()],
        }
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(table))
    return root


def _write_image(path: Path, seed: int) -> None:
    """Pixels of their own in every file: also 16-bit, palette, and rotated ones."""
    pixels = pixels_of(seed)
    kind = seed % 100
    if kind == 3:
        cv2.imwrite(str(path), pixels.astype(np.uint16) * 257)
    elif kind == 4:
        Image.fromarray(pixels).convert("P").save(path)
    elif kind == 1:
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(np.rot90(pixels).copy()).save(path, exif=exif, quality=95)
    else:
        Image.fromarray(pixels).save(path, quality=95)


def seen(found: FoundDataset | None) -> dict[str, list[Seen]]:
    """By split, the images with their objects, in an order that does not depend on names."""
    assert found is not None
    result = {}
    for name, split in found.splits.items():
        table = read_annotations(split.annotations_path)
        images = []
        for row, file_name in enumerate(table.file_names):
            objects = [
                (table.class_names[table.labels[i]], tuple(table.boxes_xywh[i].tolist()), int(table.iscrowd[i]))
                for i in np.flatnonzero(table.image_rows == row).tolist()
            ]
            images.append(Seen((split.images_dir / file_name).read_bytes(), sorted(objects)))
        result[name] = sorted(images)
    return result


def reopened(folder: Path, **options: Any) -> dict[str, list[Seen]]:
    return seen(open_dataset(folder, ReadOptions(**options)))


def expected(source: dict[str, list[Seen]], *, crowds: bool) -> dict[str, list[Seen]]:
    """What is left where crowds cannot be written."""
    if crowds:
        return source
    return {
        name: sorted(Seen(image.pixels, [item for item in image.objects if not item[2]]) for image in images)
        for name, images in source.items()
    }
