"""Folders as labelling tools and data set sites export them, with known boxes."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from codetr_cli.annotations.objects import Annotations, read_annotations
from codetr_cli.config.data_settings import DataConfig
from codetr_cli.formats.found import FoundDataset, ReadOptions
from codetr_cli.formats.open import open_dataset
from codetr_cli.formats.resolve import Split, find_data

Boxes = dict[str, list[tuple[str, list[float]]]]


def picture(path: Path, width: int = 200, height: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((height, width, 3), 90, np.uint8))
    return path


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=2), encoding="utf-8")
    return path


def annotations(root: Path, split: Split = "train", **settings: Any) -> Annotations:
    return read_annotations(find_data(DataConfig(**settings), str(root), split).annotations_path)


def boxes(root: Path, split: Split = "train", **settings: Any) -> Boxes:
    """Class and box (x, y, width, height) of the objects of each image, by its name."""
    read = annotations(root, split, **settings)
    found: Boxes = {}
    for index, name in enumerate(read.file_names):
        chosen = np.flatnonzero(read.image_rows == index)
        found[name] = [
            (read.class_names[label], [round(float(value), 3) for value in box])
            for label, box in zip(read.labels[chosen], read.boxes_xywh[chosen], strict=True)
        ]
    return found


def opened(root: Path, **options: Any) -> FoundDataset:
    found = open_dataset(root, ReadOptions(**options))
    assert found is not None
    return found


def counts(found: FoundDataset) -> dict[str, int]:
    return {finding.kind: finding.count for finding in found.findings}


def names_of(found: FoundDataset, kind: str) -> str:
    return " ".join(name for finding in found.findings if finding.kind == kind for name in finding.first)


# ------------------------------------------------------------------------------------------------------------- labelme


def shape(label: Any, points: list[Any], kind: str = "rectangle", **others: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "group_id": None, "description": "", "shape_type": kind, "flags": {},
            "mask": None} | others  # fmt: skip


def labelme(image: str, *shapes: dict[str, Any], pixels: bytes | None = b"pixels", **others: Any) -> dict[str, Any]:
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": list(shapes),
        "imagePath": image,
        "imageData": None if pixels is None else base64.b64encode(pixels).decode(),
        "imageHeight": 100,
        "imageWidth": 200,
    } | others


# -------------------------------------------------------------------------------------------------------- Label Studio


def region(kind: str, labels: list[str], number: int = 1, **value: Any) -> dict[str, Any]:
    return {
        "original_width": 200,
        "original_height": 100,
        "image_rotation": 0,
        "value": value | {kind: labels},
        "id": f"r{number}",
        "from_name": "label",
        "to_name": "image",
        "type": kind,
        "origin": "manual",
    }


def task(number: int, image: str, *annotation_list: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {
        "id": number,
        "annotations": list(annotation_list),
        "file_upload": image.rpartition("/")[2],
        "drafts": [],
        "predictions": [],
        "data": {"image": image},
        "meta": {},
        "created_at": "2024-05-01T10:00:00.000000Z",
        "updated_at": "2024-05-01T10:00:00.000000Z",
        "inner_id": number,
        "total_annotations": len(annotation_list),
        "cancelled_annotations": 0,
        "total_predictions": 0,
        "project": 1,
    } | others


def annotated(*regions: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {
        "id": 7,
        "completed_by": 1,
        "result": list(regions),
        "was_cancelled": False,
        "ground_truth": False,
        "lead_time": 3.2,
        "prediction": {},
        "result_count": len(regions),
    } | others
