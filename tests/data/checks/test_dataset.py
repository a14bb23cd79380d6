from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from codetr_cli.config.schema import DataConfig
from codetr_cli.data.checks.dataset import DatasetReport, check_dataset
from codetr_cli.data.checks.findings import KINDS, Finding, Findings
from tests.data.fakes import huge_png

Edit = Callable[[dict[str, Any]], None]


@contextmanager
def silent(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    yield lambda n: None


def check(root: Path, **options: Any) -> DatasetReport:
    return check_dataset(root, config=DataConfig(min_side=16), progress=silent, **options)


def found(report: DatasetReport) -> dict[str, Finding]:
    return {finding.kind: finding for finding in report.findings}


def edit(root: Path, change: Edit, split: str = "train") -> None:
    path = root / "annotations" / f"instances_{split}2017.json"
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))


def first_image(root: Path) -> Path:
    return root / "train2017" / "000000000100.jpg"


def test_a_good_folder(tiny_coco: Path) -> None:
    report = check(tiny_coco)
    assert report.errors == 0
    assert report.splits["train"].as_json() == {
        "images": 4,
        "annotations": 7,
        "crowd": 1,
        "usable": 6,
        "categories": 3,
        "used_categories": 3,
        "images_without_objects": 1,
        "most_objects_in_an_image": 4,
        "masks": 7,
    }
    assert report.lists == {"train": "present", "val": "present"}
    assert set(found(report)) == {"category_id_holes", "no_objects_image", "crowd_without_rle"}
    assert found(report)["category_id_holes"].first == ["4-6"]
    assert json.loads(json.dumps(report.as_json()))["ok"] is True


def test_real_images_and_counts(shared_dir: Path) -> None:
    report = check(shared_dir / "data" / "coco_mini")
    counts = [
        (len(facts.images), facts.annotations, facts.crowd) for facts in (report.splits["train"], report.splits["val"])
    ]
    assert counts == [(80, 739, 8), (79, 624, 5)]
    assert {finding.severity for finding in report.findings} <= {"info"}
    assert not (shared_dir / "data" / "coco_mini" / "train2017.txt").exists()


def test_missing_lists_are_written_in_the_order_of_the_file(tiny_coco: Path) -> None:
    (tiny_coco / "train2017.txt").unlink()
    report = check(tiny_coco)
    assert report.lists == {"train": "written", "val": "present"}
    names = [f"train2017/{name}" for name, _, _ in report.splits["train"].images]
    assert (tiny_coco / "train2017.txt").read_text().splitlines() == names


def test_a_list_that_disagrees(tiny_coco: Path) -> None:
    (tiny_coco / "val2017.txt").write_text("val2017/other.jpg\n")
    report = check(tiny_coco)
    assert report.lists["val"] == "differs"
    assert found(report)["list_differs"].first == ["2 images not in it, 1 more in it"]


# ------------------------------------------------------------------------------------------------ the annotation file


@pytest.mark.parametrize(
    ("damage", "kind", "words"),
    [
        (lambda text: text[:300], "truncated_json", "it ends at byte 300"),
        (lambda text: text[: text.index("width") + 3], "truncated_json", "while the JSON is still open"),
        (lambda text: text[: text.index("128")] + "12", "truncated_json", "while the JSON is still open"),
        (lambda text: "", "truncated_json", "zero bytes"),
        (lambda text: " \n", "truncated_json", "white space"),
        (lambda text: "<xml/>", "not_json", "Expecting value at byte 0 (line 1, column 1)"),
        (lambda text: text + text, "not_json", "Extra data at byte"),
        (lambda text: text.replace("width", "wid\u00e4th", 1)[:400].replace(",", ";", 1), "not_json", "delimiter"),
        (lambda text: "[" * 100_000, "not_json", "recursion"),
        (lambda text: "null", "wrong_schema", "the top level is null, an object is needed"),
        (lambda text: '[{"image_id": 1, "score": 0.5}]', "wrong_schema", "looks like a file of detections"),
        (
            lambda text: '{"images": {}, "annotations": []}',
            "wrong_schema",
            "key 'images' is an object, a list is needed",
        ),
        (lambda text: '{"images": {}, "annotations": []}', "wrong_schema", "key 'categories' is missing"),
    ],
)
def test_files_that_cannot_be_understood(tiny_coco: Path, damage: Callable[[str], str], kind: str, words: str) -> None:
    path = tiny_coco / "annotations" / "instances_train2017.json"
    path.write_text(damage(path.read_text()), encoding="utf-8")
    report = check(tiny_coco)
    finding = found(report)[kind]
    assert (finding.severity, finding.where) == ("error", "annotations/instances_train2017.json")
    assert words in finding.first[0]
    assert "train" not in report.splits


def test_bytes_are_counted_as_bytes(tiny_coco: Path) -> None:
    path = tiny_coco / "annotations" / "instances_train2017.json"
    path.write_text('{"images": ["\u00e4\u00f6\u00fc"] x', encoding="utf-8")
    assert "at byte 22" in found(check(tiny_coco))["not_json"].first[0]


def test_latin_1_is_not_utf_8(tiny_coco: Path) -> None:
    path = tiny_coco / "annotations" / "instances_train2017.json"
    path.write_bytes('{"images": "\u00e4"}'.encode("latin-1"))
    assert "no UTF-8 text at byte 12" in found(check(tiny_coco))["not_json"].first[0]


def put(key: str, index: int, **values: Any) -> Edit:
    return lambda table: table[key][index].update(values)


def drop(key: str, index: int, name: str) -> Edit:
    return lambda table: table[key][index].pop(name)


def set_record(key: str, index: int, value: object) -> Edit:
    return lambda table: table[key].__setitem__(index, value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop("images", 1, "file_name"), "images[1] (id 201) has no 'file_name'"),
        (drop("images", 0, "id"), "images[0] has no 'id'"),
        (drop("images", 0, "height"), "images[0] (id 100, 000000000100.jpg) has no 'height'"),
        (put("images", 0, width="wide"), "has the width 'wide', a positive integer is needed"),
        (put("images", 0, width=0), "has the width 0, a positive integer is needed"),
        (set_record("images", 2, 7), "images[2] is a number, an object is needed"),
        (drop("annotations", 3, "bbox"), "annotations[3] (id 4) has no 'bbox'"),
        (
            put("annotations", 0, bbox=[1, 2, 3]),
            "annotations[0] (id 1) has the bbox [1, 2, 3], four numbers are needed",
        ),
        (put("annotations", 0, bbox=[1, 2, "3", 4]), "four numbers are needed"),
        (drop("annotations", 0, "category_id"), "annotations[0] (id 1) has no 'category_id'"),
        (put("annotations", 0, image_id="100"), "annotations[0] has the image_id '100', an integer is needed"),
        (set_record("annotations", 1, None), "annotations[1] is null, an object is needed"),
        (drop("categories", 1, "name"), "categories[1] has no name"),
        (put("categories", 1, id=2.5), "categories[1] has the id 2.5, an integer is needed"),
    ],
)
def test_records_that_break_the_schema_are_named(tiny_coco: Path, change: Edit, words: str) -> None:
    edit(tiny_coco, change)
    finding = found(check(tiny_coco))["wrong_schema"]
    assert finding.severity == "error"
    assert any(words in name for name in finding.first)


def test_whole_floats_are_integers(tiny_coco: Path) -> None:
    edit(tiny_coco, put("images", 0, width=128.0, height=96.0, id=100.0))
    assert check(tiny_coco).errors == 0


def move(table: dict[str, Any]) -> None:
    """Category ids 0, 1, 2 instead of 7, 2, 3."""
    new = {7: 0, 2: 1, 3: 2}
    for category in table["categories"]:
        category["id"] = new[category["id"]]
    for annotation in table["annotations"]:
        annotation["category_id"] = new[annotation["category_id"]]


def test_ids_from_zero_are_fine(tiny_coco: Path) -> None:
    edit(tiny_coco, move)
    edit(tiny_coco, move, "val")
    report = check(tiny_coco)
    assert report.errors == 0
    assert found(report)["category_id_zero"].first == ["ring"]
    assert "category_id_holes" not in found(report)


@pytest.mark.parametrize(
    ("change", "kind", "severity", "words"),
    [
        (put("images", 1, id=100), "duplicate_image_id", "error", "100 (000000000201.jpg)"),
        (put("images", 1, file_name="000000000100.jpg"), "duplicate_file_name", "warning", "000000000100.jpg"),
        (put("categories", 1, id=7), "duplicate_category_id", "error", "7 (ring, disc)"),
        (put("categories", 1, name="ring"), "duplicate_category_name", "warning", "ring"),
        (put("annotations", 1, id=1), "duplicate_annotation_id", "warning", "1"),
        (put("annotations", 1, id=0), "zero_annotation_id", "info", ""),
        (drop("annotations", 1, "id"), "no_annotation_id", "info", ""),
        (put("annotations", 1, image_id=999), "unknown_image_id", "warning", "annotation 2 (image_id 999)"),
        (put("annotations", 1, category_id=99), "unknown_category_id", "error", "annotation 2 (category_id 99)"),
        (
            lambda table: table["categories"].append({"id": 9, "name": "ghost"}),
            "unused_category",
            "warning",
            "ghost (id 9)",
        ),
        (put("categories", 0, name="wheel"), "categories_differ", "error", "id 7 is 'wheel' in train, 'ring' in val"),
        (lambda table: table["images"].clear(), "no_images", "error", ""),
        (lambda table: table["categories"].clear(), "no_categories", "error", ""),
        (lambda table: table["annotations"].clear(), "no_objects", "error", ""),
        (
            put("annotations", 0, bbox=[1, 2, float("nan"), 4]),
            "box_not_finite",
            "error",
            "annotation 1: [1, 2, nan, 4]",
        ),
        (put("annotations", 0, bbox=[1, 2, float("inf"), 4]), "box_not_finite", "error", "annotation 1"),
        (put("annotations", 0, bbox=[10**400, 2, 3, 4]), "box_not_finite", "error", "annotation 1"),
        (put("annotations", 0, bbox=[50, 50, -10, 20]), "box_negative", "error", "annotation 1: [50, 50, -10, 20]"),
        (put("annotations", 0, bbox=[5, 5, 0, 20]), "box_degenerate", "warning", "annotation 1: [5, 5, 0, 20]"),
        (put("annotations", 0, bbox=[200, 5, 9, 9]), "box_outside", "warning", "[200, 5, 9, 9] in 128 x 96"),
        (put("annotations", 0, bbox=[100, 5, 40, 40]), "box_beyond_edge", "info", "[100, 5, 40, 40] in 128 x 96"),
        (put("annotations", 0, area="big"), "bad_area", "error", "annotation 1 (area 'big')"),
        (put("annotations", 0, area=0), "area_not_positive", "warning", "annotation 1 (area 0)"),
        (put("annotations", 0, ignore=1), "ignored", "info", ""),
        (put("annotations", 0, iscrowd=3), "crowd_value", "error", "annotation 1 (iscrowd 3)"),
        (put("annotations", 0, iscrowd=1), "crowd_without_rle", "warning", "annotation 1"),
    ],
)
def test_ids_classes_and_boxes(tiny_coco: Path, change: Edit, kind: str, severity: str, words: str) -> None:
    edit(tiny_coco, change)
    report = check(tiny_coco)
    finding = found(report)[kind]
    assert finding.severity == severity
    assert not words or any(words in name for name in finding.first)
    assert severity != "error" or report.errors


def test_run_length_crowds_are_right(tiny_coco: Path) -> None:
    mask = {"counts": [1, 2], "size": [96, 128]}
    for split in ("train", "val"):
        edit(tiny_coco, put("annotations", -1, segmentation=mask), split)
    report = check(tiny_coco)
    assert report.splits["train"].crowd == 1
    assert "crowd_without_rle" not in found(report)


def test_normalised_boxes_are_recognised(tiny_coco: Path) -> None:
    def shrink(table: dict[str, Any]) -> None:
        for annotation in table["annotations"]:
            annotation["bbox"] = [value / 128 for value in annotation["bbox"]]

    edit(tiny_coco, shrink)
    assert "e.g. annotation 1" in found(check(tiny_coco))["box_normalised"].first[0]


def test_corner_boxes_are_recognised(tiny_coco: Path) -> None:
    def corners(table: dict[str, Any]) -> None:
        for annotation in table["annotations"]:
            annotation["bbox"] = [60, 50, 90, 90]

    edit(tiny_coco, corners)
    assert found(check(tiny_coco))["box_corners"].count == 7


def test_more_objects_than_queries(tiny_coco: Path) -> None:
    def crowd(table: dict[str, Any]) -> None:
        first = table["annotations"][0]
        table["annotations"] += [first | {"id": 1000 + i} for i in range(950)]

    edit(tiny_coco, crowd)
    assert found(check(tiny_coco))["many_objects"].first == ["image 100: 951"]


def test_offenders_are_counted_and_the_first_five_named(tiny_coco: Path) -> None:
    def spoil(table: dict[str, Any]) -> None:
        for annotation in table["annotations"]:
            annotation["bbox"][2] = -1

    edit(tiny_coco, spoil)
    finding = found(check(tiny_coco))["box_negative"]
    assert (finding.count, len(finding.first)) == (7, 5)
    assert "7 box(es) of negative width or height: annotation 1: [" in finding.sentence()
    assert "; and 2 more. COCO boxes are (x, y, width, height)" in finding.sentence()


# -------------------------------------------------------------------------------------------------------- image files


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


def test_missing_parts(tiny_coco: Path) -> None:
    shutil.rmtree(tiny_coco / "val2017")
    assert found(check(tiny_coco))["no_image_folder"].where == "val2017/"
    (tiny_coco / "annotations" / "instances_val2017.json").unlink()
    report = check(tiny_coco)
    assert report.errors == 0
    assert found(report)["no_validation"].severity == "warning"


def test_images_without_their_annotation_file(tiny_coco: Path) -> None:
    (tiny_coco / "annotations" / "instances_val2017.json").unlink()
    finding = found(check(tiny_coco))["no_annotations"]
    assert (finding.severity, finding.where) == ("error", "annotations/instances_val2017.json")


def test_a_set_for_evaluation_alone_cannot_train(tiny_coco: Path) -> None:
    shutil.rmtree(tiny_coco / "train2017")
    (tiny_coco / "annotations" / "instances_train2017.json").unlink()
    assert found(check(tiny_coco))["no_training"].severity == "error"


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


def test_progress_counts_every_file(tiny_coco: Path) -> None:
    steps_of: dict[str, tuple[int | None, list[int]]] = {}

    @contextmanager
    def progress(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
        steps_of[description] = (total, [])
        yield steps_of[description][1].append

    check_dataset(tiny_coco, config=DataConfig(), progress=progress)
    assert {name: (total, sum(steps)) for name, (total, steps) in steps_of.items()} == {
        "reading annotations/instances_train2017.json": (1, 1),
        "reading headers of train2017/": (4, 4),
        "reading annotations/instances_val2017.json": (1, 1),
        "reading headers of val2017/": (2, 2),
    }


# ---------------------------------------------------------------------------------------------------------- the words


def test_every_serious_kind_has_a_fix() -> None:
    assert [name for name, kind in KINDS.items() if kind.severity != "info" and not kind.fix] == []


def test_merged_findings_keep_counts_and_order() -> None:
    left, right = Findings(), Findings()
    for index in range(4):
        left.add("missing_file", "x", f"left {index}")
    for index in range(7):
        right.add("missing_file", "x", f"right {index}")
    left.merge(right)
    finding = left.get("missing_file", "x")
    assert finding is not None
    assert (finding.count, finding.first[3:]) == (11, ["left 3", "right 0"])


def test_the_check_needs_no_torch() -> None:
    code = "import sys, codetr_cli.data.checks.dataset, codetr_cli.data.images; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
