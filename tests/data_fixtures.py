from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.data.dataset_samples import ADDRESS, lvis_content, picture, write
from tests.data.fakes import mixed_content, write_split


@pytest.fixture
def mixed_coco(tmp_path: Path) -> Path:
    """A COCO-layout folder with five images a split."""
    root = tmp_path / "mixed"
    write_split(root, "train", mixed_content())
    write_split(root, "val", mixed_content())
    return root


@pytest.fixture
def rewrite(mixed_coco: Path) -> Callable[[dict[str, Any]], Path]:
    """Writes other annotations to the training split of `mixed_coco` and returns their path."""
    path = mixed_coco / "annotations" / "instances_train2017.json"

    def write(content: dict[str, Any]) -> Path:
        path.write_text(json.dumps(content))
        return path

    return write


@pytest.fixture
def lvis(tmp_path: Path) -> Path:
    """An LVIS folder: annotations of two splits, whose images are in COCO's folders."""
    root = tmp_path / "lvis"
    for split, first_id in (("train", 1), ("val", 101)):
        content = lvis_content(split, first_id)
        write(root / "annotations" / f"lvis_v1_{split}.json", content)
        for image in content["images"]:
            picture(root / image["coco_url"].removeprefix(ADDRESS))
    return root
