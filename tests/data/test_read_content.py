"""What is read of two published data sets, to the last bit: a change of the readers must not change it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from codetr_cli.annotations.objects import read_annotations
from codetr_cli.config.data_settings import DataConfig
from codetr_cli.formats.resolve import find_data

RECORDED = {
    ("coco_mini", "train"): "80 images, 739 objects, 6020ab7f995730b9f2d8a30579a700ec",
    ("coco_mini", "val"): "79 images, 624 objects, 6b8cfd1f392503e244e6e224c682260f",
    ("bccd", "train"): "205 images, 2805 objects, 48a7ff09148289c8910008faa2ea3290",
    ("bccd", "val"): "87 images, 1138 objects, 36eb0da1a53a452527ba16011c9664a5",
}


def content_of(root: Path, split: str) -> str:
    """Counts, and a digest of all names, ids, sizes, boxes, areas, flags and outlines of a split."""
    annotations = read_annotations(find_data(DataConfig(), str(root), split).annotations_path, with_outlines=True)
    digest = hashlib.sha256()
    texts = [annotations.class_names, annotations.category_ids, annotations.file_names]
    digest.update(json.dumps(texts).encode())
    for name in ("image_ids", "sizes", "image_rows", "labels", "boxes_xywh", "area", "iscrowd", "ignore"):
        column = getattr(annotations, name)
        digest.update(f"{name} {column.dtype} {column.shape}".encode() + np.ascontiguousarray(column).tobytes())
    assert annotations.outlines is not None
    for row in range(len(annotations.labels)):
        digest.update(json.dumps(annotations.outlines.parse(row)).encode())
    return f"{len(annotations.image_ids)} images, {len(annotations.labels)} objects, {digest.hexdigest()[:32]}"


@pytest.mark.parametrize(("name", "split"), RECORDED)
def test_what_is_read_stays_the_same(shared_dir: Path, name: str, split: str) -> None:
    assert content_of(shared_dir / "data" / name, split) == RECORDED[name, split]
