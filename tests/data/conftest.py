from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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
