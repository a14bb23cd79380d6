"""Small data sets and image files for tests."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np

SIZES = [(48, 64), (64, 48), (50, 50), (31, 64), (40, 60)]
"""(height, width) of the images of `mixed_coco`."""


def annotation(number: int, image_id: int, category_id: int, bbox: list[float], **others: Any) -> dict[str, Any]:
    entry = {"id": number, "image_id": image_id, "category_id": category_id, "bbox": bbox, "iscrowd": 0}
    return entry | {"area": bbox[2] * bbox[3], "segmentation": [[1.5, 2, 3, 4e-2, 5, 6]]} | others


def mixed_content() -> dict[str, Any]:
    """Images of every kind: wide, high, square, thin, without objects; category ids with holes, out of order."""
    images = [
        {"id": 10 * i + 7, "file_name": f"{i}.png", "height": height, "width": width}
        for i, (height, width) in enumerate(SIZES)
    ]
    annotations = [
        annotation(1, 17, 90, [1.5, 2.5, 20.25, 30]),
        annotation(2, 7, 3, [10, 10, 30, 20]),
        annotation(3, 7, 90, [0, 0, 60, 40], iscrowd=1, segmentation={"counts": [1, 2], "size": [48, 64]}),
        annotation(4, 7, 0, [5, 5, 0.5, 10]),
        annotation(5, 7, 0, [70, 5, 10, 10]),
        annotation(6, 7, 0, [5, 5, 10, 10], area=0),
        annotation(7, 7, 0, [5, 5, 10, 10], ignore=1),
        annotation(8, 7, 0, [-5, -5, 10, 10]),
        annotation(9, 37, 0, [5, 5, 10, 10]),
        annotation(10, 999, 0, [5, 5, 10, 10]),
    ]
    categories = [{"id": 90, "name": "last"}, {"id": 0, "name": "first"}, {"id": 3, "name": "middle"}]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def write_split(root: Path, split: str, content: dict[str, Any]) -> None:
    (root / f"{split}2017").mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    for i, image in enumerate(content["images"]):
        pixels = np.random.default_rng(i).integers(0, 256, (image["height"], image["width"], 3), dtype=np.uint8)
        assert cv2.imwrite(str(root / f"{split}2017" / image["file_name"]), pixels)


# ---------------------------------------------------------------------------------------------------------- Pascal VOC


Thing = tuple[str, int, int, int, int]


def write_image(path: Path, width: int = 40, height: int = 30) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((height, width, 3), 90, np.uint8))


def xml(*things: Thing, difficult: int = 0, size: bool = True) -> str:
    size_element = "<size><width>40</width><height>30</height><depth>3</depth></size>" if size else ""
    objects = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for name, x1, y1, x2, y2 in things
    )
    return f"<annotation>{size_element}{objects}</annotation>"


def write_voc(root: Path, files: dict[str, str], lists: dict[str, str]) -> Path:
    for stem, text in files.items():
        write_image(root / "JPEGImages" / f"{stem}.jpg")
        (root / "Annotations").mkdir(exist_ok=True)
        (root / "Annotations" / f"{stem}.xml").write_text(text)
    for name, text in lists.items():
        (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text(text)
    return root


def snapshot(root: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in (root, *root.rglob("*"))}


# --------------------------------------------------------------------------------------------------------- image files


def write_png_header(path: Path, width: int, height: int) -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


def huge_png(side: int) -> bytes:
    """A PNG of side x side black pixels that takes few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = zlib.compress(b"\0" * 1000)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", row) + chunk(b"IEND", b"")


def bitmaps(count: int, size: tuple[int, int] = (60, 80), seed: int = 0) -> np.ndarray:
    """Blobs (count, h, w) uint8, the last one empty."""
    generator = np.random.default_rng(seed)
    masks = np.zeros((count, *size), np.uint8)
    for mask in masks[:-1]:
        corners = generator.uniform(0, 1, (5, 2)) * [size[1], size[0]]
        cv2.fillPoly(mask, [corners.astype(np.int32)], 1)
    return masks
