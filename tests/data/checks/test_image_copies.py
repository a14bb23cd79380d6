"""Images with the same content, in one split and in two."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from codetr_cli.annotations.findings import Findings
from codetr_cli.data.checks import image_copies
from codetr_cli.data.checks.image_copies import ImageCopies
from tests.data.checks.fakes import check, found


def images(root: Path, split: str) -> list[Path]:
    return sorted((root / f"{split}2017").iterdir())


def test_different_images_are_no_copies(tiny_coco: Path) -> None:
    assert not {"duplicate_image", "leaked_image", "copies_not_compared"} & set(found(check(tiny_coco)))


def test_copies_are_found_in_a_split_and_in_two(tiny_coco: Path) -> None:
    first, _, third, *_ = images(tiny_coco, "train")
    (in_val, *_) = images(tiny_coco, "val")
    shutil.copy(first, third)
    shutil.copy(first, in_val)
    findings = found(check(tiny_coco))
    twice, leaked = findings["duplicate_image"], findings["leaked_image"]
    assert (twice.where, twice.first, twice.severity) == ("train2017/", [f"{third.name} = {first.name}"], "warning")
    assert (leaked.where, leaked.count) == ("val2017/", 1)
    assert leaked.first == [f"{in_val.name} = train2017/{first.name}"]


def test_images_that_are_decoded_are_compared_too(tiny_coco: Path) -> None:
    first, second, *_ = images(tiny_coco, "train")
    shutil.copy(first, second)
    assert found(check(tiny_coco, deep=True, workers=1))["duplicate_image"].count == 1


def collected(folder: Path, contents: dict[str, bytes]) -> ImageCopies:
    copies = ImageCopies()
    copies.start("a/", folder)
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    copies.add([(name, len(content), 0) for name, content in contents.items()])
    return copies


def test_only_equal_content_counts(tmp_path: Path) -> None:
    findings = Findings()
    contents = {"1": b"abc", "2": b"abd", "3": b"abc", "4": b"abc", "5": b"abcd"}
    collected(tmp_path / "a", contents).report(findings, 2)
    (finding,) = findings.sorted()
    assert (finding.kind, finding.first) == ("duplicate_image", ["3 = 1", "4 = 1"])


def test_limits_are_said(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(image_copies, "MAX_FILES", 2)
    findings = Findings()
    copies = collected(tmp_path / "a", {str(number): b"abc" for number in range(5)})
    copies.report(findings, 2)
    assert {finding.kind: finding.count for finding in findings.sorted()} == {
        "duplicate_image": 1,
        "copies_not_compared": 3,
    }


def test_a_file_that_disappears_is_none(tmp_path: Path) -> None:
    findings = Findings()
    copies = collected(tmp_path / "a", {"1": b"abc", "2": b"abc"})
    (tmp_path / "a/2").unlink()
    copies.report(findings, 1)
    ImageCopies().report(findings, 1)
    assert findings.sorted() == []


def test_images_that_start_alike_differ_by_all_bytes(tiny_coco: Path) -> None:
    """Drawings on white: the same size, and the same start."""
    for path in images(tiny_coco, "train")[:2]:
        with Image.open(path) as image:
            pixels = np.full((image.height, image.width, 3), 255, np.uint8)
        Image.fromarray(pixels).save(path, format="BMP")
    first, second, *_ = images(tiny_coco, "train")
    content = bytearray(first.read_bytes())
    content[-1] ^= 1
    second.write_bytes(bytes(content))
    assert "duplicate_image" not in found(check(tiny_coco))
    shutil.copy(first, second)
    assert found(check(tiny_coco))["duplicate_image"].count == 1


def test_two_records_of_one_file_are_no_copies(tmp_path: Path) -> None:
    findings = Findings()
    copies = collected(tmp_path / "a", {"1": b"abc"})
    copies.add([("./1", 3, 0)])
    copies.report(findings, 1)
    assert findings.sorted() == []
