"""prepare and the readers of training and evaluation judge a few hundred changed data sets alike."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from codetr_cli.annotations.objects import Annotations, check_kind, read_annotations, unmatched_classes
from codetr_cli.config.data_settings import DataConfig
from codetr_cli.data.checks.dataset import check_dataset
from codetr_cli.data.coco import CocoDataset
from codetr_cli.data.sample import Sample
from codetr_cli.errors import DatasetError
from codetr_cli.formats.found import ReadOptions
from codetr_cli.formats.open import open_dataset
from tests.data.checks.fakes import silent
from tests.data.fakes import xml

CONFIG = DataConfig(min_side=1, val_fraction=0)
VALUES: tuple[Any, ...] = (
    *(None, True, 0, 1, -1, 7, 2.0, 1.5, "1", "07", "1.0", "x", "", " 1", "1e1", [], {}, [1], float("nan")),
    *(float("inf"), 2**53 + 1, 2**63 - 1, 2**63, 2.0**60, 1e300, "9" * 30, "\ud800", "a\0b", "cat", "Cat"),
    *([1, 2, 3, 4], ["1", "2", "3", "4"], [0.1, 0.2, 0.3, 0.4], [1, 2, -3, 4], [None] * 4, "../../x.jpg"),
)
KEYS = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "ignore", "segmentation"),
    "categories": ("id", "name"),
}
ENCODINGS = ("utf-8-sig", "utf-16", "utf-16-be", "utf-32", "gb18030", "latin-1")


def table() -> dict[str, Any]:
    images = [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 48} for i in (1, 2, 3)]
    annotations = [
        {"id": n, "image_id": n % 3 + 1, "category_id": n % 2 + 1, "bbox": [n, n, 20, 10], "area": 200, "iscrowd": 0}
        for n in range(1, 7)
    ]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "\u732b"}, {"id": 2, "name": "dog"}],
    }


def change_value(content: dict[str, Any], generator: random.Random) -> None:
    name = generator.choice(list(KEYS))
    entry, key = generator.choice(content[name]), generator.choice(KEYS[name])
    if generator.random() < 0.15:
        entry.pop(key, None)
    else:
        entry[key] = generator.choice(VALUES)


def change_column(content: dict[str, Any], generator: random.Random) -> None:
    """All values of a key become floats, text or null."""
    name = generator.choice(list(KEYS))
    key, form = generator.choice(KEYS[name]), generator.choice((str, float, lambda value: None))
    for entry in content[name]:
        value = entry.get(key)
        if isinstance(value, list):
            entry[key] = [form(number) for number in value]
        elif isinstance(value, int):
            entry[key] = form(value)


def change_table(content: dict[str, Any], generator: random.Random) -> None:
    name = generator.choice(list(KEYS))
    action = generator.randrange(6)
    if action == 0:
        content[name] = generator.choice((None, [], {}, "x"))
    elif action == 1:
        content.pop(name)
    elif action == 2:
        content[name].append(copy.deepcopy(generator.choice(content[name])))
    elif action == 3:
        content[name].pop()
    elif action == 4:
        generator.shuffle(content[name])
    else:
        content[name].append(generator.choice(VALUES))


def change_ids(content: dict[str, Any], generator: random.Random) -> None:
    move = generator.choice((lambda i: 3 - i, lambda i: i + 2**53, lambda i: 2**63 - i, lambda i: str(i), lambda i: -i))
    name, reference = generator.choice((("images", "image_id"), ("categories", "category_id")))
    for entry in content[name]:
        entry["id"] = move(entry["id"])
    for entry in content["annotations"]:
        entry[reference] = move(entry[reference])


def encoded(content: dict[str, Any], generator: random.Random) -> bytes:
    text = json.dumps(content, ensure_ascii=generator.random() < 0.6)
    action = generator.random()
    if action < 0.75:
        return text.encode(errors="surrogatepass")
    if action < 0.85:
        return text.encode(generator.choice(ENCODINGS), errors="replace")
    odd = (
        *(text[: len(text) // 2], text[:-1] + ",}", text + text, text + "\n//", text.replace('"', "'")),
        *(text[:-1] + ', "categories": []}', "<html></html>", "version https://git-lfs.github.com/spec/v1", ""),
    )
    return generator.choice(odd).encode(errors="surrogatepass")


def usable(path: Path, images_dir: Path, *, training: bool) -> Annotations | None:
    """The annotations as training or evaluation uses them, all images read; None if that is refused."""
    try:
        annotations = read_annotations(path)
        check_kind(annotations, "coco", path)
        dataset = CocoDataset(
            images_dir=images_dir, annotations_path=path, transform=_keep, training=training, min_side=1,
            annotations=annotations,
        )  # fmt: skip
        for index in range(len(dataset)):
            dataset.load_sample(index)
    except DatasetError:
        return None
    return annotations


def _keep(sample: Sample, rng: object) -> Sample:
    return sample


def write_images(folder: Path, names: list[str]) -> None:
    from PIL import Image

    folder.mkdir(parents=True)
    for name in names:
        Image.new("RGB", (64, 48)).save(folder / name)


@pytest.mark.parametrize("seed", range(4))
def test_changed_coco_sets_are_judged_alike(tmp_path: Path, seed: int) -> None:
    generator = random.Random(seed)
    paths = {}
    for split in ("train", "val"):
        write_images(tmp_path / f"{split}2017", ["1.png", "2.png", "3.png"])
        paths[split] = tmp_path / "annotations" / f"instances_{split}2017.json"
    (tmp_path / "annotations").mkdir()
    changes: list[Callable[[dict[str, Any], random.Random], None]] = [change_value, change_column, change_table,
                                                                      change_ids]  # fmt: skip
    accepted = 0
    for _ in range(60):
        changed = generator.choice(("train", "val"))
        for split, path in paths.items():
            content = table()
            if split == changed:
                generator.choice(changes)(content, generator)
            path.write_bytes(encoded(content, generator) if split == changed else json.dumps(content).encode())
        report = check_dataset(tmp_path, config=CONFIG, progress=silent, workers=1)
        read = {split: usable(path, tmp_path / f"{split}2017", training=split == "train")
                for split, path in paths.items()}  # fmt: skip
        train, val = read["train"], read["val"]
        is_fine = train is not None and val is not None
        if train is not None and val is not None:
            sides = ((each.class_names, each.category_ids) for each in (train, val))
            is_fine = unmatched_classes(*sides) == ([], [])
        errors = [finding.sentence() for finding in report.findings if finding.severity == "error"]
        assert is_fine == (not errors), (changed, paths[changed].read_bytes(), errors)
        accepted += is_fine
    assert 10 < accepted < 50


def opened(folder: Path) -> bool:
    """Whether a folder of another layout can be trained on."""
    try:
        found = open_dataset(folder, ReadOptions.of(CONFIG))
        assert found is not None
        train = found.splits["train"]
    except DatasetError:
        return False
    return usable(train.annotations_path, train.images_dir, training=True) is not None


def prepared(folder: Path) -> bool:
    """Whether prepare finds no errors in it."""
    try:
        return not check_dataset(folder, config=CONFIG, progress=silent, workers=1).errors
    except DatasetError:
        return False


NUMBERS = ("5", "5.0", "5.5", " 5 ", "1e1", "-3", "999", "nan", "inf", "", "five", "0x5", "5,5", "\u0665")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030", "latin-1"])
def test_changed_voc_and_yolo_sets_are_judged_alike(tmp_path: Path, encoding: str) -> None:
    from PIL import Image

    verdicts = set()
    for count, number in enumerate(NUMBERS):
        voc = tmp_path / f"voc{count}"
        (voc / "Annotations").mkdir(parents=True)
        (voc / "JPEGImages").mkdir()
        (voc / "ImageSets" / "Main").mkdir(parents=True)
        (voc / "ImageSets" / "Main" / "train.txt").write_text("a\n")
        Image.new("RGB", (40, 30)).save(voc / "JPEGImages" / "a.jpg")
        text = xml(("\u732b", 1, 2, 20, 21)).replace("<xmin>1<", f"<xmin>{number}<")
        (voc / "Annotations" / "a.xml").write_bytes(text.encode(encoding, errors="replace"))
        yolo = tmp_path / f"yolo{count}"
        (yolo / "images" / "train").mkdir(parents=True)
        (yolo / "labels" / "train").mkdir(parents=True)
        Image.new("RGB", (40, 30)).save(yolo / "images" / "train" / "a.jpg")
        (yolo / "labels" / "train" / "a.txt").write_bytes(f"0 0.5 0.5 0.{number} 0.5\n".encode(encoding, "replace"))
        (yolo / "data.yaml").write_text("names: [ant]\ntrain: images/train\n")
        for folder in (voc, yolo):
            assert opened(folder) == prepared(folder), (number, folder)
            verdicts.add(opened(folder))
    assert True in verdicts or encoding != "utf-8"
    assert False in verdicts
