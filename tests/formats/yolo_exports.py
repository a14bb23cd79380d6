"""Small YOLO data sets, each with the files and texts that one exporter writes."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from codetr_cli.formats.found import ReadOptions
from codetr_cli.formats.open import DEFAULT, open_dataset

WIDTH, HEIGHT = 160, 120
BOXES = [(10, 15, 40, 30, 0), (15, 55, 40, 30, 1)]
"""(x, y, width, height, class) in pixels of the two objects in every image."""
XYWH = [list(box[:4]) for box in BOXES]
Row = Callable[[int, int, int, int, int], str]


def box_row(x: int, y: int, w: int, h: int, label: int) -> str:
    return f"{label} {(x + w / 2) / WIDTH:.6f} {(y + h / 2) / HEIGHT:.6f} {w / WIDTH:.6f} {h / HEIGHT:.6f}"


def points_row(points: Iterable[tuple[float, float]], label: int) -> str:
    return f"{label} " + " ".join(f"{px / WIDTH:.6g} {py / HEIGHT:.6g}" for px, py in points)


def pose_row(count: int, numbers: int) -> Row:
    """Rows of a box and `count` keypoints in it; of 3 numbers each, the last is 2, visible."""

    def row(x: int, y: int, w: int, h: int, label: int) -> str:
        points = [(x + w * (0.2 + 0.6 * i / count), y + h * (0.8 - 0.5 * i / count)) for i in range(count)]
        flag = " 2.000000" if numbers == 3 else ""
        return box_row(x, y, w, h, label) + "".join(f" {px / WIDTH:.6f} {py / HEIGHT:.6f}{flag}" for px, py in points)

    return row


def turned_row(x: int, y: int, w: int, h: int, label: int) -> str:
    """A square turned by 45 degrees: the corners are the middles of the sides of a box of 30 x 30 in (x, y, 30, 30)."""
    return points_row([(x + 15, y), (x + 30, y + 15), (x + 15, y + 30), (x, y + 15)], label)


def outline_row(x: int, y: int, w: int, h: int, label: int) -> str:
    """An outline of as many points as the class says, at least 5, that touches all sides of the box."""
    points = [(x, y), (x + w, y + h / 3), (x + w / 2, y + h), (x + w / 3, y + h * 0.9), (x + 1, y + h / 2)]
    return points_row(points[: 4 + label], label)


def write_pair(root: Path, image: str, labels: str, row: Row | None = box_row) -> None:
    """An image like no other and its label file; without a row, only the image."""
    (root / image).parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(zlib.crc32(image.encode())).integers(0, 256, (6, 8, 3), np.uint8)
    cv2.imwrite(str(root / image), cv2.resize(small, (WIDTH, HEIGHT)))
    if row is not None:
        (root / labels).parent.mkdir(parents=True, exist_ok=True)
        (root / labels).write_text("\n".join(row(*box) for box in BOXES))


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def ultralytics(root: Path, row: Row = box_row, more: str = "") -> Path:
    """As coco8.yaml and its variants for other tasks, in the folder of the images."""
    for split, numbers in (("train", (9, 25)), ("val", (36, 42))):
        for number in numbers:
            stem = f"{split}/{number:012d}"
            write_pair(root, f"images/{stem}.jpg", f"labels/{stem}.txt", row)
    text = (
        "# Example usage: yolo train data=coco8.yaml\n# parent\n# ├── ultralytics\n# └── datasets\n\n"
        "path: coco8 # dataset root dir\ntrain: images/train # train images (relative to 'path') 4 images\n"
        f"val: images/val # val images\ntest: # test images (optional)\n\n{more}# Classes\nnames:\n  0: person\n"
        "  1: bicycle\n\n# Download script/URL (optional)\ndownload: |\n  from pathlib import Path\n\n"
        "  names: [1, 2]\n  urls = ['x' + str(i) for i in range(3)]  # a: [b\n"
    )
    write(root, "coco8.yaml", text)
    return root


def roboflow(root: Path) -> Path:
    """YOLOv8's export, without a test set, which data.yaml names nevertheless."""
    for split, count in (("train", 2), ("valid", 1)):
        for number in range(count):
            stem = f"IMG_{number}_jpg.rf.{number}f3c"
            write_pair(root, f"{split}/images/{stem}.jpg", f"{split}/labels/{stem}.txt")
    write(
        root,
        "data.yaml",
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\nnames: ['cat', 'dog']\n\n"
        "roboflow:\n  workspace: a\n  project: pets-1\n  version: 3\n  license: CC BY 4.0\n",
    )
    write(root, "README.dataset.txt", "# pets > 2024-01-01\nhttps://example.org\n")
    write(root, "README.roboflow.txt", "\npets - v3\n==============================\n1 2 3 4 5\n")
    return root


def roboflow_darknet(root: Path) -> Path:
    """Darknet's export: labels beside the images, and a file of names in each folder."""
    for split in ("train", "valid"):
        write_pair(root, f"{split}/a_jpg.rf.1.jpg", f"{split}/a_jpg.rf.1.txt")
        write(root, f"{split}/_darknet.labels", "cat\ndog")
    return root


def cvat_yolo_11(root: Path) -> Path:
    """CVAT's YOLO 1.1: paths start with data/, which is not in the archive."""
    for folder, count in (("obj_train_data", 2), ("obj_Validation_data", 1)):
        for number in range(count):
            write_pair(root, f"{folder}/sub/frame_{number}.jpg", f"{folder}/sub/frame_{number}.txt")
    write(root, "obj.names", "cat\ndog\n")
    write(
        root,
        "obj.data",
        "classes = 2\ntrain = data/train.txt\nvalid = data/Validation.txt\nnames = data/obj.names\nbackup = backup/\n",
    )
    write(root, "train.txt", "".join(f"data/obj_train_data/sub/frame_{number}.jpg\n" for number in range(2)))
    write(root, "Validation.txt", "data/obj_Validation_data/sub/frame_0.jpg\n")
    return root


def cvat_ultralytics(root: Path) -> Path:
    """CVAT's Ultralytics YOLO Detection: lists with data/ in front."""
    for split in ("train", "val"):
        write_pair(root, f"images/{split}/1.png", f"labels/{split}/1.txt")
        write(root, f"{split}.txt", f"data/images/{split}/1.png\n")
    write(root, "data.yaml", "names:\n  0: cat\n  1: dog\npath: .\ntrain: train.txt\nval: val.txt\n")
    return root


def label_studio(root: Path) -> Path:
    """Label Studio's YOLO export: hashes in front of the names, and no splits."""
    for number in range(4):
        write_pair(root, f"images/{number}ab3-photo.jpg", f"labels/{number}ab3-photo.txt")
    write(root, "classes.txt", "cat\ndog")
    categories = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    write(root, "notes.json", json.dumps({"categories": categories, "info": {"year": 2024, "contributor": "x"}}))
    return root


def labelimg(root: Path) -> Path:
    """LabelImg: everything in one folder."""
    for number in range(4):
        write_pair(root, f"DSC_{number}.jpg", f"DSC_{number}.txt")
    write(root, "classes.txt", "cat\ndog\n")
    return root


def darknet(root: Path) -> Path:
    """A folder as Darknet's guides describe it, with another computer's paths in its lists."""
    for name in ("a", "b", "c"):
        write_pair(root, f"data/obj/{name}.jpg", f"data/obj/{name}.txt")
    write(root, "data/obj.names", "cat\ndog\n")
    write(root, "cfg/obj.data", "classes= 2\ntrain  = data/train.txt\nvalid  = data/test.txt\nnames = data/obj.names\n")
    write(root, "data/train.txt", "/home/me/darknet/data/obj/a.jpg\nC:\\darknet\\data\\obj\\b.jpg\n./data/obj/a.jpg\n")
    write(root, "data/test.txt", "data/obj/c.jpg\n")
    return root


# ------------------------------------------------------------------------------------------------------------- reading


def contents(root: Path, options: ReadOptions = DEFAULT) -> dict[str, dict[str, Any]]:
    """COCO's table of each split."""
    found = open_dataset(root, options)
    assert found is not None
    assert found.title == "YOLO"
    return {name: json.loads(split.annotations_path.read_text()) for name, split in found.splits.items()}


def tables(root: Path, options: ReadOptions = DEFAULT) -> dict[str, dict[str, list[list[int]]]]:
    """Split -> image -> its boxes (x, y, w, h) in whole pixels."""
    result = {}
    for name, content in contents(root, options).items():
        boxes: dict[int, list[list[int]]] = {image["id"]: [] for image in content["images"]}
        for each in content["annotations"]:
            boxes[each["image_id"]].append([round(value) for value in each["bbox"]])
        result[name] = {image["file_name"]: boxes[image["id"]] for image in content["images"]}
    return result


def classes(root: Path) -> list[str]:
    """The class names."""
    return [each["name"] for each in contents(root)["train"]["categories"]]
