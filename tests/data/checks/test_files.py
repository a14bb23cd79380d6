"""Image files against their annotations, by headers or decoded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from codetr_cli.config.schema import DataConfig
from codetr_cli.data.checks.dataset import check_dataset
from tests.data.checks.fakes import check, found, silent
from tests.data.fakes import huge_png


def first_image(root: Path) -> Path:
    return root / "train2017" / "000000000100.jpg"


def save(path: Path, size: tuple[int, int] = (96, 128), **options: Any) -> None:
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(path, **options)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize(
    ("damage", "kind", "severity", "words"),
    [
        (lambda path: path.unlink(), "missing_file", "error", "000000000100.jpg"),
        (lambda path: path.write_bytes(b""), "empty_file", "error", "zero bytes"),
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


@pytest.mark.parametrize(
    ("other", "hint"),
    [
        ("000000000100.JPG", "on disk it is spelled 000000000100.JPG"),
        ("sub/000000000100.jpg", "found as sub/000000000100.jpg"),
        ("000000000100.png", "found 000000000100.png"),
    ],
)
def test_missing_files_are_looked_for(tiny_coco: Path, other: str, hint: str) -> None:
    target = first_image(tiny_coco).parent / other
    target.parent.mkdir(exist_ok=True)
    first_image(tiny_coco).rename(target)
    assert hint in found(check(tiny_coco))["missing_file"].first[0]


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
