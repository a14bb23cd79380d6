"""Measures what tiles are worth for small objects: trained on whole images and on tiles, predicted whole and in tiles.

    nice python benchmarks/small_objects.py --work /tmp/small_objects

The data set is synthetic: photographs of 1280 x 960 pixels with 30 to 60 objects, most of them 10 to 24 pixels large,
among bars and crosses that are not objects. A tiny network is trained on the demo set first, and then, for as many
pixels, on whole images or on tiles that `codetr convert-data --slice` has cut. Both are evaluated with and without
`--tiles`. Complete steps in the work folder are not repeated. Writes benchmarks/results/small_objects.json, and with
--picture the figure of docs/predict.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for the package of this checkout
SIZE = (960, 1280)
"""Height and width of the photographs."""
TILE, OVERLAP = 320, 0.2
NETWORK = ["model.num_queries=150", "test.max_detections=500", "train.loss.max_positive_queries=100"]
COMMON = [*NETWORK, "train.auto_recipe=false", "train.memory_check=false", "data.workers=0"]
BASE = ["train.epochs=8", "data.short_sides=[128,160,192,224,256]"]
WHOLE_SIZE = ["test.short_side=384", "test.long_side=512"]
FINE_TUNING = ["train.lr=1e-3", "data.crop_short_sides=[384]"]
WHOLE = [*FINE_TUNING, "train.epochs=10", "data.short_sides=[320,384]", "data.long_side=512"]
SLICED = [*FINE_TUNING, "train.epochs=1", "data.short_sides=[256,320]", "data.long_side=512"]
"""A tile of 320 x 320 pixels has the area of half a whole image at the network's size, and 10 epochs of 60 images have
as many pixels as one of their tiles."""
DETECTIONS = (100, 300, 500)
CELLS = (
    ("whole", None, 0.0),
    ("whole", 320, 0.2),
    ("sliced", None, 0.0),
    ("sliced", 320, 0.2),
    ("whole", 640, 0.2),
    ("sliced", 640, 0.2),
    ("sliced", 480, 0.2),
    ("sliced", 320, 0.0),
)
"""Run, side of the tiles, overlap; the first four are the table, the others the curve."""


def main() -> None:
    """Runs every step that is not complete, then writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the data sets and the runs")
    parser.add_argument("--train", type=int, default=60, help="training images")
    parser.add_argument("--val", type=int, default=12, help="validation images")
    parser.add_argument("--base-images", type=int, default=400)
    parser.add_argument("--until", choices=("data", "train", "all"), default="all")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "small_objects.json")
    parser.add_argument("--picture", type=Path, help="draw one scene, predicted whole and in tiles")
    arguments = parser.parse_args()
    write_data(arguments)
    if arguments.until == "data":
        return
    seconds = train_all(arguments.work)
    if arguments.until == "train":
        return
    cells = [evaluate(arguments.work, *cell) for cell in CELLS]
    report = {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "note": "one thread, beside other work on the machine: CPU seconds are compared",
        "data": {
            "images": f"{SIZE[1]} x {SIZE[0]} pixels, {arguments.train} for training, {arguments.val} for validation",
            "objects": "30 to 60 in each; 85 % have sides of about 10 to 24 pixels, the others up to 60",
            "classes": "disc, square, triangle, star; bars and crosses are no objects",
        },
        "training": {"cpu_seconds": seconds, "common": COMMON, "base": BASE, "whole images": WHOLE, "tiles": SLICED},
        "evaluation": {"network": network_settings()[1::2], "detections": list(DETECTIONS)},
        "sahi": "arXiv 2202.06934: +5 to +7 AP by tiles, +13 to +14.5 AP by tiles after training on tiles",
        "cells": cells,
    }
    arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for cell in cells:
        sys.stdout.write(f"{cell['trained_on']:>13} {cell['tiles'] or 'whole':>9} {cell['overlap']} {cell['AP']}\n")
    if arguments.picture:
        draw_figure(arguments.work, arguments.picture)


# ---------------------------------------------------------------------------------------------------------------- data


def write_data(arguments: argparse.Namespace) -> None:
    """The demo set for the first training, the set of small objects, and its tiles."""
    from codetr_cli.data.demo import write_demo

    work: Path = arguments.work
    if not (work / "base_data" / "annotations" / "instances_val2017.json").exists():
        write_demo(work / "base_data", train=arguments.base_images, val=40, size=256, seed=0)
    if not (work / "data" / "annotations" / "instances_val2017.json").exists():
        for number, (name, count) in enumerate((("train", arguments.train), ("val", arguments.val))):
            write_split(work / "data", name, count, (7, number))
    if not (work / "tiles").exists():
        options = ["--slice", f"{TILE}x{TILE}", "--overlap", str(OVERLAP), "--drop-empty", "--quiet"]
        run(["convert-data", str(work / "data"), "--out", str(work / "tiles"), *options])


def write_split(folder: Path, name: str, count: int, seed: tuple[int, int]) -> None:
    """Images and COCO annotations of one part."""
    import cv2
    import numpy as np

    from codetr_cli.data.demo import OUTLINES

    images_dir = folder / f"{name}2017"
    images_dir.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for index in range(count):
        picture, objects = draw_scene(np.random.default_rng([*seed, index]))
        file_name = f"{index + 1:06d}.jpg"
        cv2.imwrite(str(images_dir / file_name), picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
        images.append({"id": index + 1, "file_name": file_name, "height": SIZE[0], "width": SIZE[1]})
        for label, points in objects:
            (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": label + 1,
                    "bbox": [round(value, 2) for value in (left, top, right - left, bottom - top)],
                    "area": round(float(cv2.contourArea(points.astype(np.float32))), 2),
                    "iscrowd": 0,
                    "segmentation": [[round(value, 2) for value in points.ravel().tolist()]],
                }
            )
    categories = [{"id": i + 1, "name": label} for i, label in enumerate(OUTLINES)]
    path = folder / "annotations" / f"instances_{name}2017.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def draw_scene(rng: Any, size: tuple[int, int] = SIZE) -> tuple[Any, list[tuple[int, Any]]]:
    """A photograph (h, w, 3) uint8 RGB, and the class and outline (n, 2) of its objects, none of which overlap."""
    import numpy as np

    from codetr_cli.data import demo

    height, width = size
    canvas = demo._background(rng, height, width)
    share = height * width / (SIZE[0] * SIZE[1])
    kinds = [0] * int(rng.integers(30, 61) * share) + [1] * int(rng.integers(15, 31) * share)
    objects, taken = [], np.zeros((0, 3))
    for is_distractor in kinds:
        small = rng.random() < 0.85
        low, high = (10.0, 24.0) if small else (24.0, 60.0)
        radius = 0.5 * low * (high / low) ** rng.random() * 1.1
        label = int(rng.integers(len(demo.OUTLINES)))
        outline, turn = OTHERS[label % len(OTHERS)] if is_distractor else list(demo.OUTLINES.values())[label]
        angle = rng.uniform(-turn, turn)
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        for _ in range(50):
            reach = 1.2 * radius
            x, y = rng.uniform(reach + 1, width - reach - 1), rng.uniform(reach + 1, height - reach - 1)
            if not len(taken) or (np.hypot(taken[:, 0] - x, taken[:, 1] - y) > taken[:, 2] + reach + 1).all():
                taken = np.concatenate([taken, [[x, y, reach]]])
                points = radius * np.asarray(outline) @ rotation.T + (x, y)
                demo._paint(rng, canvas, demo.Shape(label=label, points=points, radius=radius))
                objects += [] if is_distractor else [(label, points)]
                break
    grain = rng.uniform(0.0, 0.02) * (rng.random((height, width, 1)) - 0.5)
    return np.round(255 * np.clip(canvas + grain, 0, 1)).astype(np.uint8), objects


_BAR = [[-1.0, -0.25], [1.0, -0.25], [1.0, 0.25], [-1.0, 0.25]]
_CROSS = [
    *([-0.3, -1.0], [0.3, -1.0], [0.3, -0.3], [1.0, -0.3], [1.0, 0.3], [0.3, 0.3]),
    *([0.3, 1.0], [-0.3, 1.0], [-0.3, 0.3], [-1.0, 0.3], [-1.0, -0.3], [-0.3, -0.3]),
]
OTHERS = ((_BAR, 3.14), (_CROSS, 0.7))
"""Outlines and largest rotations of what is not an object."""


# ------------------------------------------------------------------------------------------------------------ training


def train_all(work: Path) -> dict[str, int]:
    """The CPU seconds of the trainings."""
    fine_tuning = ["--weights", str(work / "base" / "checkpoints" / "last" / "model.safetensors")]
    return {
        "base": train(work, "base", "base_data", BASE, []),
        "whole images": train(work, "whole", "data", WHOLE, fine_tuning),
        "tiles": train(work, "sliced", "tiles", SLICED, fine_tuning),
    }


def train(work: Path, name: str, data: str, settings: list[str], options: list[str]) -> int:
    """Trains one network, unless it is complete; returns the CPU seconds."""
    record = work / name / "cpu_seconds"
    if not record.exists():
        command = ["train", "--preset", "co_dino_tiny", "--data", str(work / data), "--run", str(work / name)]
        seconds = run([*command, "--no-eval", "--device", "cpu", "--quiet", *options], [*COMMON, *settings])
        record.write_text(f"{seconds:.0f}\n", encoding="utf-8")
    return int(record.read_text(encoding="utf-8"))


def run(arguments: list[str], overrides: list[str] | None = None) -> float:
    """Runs codetr on one core; returns its CPU seconds."""
    words = [sys.executable, "-m", "codetr_cli", *arguments, *(w for text in overrides or () for w in ("--set", text))]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, check=True, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


# ---------------------------------------------------------------------------------------------------------- evaluation


def network_settings() -> list[str]:
    """Options of the commands that run the networks: the size of their input."""
    return [word for text in WHOLE_SIZE for word in ("--set", text)]


def evaluate(work: Path, name: str, tile: int | None, overlap: float) -> dict[str, Any]:
    """One network with tiles of one size, or on whole images; detections in the work folder are used again."""
    out = work / f"eval_{name}_{tile}_{overlap}"
    if not (out / "cpu_seconds").exists():
        words = [
            "eval",
            str(work / name),
            "--data",
            str(work / "data"),
            "--out",
            str(out),
            "--device",
            "cpu",
            "--quiet",
        ]
        words += ["--tiles", f"{tile}x{tile}", "--overlap", str(overlap)] if tile else []
        seconds = run([*words, "--force"], WHOLE_SIZE)
        (out / "cpu_seconds").write_text(f"{seconds:.0f}\n", encoding="utf-8")
    detections = json.loads((out / "detections.json").read_text(encoding="utf-8"))
    return {
        "trained_on": "tiles" if name == "sliced" else "whole images",
        "tiles": f"{tile}x{tile}" if tile else None,
        "overlap": overlap if tile else None,
        "cpu_seconds": int((out / "cpu_seconds").read_text(encoding="utf-8")),
        **average_precision(work / "data" / "annotations" / "instances_val2017.json", detections),
    }


def average_precision(annotations: Path, detections: list[dict[str, Any]]) -> dict[str, Any]:
    """AP and AP50 by pycocotools, by the most detections of an image that count."""
    from contextlib import redirect_stdout
    from io import StringIO

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with redirect_stdout(StringIO()):
        truth = COCO(str(annotations))
        scoring = COCOeval(truth, truth.loadRes(detections), "bbox")
        scoring.params.maxDets = list(DETECTIONS)
        scoring.evaluate()
        scoring.accumulate()
    precision = scoring.eval["precision"][:, :, :, 0, :]  # (thresholds, recalls, classes, detections)
    result: dict[str, Any] = {"AP": {}, "AP50": {}}
    for index, count in enumerate(DETECTIONS):
        result["AP"][count] = round(float(precision[..., index].mean()), 4)
        result["AP50"][count] = round(float(precision[0, ..., index].mean()), 4)
    return result


# -------------------------------------------------------------------------------------------------------------- figure

SCENE = 3
"""Number of the scene."""
PANEL = (480, 640)
"""Height and width of the part of the scene that is shown."""
ENLARGED = 1.05
MIN_SCORE = 0.3
PANELS = (
    ("whole", "Trained on whole images, predicted whole", None),
    ("sliced", f"Trained on tiles, predicted with --tiles {TILE}x{TILE}", f"{TILE}x{TILE}"),
)
CORRECT, WRONG, MISSED = (60, 220, 80), (240, 60, 60), (255, 255, 255)
"""Colours of boxes; missed objects have thin ones."""


def draw_figure(work: Path, path: Path) -> None:
    """One scene, as a whole by the network of whole images, in tiles by that of tiles: the part with most objects."""
    import cv2
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    from codetr_cli.inference.detector import Detector

    pixels, objects = draw_scene(np.random.default_rng([9, SCENE]))
    centres = np.array([(points.min(axis=0) + points.max(axis=0)) / 2 for _, points in objects])
    height, width = PANEL
    corners = [(x, y) for y in range(0, SIZE[0] - height, 20) for x in range(0, SIZE[1] - width, 20)]
    inside = [
        ((centres >= corner) & (centres < np.add(corner, (width, height)))).all(axis=1).sum() for corner in corners
    ]
    left, top = corners[int(np.argmax(inside))]
    part = pixels[top : top + height, left : left + width]
    large = cv2.resize(part, None, fx=ENLARGED, fy=ENLARGED, interpolation=cv2.INTER_CUBIC)
    figure = Image.new("RGB", (2 * large.shape[1] + 12, large.shape[0] + 34), "white")
    for number, (name, title, tiles) in enumerate(PANELS):
        detector = Detector.load(work / name, device="cpu", overrides=WHOLE_SIZE)
        found = detector.predict(pixels, tiles=tiles, score=MIN_SCORE)
        is_hit, matched = match(objects, found)
        picture = Image.fromarray(large)
        pen = ImageDraw.Draw(picture)
        missed = [[*points.min(axis=0), *points.max(axis=0)] for _, points in np.array(objects, object)[~matched]]
        boxes = [(box, WRONG) for box in found.boxes[~is_hit]] + [(box, MISSED) for box in missed]
        for box, colour in [*boxes, *((box, CORRECT) for box in found.boxes[is_hit])]:
            x1, y1, x2, y2 = ((np.asarray(box) - (left, top, left, top)) * ENLARGED).tolist()
            pen.rectangle((x1 - 3, y1 - 3, x2 + 3, y2 + 3), outline=colour, width=1 if colour == MISSED else 3)
        across = number * (large.shape[1] + 12)
        figure.paste(picture, (across, 34))
        text = f"{title}: {matched.sum()} of {len(objects)} objects, {(~is_hit).sum()} false alarms"
        font = ImageFont.load_default(17)
        ImageDraw.Draw(figure).text((across + 6, 17), text, fill="black", font=font, anchor="lm")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.save(path, quality=85, method=6)


def match(objects: list[tuple[int, Any]], found: Any) -> tuple[Any, Any]:
    """Which detections, best first, meet an object of their class with IoU 0.5, and which objects are met: bool."""
    import numpy as np

    boxes = np.array([[*points.min(axis=0), *points.max(axis=0)] for _, points in objects])
    labels = np.array([label for label, _ in objects])
    is_hit, matched = np.zeros(len(found), bool), np.zeros(len(objects), bool)
    for row, (box, label) in enumerate(zip(found.boxes, found.labels, strict=True)):
        shared = (np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])).clip(0).prod(axis=1)
        union = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod() - shared
        overlap = shared / union * (labels == label) * ~matched
        if overlap.max() >= 0.5:
            is_hit[row] = matched[int(overlap.argmax())] = True
    return is_hit, matched


def describe_machine() -> dict[str, Any]:
    """Processor and versions."""
    import torch

    return {
        "cpu": platform.machine(),
        "cores": os.cpu_count(),
        "threads": 1,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


if __name__ == "__main__":
    main()
