"""Whatever is in the files of labelling tools, CSV and parquet files: they are read or refused as bad data, soon."""

from __future__ import annotations

import importlib.util
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from codetr_cli.errors import DatasetError, ResourceError
from codetr_cli.formats.found import ReadOptions
from codetr_cli.formats.open import open_dataset
from tests.formats.hub_exports import NAMES, features, row, write_parquet
from tests.formats.labelling_exports import annotated, labelme, picture, region, shape, task, write

VALUES = [b"null", b"-1", b"1e999", b"NaN", b"9" * 400, b'""', b"[]", b"{}", b"true", b'"\\ud800"', b"[[[]]]"]


def labelme_folder(root: Path) -> Path:
    first = shape("cat", [[1, 2], [30, 40]]), shape("dog", [[1, 2], [30, 4], [5, 60]], "polygon", group_id=3)
    write(root / "b.json", labelme("b.jpg", shape("cat", [[1, 2], [30, 40]])))
    return write(root / "a.json", labelme("a.jpg", *first, shape("cat", [[9, 9], [12, 9]], "circle")))


def label_studio_folder(root: Path) -> Path:
    box = region("rectanglelabels", ["cat"], x=10.0, y=20.0, width=30.0, height=40.0, rotation=30)
    oval = region("ellipselabels", ["cat"], 4, x=50, y=50, radiusX=10, radiusY=20, rotation=0)
    area = region("polygonlabels", ["dog"], 3, points=[[10, 10], [20, 10], [15, 30]], closed=True)
    return write(
        root / "e.json", [task(1, "/data/upload/1/0a1b2c3d-a.jpg", annotated(box, oval, area)), task(2, "b.jpg")]
    )


def csv_folder(root: Path) -> Path:
    text = "split;filename;width;height;class;xmin;ymin;xmax;ymax\ntrain;a.jpg;200;100;cat;1;2;30;40\n"
    return write(root / "boxes.csv", text + "val;b.jpg;200;100;dog;1.5;2;30;40\ntrain;a.jpg;200;100;;;;;\n")


def open_images_folder(root: Path) -> Path:
    write(root / "class-descriptions-boxable.csv", "/m/0cmf2,Airplane\n/m/01yrx,Cat\n")
    head = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction\n"
    return write(root / "train-annotations-bbox.csv", head + "a,xclick,/m/0cmf2,1,0.1,0.6,0.2,0.8,0,0,0,0\n")


def image_folder(root: Path) -> Path:
    line = '{"file_name": "a.jpg", "objects": {"bbox": [[1, 2, 3, 4]], "categories": [3], "iscrowd": [0]}}\n'
    return write(root / "metadata.jsonl", line + line.replace("a.jpg", "b.jpg"))


def parquet_folder(root: Path) -> Path:
    rows = [row(number, (0, [10, 20, 30, 40]), (2, [0, 0, 99.5, 50])) for number in range(2)]
    return write_parquet(root / "train.parquet", rows, features(NAMES))


FOLDERS: dict[str, Callable[[Path], Path]] = {
    "labelme": labelme_folder,
    "label-studio": label_studio_folder,
    "csv": csv_folder,
    "open images": open_images_folder,
    "image folder": image_folder,
    "parquet": parquet_folder,
}


def variants(content: bytes, count: int) -> Iterator[bytes]:
    """Damaged copies of a file, always the same ones."""
    dice = random.Random(7)
    for _ in range(count):
        at, end = sorted((dice.randrange(len(content)), dice.randrange(len(content))))
        yield content[:at]
        yield content[:at] + content[end:]
        yield content[:at] + bytes((dice.randrange(256),)) + content[at + 1 :]
        yield content[:at] + content[at : at + 50] * 3 + content[at + 50 :]
        words = [index for index in range(len(content)) if content[index : index + 1] in b",:;["]
        at = dice.choice(words) + 1 if words else at
        end = min((index for index in words if index > at), default=len(content))
        yield content[:at] + dice.choice(VALUES) + content[end:]


@pytest.mark.parametrize("layout", FOLDERS)
def test_damaged_files_are_read_or_refused(tmp_path, layout, monkeypatch):
    if layout == "parquet" and importlib.util.find_spec("pyarrow") is None:
        pytest.skip("the extra parquet is not installed")
    monkeypatch.setenv("CODETR_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "set"
    for name in ("a.jpg", "b.jpg"):
        picture(root / name)
    path = FOLDERS[layout](root)
    options = ReadOptions(val_fraction=0)
    assert open_dataset(root, options) is not None
    outcomes = {"read": 0, "refused": 0}
    for content in variants(path.read_bytes(), 4 if layout == "parquet" else 20):
        path.write_bytes(content)
        start = time.process_time()
        try:
            open_dataset(root, options)
            outcomes["read"] += 1
        except (DatasetError, ResourceError) as error:
            outcomes["refused"] += 1
            assert len(str(error)) < 4000  # noqa: PT017
        except Exception as error:
            raise AssertionError(f"{content[:2000]!r}") from error
        assert time.process_time() - start < 3
    assert min(outcomes.values()) > 3, outcomes
