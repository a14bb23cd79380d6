"""Names of files in a data set lead to files inside it, for every layout and command alike."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from codetr_cli.annotations.file_names import NameRule
from codetr_cli.config.overrides import parse_settings, to_toml
from codetr_cli.config.schema import Settings
from codetr_cli.data.coco import build_dataset
from codetr_cli.errors import DatasetError
from tests.conftest import Ran
from tests.data.fakes import write_image, write_voc, xml

ALLOWED = ("--set", "data.allow_outside=true")


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("a.jpg", True),
        ("sub/a..b.jpg", True),
        ("../val/a.jpg", True),
        ("x/../../val/a.jpg", True),
        ("{root}/val/a.jpg", True),
        ("{link}/val/a.jpg", True),
        ("../../set2/a.jpg", False),
        ("../../a.jpg", False),
        ("{root}/../a.jpg", False),
        ("{root}2/a.jpg", False),
        ("/etc/passwd", False),
        ("//server/share/a.jpg", False),
        ("\\\\server\\share\\a.jpg", False),
        ("\\a.jpg", False),
        ("C:\\a.jpg", False),
        ("C:/a.jpg", False),
        ("C:a.jpg", True),
        ("t:0001.jpg", True),
        ("t:/../../a.jpg", False),
        ("{alias}/train/a.jpg", True),
        ("{alias}/train/sub/a.jpg", False),
        ("{alias}/../a.jpg", False),
        ("{alias}2/train/a.jpg", False),
        ("/proc/self/cwd/" * 1000 + "a.jpg", False),
        ("..\\..\\a.jpg", False),
        ("..\\val\\a.jpg", True),
    ],
)
def test_a_name_is_judged_by_its_text(tmp_path: Path, name: str, inside: bool) -> None:
    root, link, alias = tmp_path / "set", tmp_path / "link", tmp_path / "alias"
    (root / "train").mkdir(parents=True)
    link.symlink_to(root)
    alias.symlink_to(tmp_path / "set")
    (tmp_path / "alias2").symlink_to(tmp_path)
    for given in (root, link):
        rule = NameRule.of(given)
        named = name.format(root=root, link=given, alias=alias)
        assert list(rule.outside([named, "b.jpg"], given / "train")) == ([] if inside else [named])


def test_the_whole_disk_may_be_the_folder() -> None:
    assert not list(NameRule.of(Path("/")).outside(["/etc/a.jpg", "../../a.jpg"], Path("/data")))


def test_a_refusal_names_the_first_and_their_number(tmp_path: Path) -> None:
    names = [f"/elsewhere/{number}.jpg" for number in range(12)] + ["a.jpg"]
    with pytest.raises(DatasetError) as caught:
        NameRule.of(tmp_path).check(["/" + "x" * 10**6, *names], tmp_path, "train.txt")
    message = str(caught.value)
    assert "train.txt: 13 names lead out of the data set's folder" in message
    assert "/elsewhere/0.jpg, /elsewhere/1.jpg" in message
    assert "and 8 more" in message
    assert "--set data.allow_outside=true" in message
    assert len(message) < 2000
    rule = NameRule.of(tmp_path, allow_outside=True)
    assert rule.check(names, tmp_path, "t") == (
        "t: 12 images are read from outside the data set's folder (data.allow_outside)."
    )
    assert rule.check(["a.jpg"], tmp_path, "t") == ""


def rename_first(root: Path, name: str) -> None:
    for split in ("train", "val"):
        path = root / "annotations" / f"instances_{split}2017.json"
        table = json.loads(path.read_text())
        table["images"][0]["file_name"] = name.format(split=split)
        path.write_text(json.dumps(table))


@pytest.fixture
def outside(tiny_coco: Path, tmp_path: Path) -> Path:
    """The tiny data set, of which an image of each split was moved out of it."""
    for split in ("train", "val"):
        image = next(iter(sorted((tiny_coco / f"{split}2017").iterdir())))
        shutil.move(image, tmp_path / f"{split}.jpg")
    rename_first(tiny_coco, "../../{split}.jpg")
    return tiny_coco


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    """A YOLO folder whose training list names an image elsewhere."""
    for place in ("yolo/images/a", "yolo/images/b", "other/images/c"):
        write_image(tmp_path / f"{place}.jpg")
        label = tmp_path / f"{place.replace('images', 'labels')}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text("0 0.5 0.5 0.9 0.9\n")
    root = tmp_path / "yolo"
    (root / "train.txt").write_text(f"images/a.jpg\n{tmp_path}/other/images/c.jpg\n")
    (root / "val.txt").write_text("images/b.jpg\n")
    (root / "data.yaml").write_text("train: train.txt\nval: val.txt\nnames: [disc]\n")
    return root


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """A Pascal VOC folder whose training list names an image of another one."""
    text = xml(("disc", 1, 1, 30, 20))
    write_voc(tmp_path / "other", {"c": text}, {})
    return write_voc(tmp_path / "voc", dict.fromkeys("ab", text), {"train": "a\n../../other/JPEGImages/c", "val": "b"})


@pytest.mark.parametrize("layout", ["outside", "yolo", "voc"])
def test_every_command_decides_alike(
    layout: str, request: pytest.FixtureRequest, codetr: Callable[..., Ran], tiny_settings: Settings, tmp_path: Path
) -> None:
    root = request.getfixturevalue(layout)
    preset = tmp_path / "tiny.toml"
    preset.write_text(to_toml(tiny_settings))
    run = tmp_path / "run"
    train = ("train", "--preset", preset, "--device", "cpu", "--data", root, "--set", "train.max_steps=1", "--no-eval")
    bench = ("bench", "data", root, "--preset", preset, "--device", "cpu", "--step-images-per-s", 1)
    commands: dict[str, tuple[object, ...]] = {
        "prepare": ("prepare", root, "--no-link", "--set", "data.min_side=1"),
        "plan": (*train, "--dry-run"),
        "bench": (*bench, "--iterations", 2, "--workers", 1),
        "train": (*train, "--run", run),
        "skip": (*train, "--run", tmp_path / "skip", "--set", "data.bad_files=skip"),
        "eval": ("eval", run, "--data", root, "--device", "cpu"),
        "eval of files": (
            "eval",
            run,
            "--images",
            root / "val2017",
            "--ann",
            root / "annotations/instances_val2017.json",
            "--device",
            "cpu",
        ),
        "convert-data": ("convert-data", root, "--out", tmp_path / "out", "--force"),
    }
    if layout == "outside":
        del commands["convert-data"]
    else:
        for name in ("skip", "bench", "eval", "eval of files"):
            del commands[name]  # all images are in the same table
    # In the end: what was cached when it was allowed must not be used.
    trained = ("eval", "eval of files")
    for allowed, others in ((False, trained), (True, ("skip", "bench")), (False, ("train", "skip", "bench"))):
        for name in (name for name in commands if name not in others):
            ran = codetr(*commands[name], *(ALLOWED if allowed else ()))
            text = " ".join((ran.out + ran.err).split())
            assert ran.code == (0 if allowed else 3), f"{name}: {text}"
            if allowed:
                assert "1 image is read from outside the data set's folder" in text, f"{name}: {text}"
            else:
                assert "out of the data set's folder" in text, f"{name}: {text}"
                assert "--set data.allow_outside=true" in text, f"{name}: {text}"


def test_merged_sets_keep_the_rule_of_each(outside: Path, yolo: Path) -> None:
    table = {"name": "x", "data": {"root": str(yolo), "extra_roots": [str(outside)], "min_side": 16}}
    with pytest.raises(DatasetError, match="1 name leads out of"):
        build_dataset(parse_settings(table, where="t"), split="train", training=True)
    table["data"]["allow_outside"] = True  # type: ignore[index]
    dataset = build_dataset(parse_settings(table, where="t"), split="train", training=True)
    assert all(dataset[index] for index in range(len(dataset)))
    # The merged file is in the cache now.
    (yolo / "train.txt").write_text("images/a.jpg\n")
    table["data"]["allow_outside"] = False  # type: ignore[index]
    with pytest.raises(DatasetError, match="1 name leads out of"):
        build_dataset(parse_settings(table, where="t"), split="train", training=True)


def test_names_that_stay_inside_are_read(tiny_coco: Path, codetr: Callable[..., Ran]) -> None:
    (tiny_coco / "more").mkdir()
    for split in ("train", "val"):
        image = next(iter(sorted((tiny_coco / f"{split}2017").iterdir())))
        shutil.move(image, tiny_coco / "more" / f"{split}.jpg")
    rename_first(tiny_coco, f"{tiny_coco}/more/{{split}}.jpg")
    ran = codetr("prepare", tiny_coco, "--no-link")
    assert "out of the data set" not in ran.err
    assert "missing" not in ran.err
    settings = parse_settings({"name": "x", "data": {"root": str(tiny_coco), "min_side": 16}}, where="t")
    dataset = build_dataset(settings, split="train", training=False)
    assert all(dataset[index] for index in range(len(dataset)))
