"""Parquet files as the library of Hugging Face writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

NAMES = ["Coverall", "Face_Shield", "Gloves"]


def encoded(width: int = 200, height: int = 100, suffix: str = ".png", seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    return cv2.imencode(suffix, pixels)[1].tobytes()


def row(number: int, *objects: tuple[int | str, list[float]], path: str | None = None, **others: Any) -> dict[str, Any]:
    """A row as in CPPE-5: a table of lists."""
    return {
        "image_id": number,
        "image": {"bytes": encoded(seed=number), "path": path},
        "width": 200,
        "height": 100,
        "objects": {
            "id": list(range(len(objects))),
            "area": [box[2] * box[3] for _, box in objects],
            "bbox": [box for _, box in objects],
            "category": [label for label, _ in objects],
        },
    } | others


def features(names: list[str] | None) -> dict[str, Any]:
    """The description of the columns that the library writes."""
    label = {"names": names, "_type": "ClassLabel"} if names else {"dtype": "int64", "_type": "Value"}
    numbers = {"feature": {"dtype": "float32", "_type": "Value"}, "length": 4, "_type": "Sequence"}
    return {
        "image_id": {"dtype": "int64", "_type": "Value"},
        "image": {"_type": "Image"},
        "objects": {
            "feature": {"id": {"dtype": "int64", "_type": "Value"}, "bbox": numbers, "category": label},
            "_type": "Sequence",
        },
    }


def newer_features(names: list[str]) -> dict[str, Any]:
    """The description by newer releases of the library: lists of their own."""
    label = {"feature": {"names": names, "_type": "ClassLabel"}, "_type": "List"}
    return features(None) | {"objects": {"bbox": {"feature": {}, "_type": "List"}, "category": label}}


def write_parquet(path: Path, rows: list[dict[str, Any]], described: dict[str, Any] | None, **options: Any) -> Path:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist(rows)
    if described is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": described}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path, **options)
    return path


def cppe(root: Path) -> Path:
    """As on a hub: two files for training, one for validation."""
    first = [
        row(1, (0, [10, 20, 30, 40]), (2, [0, 0, 199.5, 100]), path="1.png"),
        row(2, path="a/b/2.png"),
    ]
    write_parquet(root / "data/train-00000-of-00002.parquet", first, features(NAMES), row_group_size=1)
    write_parquet(root / "data/train-00001-of-00002.parquet", [row(3, (1, [5, 6, 7, 8]))], features(NAMES))
    write_parquet(root / "data/validation-00000-of-00001.parquet", [row(4, (2, [5, 6, 7, 8]))], features(NAMES))
    return root
