"""How often `codetr prepare` and the start of a training open the files of a data set: on network disks each costs."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from codetr_cli.annotations.objects import read_annotations
from codetr_cli.config.data_settings import DataConfig
from codetr_cli.formats.resolve import find_data
from tests.data.checks.fakes import check

IMAGES = {"train": 30, "val": 10}
TOTAL = sum(IMAGES.values())
PROBES = 20
"""Files that are read, at most, to see which layout a folder has."""
_opened: list[str] | None = None
_hooked: list[bool] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened is not None and event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        _opened.append(os.fsdecode(arguments[0]))


@contextmanager
def opens(root: Path) -> Iterator[Counter[str]]:
    """Counts the files below a folder that are opened meanwhile, by their suffixes."""
    global _opened
    if not _hooked:
        sys.addaudithook(_hook)  # for the rest of the process
        _hooked.append(True)
    counts: Counter[str] = Counter()
    _opened = []
    try:
        yield counts
    finally:
        counts.update(Path(name).suffix for name in _opened if Path(name).is_relative_to(root))
        _opened = None


def photo(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(path)


def coco(root: Path) -> None:
    (root / "annotations").mkdir(parents=True)
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    for seed, (split, count) in enumerate(IMAGES.items()):
        images, objects = [], []
        for i in range(1, count + 1):
            photo(root / f"{split}2017/{i}.jpg", 100 * seed + i)
            images.append({"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 48})
            objects.append({"id": i, "image_id": i, "category_id": 1 + i % 2, "bbox": [5, 5, 20, 20]})
        table = {"images": images, "annotations": objects, "categories": categories}
        (root / f"annotations/instances_{split}2017.json").write_text(json.dumps(table))


def voc(root: Path) -> None:
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets/Main").mkdir(parents=True)
    for seed, (split, count) in enumerate(IMAGES.items()):
        names = [f"{split}{i}" for i in range(count)]
        for i, name in enumerate(names):
            photo(root / f"JPEGImages/{name}.jpg", 100 * seed + i)
            box = "<bndbox><xmin>5</xmin><ymin>5</ymin><xmax>25</xmax><ymax>25</ymax></bndbox>"
            (root / f"Annotations/{name}.xml").write_text(
                f"<annotation><filename>{name}.jpg</filename><size><width>64</width><height>48</height></size>"
                f"<object><name>{'cat' if i % 2 else 'dog'}</name>{box}</object></annotation>"
            )
        (root / f"ImageSets/Main/{split}.txt").write_text("\n".join(names))


def yolo(root: Path) -> None:
    for seed, (split, count) in enumerate(IMAGES.items()):
        (root / f"labels/{split}").mkdir(parents=True)
        for i in range(count):
            photo(root / f"images/{split}/{i}.jpg", 100 * seed + i)
            (root / f"labels/{split}/{i}.txt").write_text(f"{i % 2} 0.5 0.5 0.25 0.25\n")
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat, dog]\n")


def prepare(root: Path) -> None:
    report = check(root)
    assert report.errors == 0
    assert not [finding for finding in report.findings if "image" in finding.kind]  # no copies, which are read again


def start_training(root: Path) -> None:
    for split in ("train", "val"):
        read_annotations(find_data(DataConfig(), str(root), split).annotations_path)  # type: ignore[arg-type]


LAYOUTS: dict[str, tuple[Callable[[Path], None], str, tuple[int, int, int, int], tuple[int, int, int, int]]] = {
    "coco": (coco, ".json", (1, 1, 0, 0), (2, 2, 2, 2)),
    "voc": (voc, ".xml", (1, 1, 0, 0), (TOTAL + PROBES, PROBES, TOTAL + 3 * PROBES, 2 * PROBES)),
    "yolo": (yolo, ".txt", (2, 1, 1, 0), (TOTAL, 0, TOTAL, 0)),
}
"""How a layout is made, the suffix of its annotation files, and how often images (each) and these files (all) may be
opened: by the first and the second `prepare`, by the first start of a training, and by later ones."""


@pytest.mark.parametrize("name", LAYOUTS)
def test_no_image_is_opened_more_often_than_it_has_to_be(name: str, tmp_path: Path, monkeypatch) -> None:
    make, suffix, of_images, of_annotations = LAYOUTS[name]
    root = tmp_path / "set"
    make(root)
    for number, step in enumerate((prepare, prepare, start_training, start_training)):
        if number == 2:
            monkeypatch.setenv("CODETR_CACHE", str(tmp_path / "another cache"))
        with opens(root) as counts:
            step(root)
        assert counts[".jpg"] == of_images[number] * TOTAL, number
        assert counts[suffix] <= of_annotations[number], number


def test_opens_are_counted(tmp_path: Path) -> None:
    with opens(tmp_path) as counts:
        (tmp_path / "a.jpg").write_bytes(b"x")
        descriptor = os.open(tmp_path / "a.jpg", os.O_RDONLY)
        os.close(descriptor)
        Path(__file__).read_bytes()
    assert counts == {".jpg": 2}
