"""Image files against their annotations, by headers or decoded."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from codetr_cli.config.data_settings import DataConfig
from codetr_cli.data.checks.dataset import check_dataset
from tests.data.checks.fakes import check, edit, found, put, silent
from tests.data.fakes import huge_png


def first_image(root: Path) -> Path:
    return root / "train2017" / "000000000100.jpg"


def save(path: Path, size: tuple[int, int] = (96, 128), **options: Any) -> None:
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(path, **options)


def replace(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize(
    ("damage", "kind", "severity", "words"),
    [
        (lambda path: path.unlink(), "missing_file", "error", "000000000100.jpg"),
        (lambda path: path.write_bytes(b""), "empty_file", "error", "zero bytes"),
        (lambda path: replace(path, os.mkfifo), "unreadable_file", "error", "it is a named pipe, not a regular file"),
        (
            lambda path: replace(path, lambda path: path.symlink_to("/dev/zero")),
            "unreadable_file",
            "error",
            "it is a device, not a regular file",
        ),
        (
            lambda path: path.write_bytes(path.read_bytes()[:-100]),
            "truncated_file",
            "error",
            "end of the file is missing",
        ),
        (lambda path: path.write_text("no image"), "not_an_image", "error", "text: 'no image'"),
        (lambda path: path.write_bytes(huge_png(20_000)), "too_many_pixels", "error", "20000 x 20000 = 400 million"),
        (lambda path: save(path, (48, 64)), "size_differs", "error", "64 x 48 in the file, 128 x 96 listed"),
        (lambda path: save(path, (128, 96)), "size_differs", "error", "width and height seem to be swapped"),
        (
            lambda path: save(path, exif=exif(6)),
            "rotation_differs",
            "warning",
            "96 x 128 after rotation, 128 x 96 listed",
        ),
        (lambda path: save(path, (128, 96), exif=exif(6)), "rotated", "info", "EXIF orientation 6"),
        (lambda path: save(path, exif=exif(3)), "rotated", "info", "EXIF orientation 3"),
        (lambda path: save(path, format="PNG"), "misnamed_file", "info", "PNG"),
        (lambda path: Image.new("CMYK", (128, 96)).save(path), "unusual_pixels", "info", "cmyk, 8 bits"),
        (lambda path: path.with_name("new.jpg").write_bytes(b"x"), "unlisted_file", "info", "new.jpg"),
    ],
)
def test_files(tiny_coco: Path, damage: Callable[[Path], None], kind: str, severity: str, words: str) -> None:
    damage(first_image(tiny_coco))
    report = check(tiny_coco)
    finding = found(report)[kind]
    assert (finding.severity, finding.where, finding.count) == (severity, "train2017/", 1)
    assert words in finding.first[0]
    assert bool(report.errors) == (severity == "error")


def test_files_that_are_skipped_are_no_errors_unless_they_are_many(tiny_coco: Path) -> None:
    table_path = tiny_coco / "annotations" / "instances_train2017.json"
    table = json.loads(table_path.read_text())
    for number in range(20):
        name = f"more{number}.png"
        Image.effect_noise((64, 48), number + 1).convert("RGB").save(tiny_coco / "train2017" / name)
        table["images"].append({"id": 5000 + number, "file_name": name, "width": 64, "height": 48})
    table["images"][-1]["width"] = 60
    table_path.write_text(json.dumps(table))
    (tiny_coco / "train2017" / "more0.png").write_text("<html>")
    for mode, errors in (("error", 2), ("skip", 0)):
        config = DataConfig(min_side=16, bad_files=mode)
        report = check_dataset(tiny_coco, config=config, progress=silent, workers=1)
        assert report.errors == errors
        for kind in ("not_an_image", "size_differs"):
            assert ("are skipped" in found(report)[kind].sentence()) == (mode == "skip")
    (tiny_coco / "train2017" / "more1.png").unlink()
    report = check_dataset(tiny_coco, config=config, progress=silent, workers=1)
    assert report.errors == 3


@pytest.mark.parametrize(
    ("other", "kind"),
    [
        ("000000000100.JPG", "renamed_file"),
        ("sub/000000000100.jpg", "renamed_file"),
        ("000000000100.png", "missing_file"),  # another file, maybe
    ],
)
def test_missing_files_are_looked_for(tiny_coco: Path, other: str, kind: str) -> None:
    target = first_image(tiny_coco).parent / other
    target.parent.mkdir(exist_ok=True)
    first_image(tiny_coco).rename(target)
    report = check(tiny_coco)
    assert found(report)[kind].first == [f"000000000100.jpg (on disk it is {other})"]
    assert bool(report.errors) == (kind == "missing_file")


def test_names_with_backslashes_are_explained(tiny_coco: Path) -> None:
    edit(tiny_coco, put("images", 0, file_name="sub\\other.jpg"))
    assert "written on Windows: use / instead of" in found(check(tiny_coco))["missing_file"].first[0]


def test_small_images_are_mentioned(tiny_coco: Path) -> None:
    report = check_dataset(tiny_coco, config=DataConfig(min_side=100), progress=silent)
    assert report.errors == 0
    assert [finding.where for finding in report.findings if finding.kind == "small_image"] == ["train2017/", "val2017/"]


def test_decoding_finds_what_headers_hide(tiny_coco: Path) -> None:
    path = first_image(tiny_coco)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40] = b"\xff\xc4" * 20
    path.write_bytes(bytes(data))
    other = tiny_coco / "train2017" / "000000000201.jpg"
    good = cv2.imencode(".png", np.zeros((128, 100, 3), np.uint8))[1].tobytes()
    other.write_bytes(good[:60] + bytes(len(good) - 72) + good[-12:])
    shallow, deep = found(check(tiny_coco)), found(check(tiny_coco, deep=True, workers=1))
    assert "decode_failed" not in shallow
    named = [name for kind in ("decode_failed", "decode_complained") if kind in deep for name in deep[kind].first]
    assert {name.split()[0] for name in named} == {path.name, other.name}


def test_any_number_of_workers_finds_the_same(tiny_coco: Path) -> None:
    for path in (tiny_coco / "train2017").iterdir():
        path.write_bytes(b"")
    one, many = check(tiny_coco, workers=1).as_json(), check(tiny_coco, workers=4).as_json()
    del one["seconds"], many["seconds"]
    assert one == many
