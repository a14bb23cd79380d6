"""Random results of images with odd names, and the images themselves."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from codetr_cli.annotations.objects import read_annotations
from codetr_cli.formats.found import ReadOptions
from codetr_cli.formats.open import open_dataset
from codetr_cli.prediction.labels.options import LabelOptions
from codetr_cli.prediction.results import ImageResult
from codetr_cli.prediction.targets import OutputTarget

CLASSES = {3: "cat", 7: "red panda", 8: 'it\'s "50%": #1, <a&b>', 90: "Füchse 狐 \U0001f468"}
NAMES = (
    *("plain.jpg", "plain.png", "two words.jpg", "a.b.jpg", "#1 it's 100%.png", "ü 狐.png", "e\u0301.jpg"),
    *("deep/er/plain.jpg", "deep/plain.jpg", "images/x.jpg", "labels/x.jpg", "n 1.jpg", "PLAIN.JPG", "a&b+c=d?.jpg"),
    *("train/7.jpg", "0012.jpg", "'quoted', with; separators.jpg", "\xa0 blank.jpg", "_x.jpg", "a\tb.jpg"),
)


def write_images(folder: Path, seed: int, names: tuple[str, ...] = NAMES) -> dict[str, tuple[int, int]]:
    """Images with pixels of their own; their sizes (width, height) by name."""
    generator = np.random.default_rng(seed)
    sizes = {}
    for name in names:
        width, height = (int(side) for side in generator.integers(8, 90, 2))
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, format="PNG" if name.lower().endswith("png") else "JPEG")
        sizes[name] = width, height
    return sizes


def random_results(folder: Path, sizes: dict[str, tuple[int, int]], seed: int, **record: Any) -> list[ImageResult]:
    """Results of these images with up to six detections of at least a pixel, best first, some across the edge."""
    choose = random.Random(seed)
    results = []
    for number, (name, (width, height)) in enumerate(sizes.items()):
        records: list[dict[str, Any]] = []
        count = choose.choice((0, 1, 2, 6))
        for score in sorted((round(choose.uniform(0.01, 1), 8) for _ in range(count)), reverse=True):
            x, y = choose.uniform(-2, width - 3), choose.uniform(-2, height - 3)
            w, h = choose.uniform(3.1, width - x + 2), choose.uniform(3.1, height - y + 2)
            category = choose.choice(list(CLASSES))
            records.append(
                {
                    **{"image_id": number, "category_id": category, "bbox": [round(each, 4) for each in (x, y, w, h)]},
                    **{"score": score, "file_name": name, "category_name": CLASSES[category], **record},
                }
            )
        facts: dict[str, Any] = {
            "file": str(folder / name),
            "file_name": name,
            "image_id": number,
            "height": height,
            "width": width,
        }
        results.append(
            ImageResult(number, str(folder / name), {**facts, "objects": {}, "seconds": 0.1, "drawn": None}, records)
        )
    return results


def target(folder: Path, *, force: bool = False, request: str = "r", **labels: Any) -> OutputTarget:
    scratch = folder / ".scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    classes = {"class_names": list(CLASSES.values()), "category_ids": list(CLASSES)}
    return OutputTarget(
        folder=folder, scratch=scratch, request=request, force=force, labels=LabelOptions(**labels), **classes
    )


Labels = list[tuple[str, tuple[float, float, float, float]]]
"""Class and corners of each object, in order."""


def labels_of(result: ImageResult) -> Labels:
    """The labels of a result, boxes clipped to the image."""
    assert result.image is not None
    found = []
    for record in result.records:
        x, y, w, h = record["bbox"]
        right, bottom = min(x + w, result.image["width"]), min(y + h, result.image["height"])
        found.append((record["category_name"], (max(x, 0.0), max(y, 0.0), right, bottom)))
    return found


def read_labels(folder: Path, **options: Any) -> dict[bytes, Labels]:
    """What our readers find in a folder, by the content of the image."""
    found = open_dataset(folder, ReadOptions(**options))
    assert found is not None
    assert found.skipped == []
    labels: dict[bytes, Labels] = {}
    for split in found.splits.values():
        table = read_annotations(split.annotations_path)
        for row, name in enumerate(table.file_names):
            rows = np.flatnonzero(table.image_rows == row).tolist()
            boxes = [(x, y, x + w, y + h) for x, y, w, h in table.boxes_xywh[rows].tolist()]
            names = [table.class_names[label] for label in table.labels[rows].tolist()]
            labels[(split.images_dir / name).read_bytes()] = list(zip(names, boxes, strict=True))
    return labels


def place_images(source: Path, folder: Path, names: dict[str, str]) -> None:
    """Copies images to where a layout has them: place in the folder -> name in the source."""
    for place, name in names.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, folder / place)


def close(found: dict[bytes, Labels], results: list[ImageResult], pixels: float) -> bool:
    """Whether labels are those of results: classes and order exactly, corners within so many pixels."""
    expected = {Path(result.file).read_bytes(): labels_of(result) for result in results}
    if set(found) != set(expected):
        return False
    for content, labels in expected.items():
        if [name for name, _ in labels] != [name for name, _ in found[content]]:
            return False
        pairs = zip(labels, found[content], strict=True)
        if any(abs(a - b) > pixels for (_, one), (_, other) in pairs for a, b in zip(one, other, strict=True)):
            return False
    return True
