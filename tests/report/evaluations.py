"""Annotations and evaluations as files, without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from codetr_cli.annotations.objects import Annotations
from codetr_cli.evaluation.scoring import score_detections
from codetr_cli.inference.detections import DetectionTable
from tests.analysis.run_samples import SIDE


def write_annotations(path: Path, truth: Annotations) -> Path:
    """An annotation file of COCO's kind, and the images as noise in a folder beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    objects = [
        {
            "id": number + 1,
            "image_id": int(truth.image_ids[row]),
            "category_id": truth.category_ids[label],
            "bbox": box,
            "area": area,
            "iscrowd": crowd,
        }
        for number, (row, label, box, area, crowd) in enumerate(
            zip(
                truth.image_rows.tolist(),
                truth.labels.tolist(),
                truth.boxes_xywh.tolist(),
                truth.area.tolist(),
                truth.iscrowd.tolist(),
                strict=True,
            )
        )
    ]
    images = [
        {"id": image_id, "file_name": name, "height": SIDE, "width": SIDE}
        for image_id, name in zip(truth.image_ids.tolist(), truth.file_names, strict=True)
    ]
    categories = [
        {"id": category_id, "name": name}
        for category_id, name in zip(truth.category_ids, truth.class_names, strict=True)
    ]
    path.write_text(json.dumps({"images": images, "annotations": objects, "categories": categories}))
    return path


def write_images(folder: Path, truth: Annotations) -> None:
    """The images of annotations, as noise."""
    random = np.random.default_rng(0)
    for name in truth.file_names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)).save(path)


def write_evaluation(folder: Path, truth: Annotations, table: DetectionTable, where: Path, **record: Any) -> Path:
    """The files of `codetr eval`; `record` replaces values of metrics.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "detections.json").write_text(table.to_json())
    scores = score_detections(truth, table, where="val.json")
    protocol = {
        "views": "single scale 800x1333",
        "suppression": "no NMS",
        "max_detections": 300,
        "head": "decoder",
        "precision": "fp32",
        "split": "val",
        "images": scores.images,
        "metrics": "COCO box",
        "runtime": None,
    }
    table_of_record = {
        **scores.metrics,
        "checkpoint": "model.safetensors",
        "weights": None,
        "annotations": str(where),
        "images": scores.images,
        "left_out": [],
        "protocol_parts": protocol,
        **record,
    }
    (folder / "metrics.json").write_text(json.dumps(table_of_record))
    return folder
