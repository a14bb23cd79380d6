from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from codetr_cli.config.schema import DataConfig
from codetr_cli.data.annotations import Annotations, read_annotations
from codetr_cli.data.formats.converted import find_converted
from codetr_cli.data.formats.resolve import find_data
from codetr_cli.errors import DatasetError
from tests.data.fakes import snapshot, write_image

DESCRIPTION = "path: .\ntrain: images/train\nval: images/val  # kept apart\nnames:\n  0: disc\n  1: 'red ring'\n"


def write(root: Path, name: str, labels: str | None) -> None:
    write_image(root / f"{name}.jpg")
    if labels is not None:
        path = root / f"{name.replace('images', 'labels')}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(labels)


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    root = tmp_path / "yolo"
    write(root, "images/train/a", "1 0.5 0.5 0.5 0.5\n\n0 0.0 0.5 0.5 0.2\n")
    write(root, "images/train/b", None)
    write(root, "images/val/c", "0 0.25 0.5 0.75 0.5 0.75 0.9\n")
    (root / "data.yaml").write_text(DESCRIPTION)
    return root


def read(root: Path, split: str) -> Annotations:
    return read_annotations(find_data(DataConfig(), str(root), split).annotations_path)  # type: ignore[arg-type]


def test_boxes_names_and_bare_images(yolo: Path) -> None:
    before = snapshot(yolo)
    train, val = read(yolo, "train"), read(yolo, "val")
    assert (train.class_names, train.category_ids) == (["disc", "red ring"], [0, 1])
    assert train.file_names == ["images/train/a.jpg", "images/train/b.jpg"]
    assert train.boxes_xywh.tolist() == [[10, 7.5, 20, 15], [0, 12, 10, 6]]  # the second is clipped
    assert train.labels.tolist() == [1, 0]
    assert val.boxes_xywh.tolist() == [[10, 15, 20, 12]]  # around the outline
    converted = find_converted(yolo)
    assert converted is not None
    assert converted.notes == ["1 images have no label file: they are treated as images without objects"]
    assert [(finding.kind, finding.count) for finding in converted.findings] == [("box_beyond_edge", 1)]
    assert snapshot(yolo) == before
    path = find_data(DataConfig(), str(yolo), "val").annotations_path
    assert read_annotations(path, with_outlines=True).outlines is not None


@pytest.mark.parametrize("names", ["train/images", "../train/images", "train"])
def test_exports_with_a_folder_a_split(tmp_path: Path, names: str) -> None:
    write(tmp_path, "train/images/a", "0 0.5 0.5 0.5 0.5")
    write(tmp_path, "valid/images/b", "0 0.5 0.5 0.5 0.5")
    (tmp_path / "data.yaml").write_text(
        f"train: {names}\nval: {names.replace('train', 'valid')}\nnc: 1\nnames: ['a']\n"
    )
    assert read(tmp_path, "train").file_names == ["train/images/a.jpg"]
    assert len(read(tmp_path, "val").labels) == 1


def test_lists_of_images(yolo: Path) -> None:
    (yolo / "train.txt").write_text("./images/train/a.jpg\n")
    (yolo / "data.yaml").write_text("train: train.txt\ntest: [images/val]\nnames: [disc, ring]\n")
    assert read(yolo, "train").file_names == ["images/train/a.jpg"]
    assert read(yolo, "val").file_names == ["images/val/c.jpg"]
    assert "the test images are used" in find_data(DataConfig(), str(yolo), "train").notes[0]
    (yolo / "train.txt").write_text("gone.jpg\n")
    with pytest.raises(DatasetError, match=r"train.txt lists 1 images that are missing: gone.jpg"):
        read(yolo, "train")


def test_folders_without_a_description(yolo: Path) -> None:
    (yolo / "data.yaml").unlink()
    with pytest.raises(DatasetError, match=r"without class names: write them into .*classes.txt"):
        read(yolo, "train")
    (yolo / "classes.txt").write_text("disc\nred ring\n")
    assert read(yolo, "train").class_names == ["disc", "red ring"]
    assert len(read(yolo, "val").labels) == 1


def label(text: str) -> Callable[[Path], object]:
    return lambda root: (root / "labels/train/a.txt").write_text(text)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (label("2 0.5 0.5 0.1 0.1"), r"a.txt, line 1: class 2, but .*data.yaml names 2 classes, 0 to 1"),
        (label("\n0 200 100 20 30"), r"a.txt, line 2: '0 200 100 20 30' has values in pixels"),
        (label("0 0.5 0.5 -0.1 0.1"), "cannot be negative"),
        (label("0 0.5 0.5 0.1"), "is neither `class cx cy w h` nor an outline"),
        (label("disc 0.5 0.5 0.1 0.1"), "is neither"),
        (lambda root: (root / "images/train/a.jpg").write_bytes(b""), r"1 of 3 images cannot be used: .*a.jpg \(the f"),
        (
            lambda root: (root / "data.yaml").write_text(DESCRIPTION.replace("s/val", "s/vol")),
            "val: .*vol does not exist",
        ),
        (lambda root: (root / "data.yaml").write_text(DESCRIPTION.replace("1:", "3:")), "must be 0, 1, 2"),
        (
            lambda root: (root / "data.yaml").write_text("train: x\nnames: &n [a]\n"),
            "YAML syntax that is not supported",
        ),
        (
            lambda root: [path.unlink() for path in root.glob("labels/*/*.txt")],
            "none of the 3 images of .* has a label file; .*labels/train/a.txt",
        ),
    ],
)
def test_damage_is_named(yolo: Path, damage: Callable[[Path], object], words: str) -> None:
    damage(yolo)
    with pytest.raises(DatasetError, match=words):
        read(yolo, "train")


def test_images_that_cannot_be_read_are_skipped_where_asked(tmp_path: Path) -> None:
    root = tmp_path / "many"
    for number in range(20):
        write_image(root / "images" / "train" / f"{number}.jpg")
        (root / "labels" / "train").mkdir(parents=True, exist_ok=True)
        (root / "labels" / "train" / f"{number}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (root / "classes.txt").write_text("ant\n")
    (root / "images" / "train" / "7.jpg").write_bytes(b"")
    with pytest.raises(DatasetError, match="1 of 20 images cannot be used"):
        find_data(DataConfig(root=str(root)), None, "train")
    config = DataConfig(root=str(root), bad_files="skip")
    found = [find_data(config, None, split) for split in ("train", "val")]
    assert sum(len(read_annotations(paths.annotations_path).file_names) for paths in found) == 19
    (warning,) = found[0].warnings
    assert "1 images cannot be used and are skipped" in warning
    assert "7.jpg (the file has zero bytes)" in warning
    for number in (8, 9):
        (root / "images" / "train" / f"{number}.jpg").write_bytes(b"")
    with pytest.raises(DatasetError, match="3 of 20 images cannot be used"):
        find_data(config, None, "train")
