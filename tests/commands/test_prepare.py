from __future__ import annotations

import json
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from codetr_cli.data import demo
from tests.conftest import Ran, write_tiny_coco
from tests.data.fakes import huge_png, write_image, write_voc, xml

Command = Callable[..., Ran]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links and demo sets land in the test's folder."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)


def edit(root: Path, change: Callable[[dict[str, Any]], object], split: str = "train") -> None:
    path = root / "annotations" / f"instances_{split}2017.json"
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))


def edit_both(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit(root, change)
    edit(root, change, "val")


def image(root: Path) -> Path:
    return root / "train2017" / "000000000100.jpg"


def annotations(root: Path) -> Path:
    return root / "annotations" / "instances_train2017.json"


def no_traceback(ran: Ran) -> bool:
    return "Traceback" not in ran.out + ran.err and "unexpected" not in ran.out + ran.err


def test_a_good_folder_is_reported_and_linked(codetr: Command, tiny_coco: Path) -> None:
    ran = codetr("prepare", tiny_coco)
    assert ran.code == 0
    assert f"linked data/coco -> {tiny_coco}" in ran.out
    assert Path("data/coco").resolve() == tiny_coco
    assert "6 image files checked" in ran.out
    assert "attention on cpu" in ran.out
    assert "PyTorch" in ran.out
    assert ran.out.rstrip().splitlines()[-1] == "next: codetr train --preset co_dino_tiny"


def test_the_real_images(codetr: Command, shared_dir: Path) -> None:
    ran = codetr("prepare", shared_dir / "data" / "coco_mini", "--no-link", "--json")
    assert ran.code == 0
    splits = ran.json["dataset"]["splits"]
    assert [splits[name]["images"] for name in ("train", "val")] == [80, 79]
    assert [splits[name]["annotations"] for name in ("train", "val")] == [739, 624]
    assert [splits[name]["crowd"] for name in ("train", "val")] == [8, 5]
    assert ran.json["link"] is None
    assert not Path("data").exists()


def test_json_is_one_object_and_text_goes_elsewhere(codetr: Command, tiny_coco: Path) -> None:
    ran = codetr("prepare", tiny_coco, "--json")
    assert ran.json["ok"] is True
    assert ran.json["link"] == {"status": "linked", "path": "data/coco", "detail": ""}
    assert ran.json["next"].startswith("codetr train")
    assert ran.json["environment"]["torch"]
    assert {finding["kind"] for finding in ran.json["dataset"]["findings"]} >= {"category_id_holes"}
    assert "next: codetr train" in ran.err


def test_preparing_twice_changes_nothing(codetr: Command, tiny_coco: Path) -> None:
    first = codetr("prepare", tiny_coco, "--json").json
    second = codetr("prepare", tiny_coco, "--json").json
    assert (first["link"]["status"], second["link"]["status"]) == ("linked", "present")
    assert codetr("prepare", "--json").json["dataset"]["splits"] == first["dataset"]["splits"]  # data/coco by default


def test_another_link_is_never_overwritten(codetr: Command, tiny_coco: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    Path("data").mkdir()
    Path("data/coco").symlink_to(tmp_path / "other")
    ran = codetr("prepare", tiny_coco)
    assert ran.code == 0
    assert Path("data/coco").readlink() == tmp_path / "other"
    assert f"data/coco is a link to {tmp_path / 'other'} and was not changed" in ran.err
    assert "`rm data/coco`" in ran.err
    assert ran.out.rstrip().endswith(f"--data {tiny_coco}")


def test_a_folder_in_the_links_place_stays(codetr: Command, tiny_coco: Path) -> None:
    Path("data/coco").mkdir(parents=True)
    ran = codetr("prepare", tiny_coco)
    assert ran.code == 0
    assert "data/coco is another folder and was not changed" in ran.err
    assert "`mv data/coco ELSEWHERE`" in ran.err


def test_without_links_the_other_ways_are_told(
    codetr: Command, tiny_coco: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    ran = codetr("prepare", tiny_coco)
    assert ran.code == 0
    assert f"Pass --data {tiny_coco} to the other verbs, or set CODETR_DATA" in ran.err
    assert f"next: codetr train --preset co_dino_tiny --data {tiny_coco}" in ran.out


def test_a_link_of_another_name_needs_the_path(codetr: Command, tiny_coco: Path) -> None:
    ran = codetr("prepare", tiny_coco, "--link", "sets/mine")
    assert Path("sets/mine").resolve() == tiny_coco
    assert f"--data {tiny_coco}" in ran.out


def test_without_a_path_the_environment_names_the_folder(
    codetr: Command, tiny_coco: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODETR_DATA", str(tiny_coco))
    assert codetr("prepare", "--json", "--no-link").json["dataset"]["folder"] == str(tiny_coco)


def test_nothing_named_and_nothing_there(codetr: Command) -> None:
    ran = codetr("prepare")
    assert ran.code == 2
    assert "codetr prepare DIR" in ran.err
    assert "--demo" in ran.err


def test_a_set_without_validation_trains_without_evaluation(codetr: Command, tiny_coco: Path) -> None:
    for path in sorted((tiny_coco / "val2017").iterdir()):
        path.unlink()
    (tiny_coco / "val2017").rmdir()
    (tiny_coco / "annotations" / "instances_val2017.json").unlink()
    ran = codetr("prepare", tiny_coco, "--val-fraction", "0")
    assert ran.code == 0
    assert "validation set missing" in ran.err
    assert ran.out.rstrip().endswith("--val-fraction 0.0 --no-eval")
    ran = codetr("prepare", tiny_coco)
    assert ran.code == 0
    assert "1 of the 4 images is reserved for validation" in ran.out
    assert "--no-eval" not in ran.out


# ------------------------------------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("damage", "culprit", "cure"),
    [
        (lambda root: annotations(root).write_text('{"images": [{"id'), "it ends at byte 16", "Copy, unpack or export"),
        (lambda root: annotations(root).write_text("hello"), "Expecting value at byte 0", "Export it again as COCO"),
        (lambda root: annotations(root).write_text('{"a": 1}'), "key 'images' is missing", "COCO's instances format"),
        (lambda root: edit(root, lambda t: t["annotations"][0].pop("bbox")), "annotations[0] (id 1)", "Fix these"),
        (lambda root: edit(root, lambda t: t["images"][1].update(id=100)), "image id(s) used twice: 100", "unique id"),
        (
            lambda root: edit(root, lambda t: t["annotations"][0].update(category_id=5)),
            "annotation 1 (category_id 5)",
            "Add the category",
        ),
        (
            lambda root: edit(root, lambda t: t["annotations"][0].update(bbox=[1, 2, float("nan"), 4])),
            "annotation 1: [1, 2, nan, 4]",
            "Remove or redraw",
        ),
        (
            lambda root: edit(root, lambda t: t["annotations"][0].update(bbox=[50, 50, -5, 4])),
            "annotation 1: [50, 50, -5, 4]",
            "redraw or convert",
        ),
        (
            lambda root: edit(root, lambda t: t["categories"].pop()),
            "id 3 is absent in train, 'bar' in val",
            "same ids, same names",
        ),
        (lambda root: image(root).unlink(), "000000000100.jpg", "Copy them there or remove their records"),
        (lambda root: image(root).write_bytes(b""), "000000000100.jpg (the file has zero bytes)", "Copy them again"),
        (
            lambda root: image(root).write_bytes(image(root).read_bytes()[:-200]),
            "000000000100.jpg (the JPEG has no end marker",
            "Copy them again",
        ),
        (lambda root: image(root).write_text("text"), "000000000100.jpg (text: 'text')", "Replace them"),
        (
            lambda root: image(root).write_bytes(huge_png(20_000)),
            "000000000100.jpg (20000 x 20000 = 400 million, 100,000,000 allowed)",
            "--set data.max_pixels=",
        ),
        (
            lambda root: Image.new("RGB", (64, 48)).save(image(root)),
            "000000000100.jpg (64 x 48 in the file, 128 x 96 listed)",
            "Restore the original images",
        ),
        (
            lambda root: (root / "train2017").rename(root / "pictures"),
            "train2017/: 1 missing image folder",
            "Unpack the images there",
        ),
    ],
)
@pytest.mark.parametrize("form", ["text", "json"])
def test_damage_ends_with_exit_code_3(
    codetr: Command, tiny_coco: Path, damage: Callable[[Path], object], culprit: str, cure: str, form: str
) -> None:
    damage(tiny_coco)
    ran = codetr("prepare", tiny_coco, *(["--json"] if form == "json" else []))
    assert ran.code == 3
    assert no_traceback(ran)
    assert culprit in ran.err
    assert cure in ran.err
    assert f"next: codetr prepare {tiny_coco}" in ran.out + ran.err
    if form == "json":
        errors = [finding for finding in ran.json["dataset"]["findings"] if finding["severity"] == "error"]
        assert any(cure in finding["fix"] for finding in errors)
        assert ran.json["ok"] is False


@pytest.mark.parametrize(
    ("damage", "culprit", "cure"),
    [
        (
            lambda root: edit_both(root, lambda t: t["categories"].append({"id": 9, "name": "ghost"})),
            "without a single annotation: ghost (id 9)",
            "remove or annotate them",
        ),
        (
            lambda root: edit(root, lambda t: t["annotations"][0].update(bbox=[500, 5, 9, 9])),
            "[500, 5, 9, 9] in 128 x 96",
            "excluded from training",
        ),
        (
            lambda root: Image.new("RGB", (128, 96)).save(image(root), exif=_turned()),
            "96 x 128 after rotation, 128 x 96 listed",
            "rotate the pixels permanently",
        ),
    ],
)
def test_lesser_damage_is_a_warning(
    codetr: Command, tiny_coco: Path, damage: Callable[[Path], object], culprit: str, cure: str
) -> None:
    damage(tiny_coco)
    ran = codetr("prepare", tiny_coco)
    assert ran.code == 0
    assert culprit in ran.err
    assert cure in ran.err


def _turned() -> bytes:
    return b"Exif\0\0MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)


def test_holes_and_ids_from_zero_are_fine(codetr: Command, tiny_coco: Path) -> None:
    def renumber(table: dict[str, Any]) -> None:
        for record in table["categories"]:
            record["id"] = {7: 0, 2: 2, 3: 90}[record["id"]]
        for record in table["annotations"]:
            record["category_id"] = {7: 0, 2: 2, 3: 90}[record["category_id"]]

    edit_both(tiny_coco, renumber)
    ran = codetr("prepare", tiny_coco, "--json")
    assert ran.code == 0
    assert {finding["kind"] for finding in ran.json["dataset"]["findings"]} >= {"category_id_holes", "category_id_zero"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("gone", ["there is no folder", "did you mean"]),
        ("coco/train2017", ["is not the data set's folder", "run `codetr prepare"]),
        ("voc", ["a.xml is not valid XML", "Export it again"]),
        ("yolo", ["is a YOLO data set without class names", "classes.txt"]),
    ],
)
def test_wrong_folders(codetr: Command, tiny_coco: Path, tmp_path: Path, given: str, words: list[str]) -> None:
    for name in ("voc/JPEGImages/a.jpg", "voc/Annotations/a.xml", "yolo/labels/train/a.txt", "gonee/x"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("")
    ran = codetr("prepare", tmp_path / given, "--json")
    assert ran.code == 3
    assert no_traceback(ran)
    assert ran.json["exit_code"] == 3
    assert all(word in ran.err for word in words)
    assert not Path("data").exists()


def test_more_pixels_can_be_allowed(codetr: Command, tiny_coco: Path) -> None:
    image(tiny_coco).write_bytes(huge_png(20_000))
    ran = codetr("prepare", tiny_coco, "--set", "data.max_pixels=500000000", "--json")
    assert {finding["kind"] for finding in ran.json["dataset"]["findings"] if finding["severity"] == "error"} == {
        "size_differs"
    }


def test_a_protected_folder_is_checked_all_the_same(codetr: Command, tiny_coco: Path) -> None:
    (tiny_coco / "train2017.txt").unlink()
    tiny_coco.chmod(0o555)
    try:
        ran = codetr("prepare", tiny_coco)
    finally:
        tiny_coco.chmod(0o755)
    assert ran.code == 0
    assert "train2017.txt: 1 list file that could not be written: the folder is write-protected" in ran.out
    assert not (tiny_coco / "train2017.txt").exists()


def test_decoding_on_request(codetr: Command, tiny_coco: Path) -> None:
    data = image(tiny_coco).read_bytes()
    middle = len(data) // 2
    image(tiny_coco).write_bytes(data[:middle] + b"\xff\xc4" * 20 + data[middle + 40 :])
    ran = codetr("prepare", tiny_coco, "--deep", "--workers", "2", "--json")
    kinds = {finding["kind"]: finding for finding in ran.json["dataset"]["findings"]}
    named = [name for kind in ("decode_failed", "decode_complained") if kind in kinds for name in kinds[kind]["first"]]
    assert [name.split()[0] for name in named] == ["000000000100.jpg"]


# ----------------------------------------------------------------------------------------------------------- the demo


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Writes the tiny set in place of the demo set, which takes seconds; holds the folders asked for."""
    asked: list[Path] = []

    def write_demo(folder: Path) -> None:
        asked.append(folder)
        write_tiny_coco(folder)

    monkeypatch.setattr(demo, "write_demo", write_demo)
    return asked


def test_a_demo_set_is_written_once_checked_and_linked(codetr: Command, stand_in: list[Path]) -> None:
    ran = codetr("prepare", "--demo", "demo/data", "--json")
    assert ran.code == 0
    assert ran.json["dataset"]["splits"]["train"]["images"] == 4
    assert ran.json["link"]["status"] == "linked"
    assert ran.json["next"] == "codetr train --preset co_dino_tiny"
    again = codetr("prepare", "--demo", "demo/data")
    assert again.code == 0
    assert "already holds a dataset" in again.out
    assert stand_in == [Path("demo/data")]


def test_a_demo_never_overwrites(codetr: Command, stand_in: list[Path], tiny_coco: Path) -> None:
    Path("demo").mkdir()
    Path("demo/mine.txt").write_text("precious")
    ran = codetr("prepare", "--demo", "demo")
    assert ran.code == 2
    assert "nothing is overwritten" in ran.err
    both = codetr("prepare", tiny_coco, "--demo", "new")
    assert both.code == 2
    assert "exclude each other" in both.err
    assert stand_in == []


def test_the_real_demo_set_is_sound(codetr: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "write_demo", partial(demo.write_demo, train=30, val=6))
    ran = codetr("prepare", "--demo", "demo", "--json")
    assert ran.code == 0
    splits = ran.json["dataset"]["splits"]
    assert (splits["train"]["images"], splits["val"]["images"]) == (30, 6)
    assert ran.json["dataset"]["lists"] == {"train": "present", "val": "present"}
    assert ran.json["dataset"]["findings"] == []


# ---------------------------------------------------------------------------------------------------- any other layout


def test_every_layout_is_named_with_where_its_splits_come_from(
    codetr: Command, tiny_coco: Path, tmp_path: Path
) -> None:
    files = {name: xml(("ant", 1, 1, 9, 9)) for name in "abc"}
    voc = write_voc(tmp_path / "kit" / "VOC2007", files, {"train": "a", "val": "b", "test": "c"}).parent
    yolo = tmp_path / "yolo"
    for split in ("train", "val"):
        write_image(yolo / "images" / split / "a.jpg")
        (yolo / "labels" / split).mkdir(parents=True)
        (yolo / "labels" / split / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (yolo / "data.yaml").write_text("names: [ant]\ntrain: images/train\nval: images/val\n")
    expected = {
        tiny_coco: "COCO data set: train from annotations/instances_train2017.json, val from annotations/instances_val",
        voc: "Pascal VOC data set (it has Annotations/a.xml): train from VOC2007/ImageSets/Main/train.txt, "
        "val from VOC2007/ImageSets/Main/val.txt, test from VOC2007/ImageSets/Main/test.txt",
        yolo: "YOLO data set (it has data.yaml): train from images of train, val from images of val",
    }
    for folder, words in expected.items():
        ran = codetr("prepare", folder, "--no-link", "--set", "data.min_side=1")
        assert ran.code == 0, ran.err
        assert f"{folder} is a {words}" in ran.out
    for name in ("train", "val"):
        path = tiny_coco / "annotations" / f"instances_{name}2017.json"
        path.rename(path.with_name(f"zhiyuan_objv2_{name}.json"))
        (tiny_coco / f"{name}2017").rename(tiny_coco / name)
    ran = codetr("prepare", tiny_coco, "--no-link", "--json")
    assert ran.json["dataset"]["layout"] == "Objects365"
    assert ran.json["dataset"]["places"]["val"] == "annotations/zhiyuan_objv2_val.json"
