"""Small data sets of COCO's tables, with files and keys as their exporters write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

SIZE = (48, 64)
"""(height, width) of every image."""
BOX = [3, 5, 20, 30]


def picture(path: Path, seed: int = 0) -> None:
    """Writes an image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 255, (*SIZE, 3), np.uint8)
    done, content = cv2.imencode(path.suffix, image)
    assert done
    path.write_bytes(content.tobytes())


def table(names: list[str], *, classes: tuple[str, ...] = ("cat", "dog"), first_id: int = 1) -> dict[str, Any]:
    """The tables of images with one object each."""
    return {
        "images": [
            {"id": index, "file_name": name, "height": SIZE[0], "width": SIZE[1]} for index, name in enumerate(names, 1)
        ],
        "annotations": [
            {
                "id": index,
                "image_id": index,
                "category_id": first_id + index % len(classes),
                "bbox": BOX,
                "area": BOX[2] * BOX[3],
                "iscrowd": 0,
            }
            for index in range(1, len(names) + 1)
        ],
        "categories": [
            {"id": first_id + index, "name": name, "supercategory": ""} for index, name in enumerate(classes)
        ],
    }


def write_set(path: Path, images: Path, names: list[str], **more: Any) -> None:
    """Writes an annotation file and its images; `more` are arguments of `table`."""
    write_json(path, table(names, **more))
    for index, name in enumerate(names):
        picture(images / name, index)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def roboflow(root: Path, splits: tuple[str, ...] = ("train", "valid", "test"), count: int = 4) -> Path:
    """Roboflow: images beside _annotations.coco.json, category 0 for the project."""
    for split in splits:
        names = [f"photo-{split}-{index}_jpg.rf.{index:032x}.jpg" for index in range(count)]
        for index, name in enumerate(names):
            picture(root / split / name, index)
        plain = table(names)
        write_json(
            root / split / "_annotations.coco.json",
            {
                "info": {"year": "2024", "version": "1", "description": "Exported from roboflow.com"},
                "licenses": [{"id": 1, "url": "https://creativecommons.org/licenses/by/4.0/", "name": "CC BY 4.0"}],
                "categories": [
                    {"id": 0, "name": "animals", "supercategory": "none"},
                    {"id": 1, "name": "cat", "supercategory": "animals"},
                    {"id": 2, "name": "dog", "supercategory": "animals"},
                ],
                "images": [
                    {**image, "license": 1, "date_captured": "2024-01-01T00:00:00+00:00"} for image in plain["images"]
                ],
                "annotations": [{**entry, "segmentation": []} for entry in plain["annotations"]],
            },
        )
    (root / "README.roboflow.txt").write_text("This dataset was exported via roboflow.com\n")
    return root


def cvat(root: Path, folder: str = "images/default", count: int = 6) -> Path:
    """CVAT: annotations/instances_default.json, with long attributes."""
    names = [f"frame_{index:06d}.PNG" for index in range(count)]
    for index, name in enumerate(names):
        picture(root / folder / name, index)
    plain = table(names)
    write_json(
        root / "annotations/instances_default.json",
        {
            "licenses": [{"name": "", "id": 0, "url": ""}],
            "info": {"contributor": "", "date_created": "", "description": "", "url": "", "version": "", "year": ""},
            "categories": plain["categories"],
            "images": [
                {**image, "license": 0, "flickr_url": "", "coco_url": "", "date_captured": 0}
                for image in plain["images"]
            ],
            "annotations": [
                {**entry, "segmentation": [], "attributes": {"occluded": False, "rotation": 0.0}}
                for entry in plain["annotations"]
            ],
        },
    )
    return root


def fiftyone(root: Path, count: int = 6) -> Path:
    """FiftyOne: data/ and labels.json; categories have the ids from 0 and no supercategory."""
    names = [f"{index:06d}.jpg" for index in range(1, count + 1)]
    for index, name in enumerate(names):
        picture(root / "data" / name, index)
    plain = table(names, first_id=0)
    for category in plain["categories"]:
        category["supercategory"] = None
    write_json(
        root / "labels.json",
        {"info": {"year": "", "version": "", "description": "Exported from FiftyOne"}, "licenses": [], **plain},
    )
    return root


def label_studio(root: Path, count: int = 6) -> Path:
    """Label Studio: result.json, whose file names begin with images/."""
    names = [f"images/{index:08x}-photo_{index}.jpg" for index in range(count)]
    for index, name in enumerate(names):
        picture(root / name, index)
    plain = table(names, first_id=0)
    write_json(
        root / "result.json",
        {
            "images": [
                {"width": image["width"], "height": image["height"], "id": image["id"] - 1, "file_name": name}
                for image, name in zip(plain["images"], names, strict=True)
            ],
            "categories": [{"id": category["id"], "name": category["name"]} for category in plain["categories"]],
            "annotations": [
                {**entry, "image_id": entry["image_id"] - 1, "segmentation": [], "ignore": 0}
                for entry in plain["annotations"]
            ],
            "info": {"year": 2024, "version": "1.0", "description": "", "contributor": "Label Studio", "url": ""},
        },
    )
    return root
