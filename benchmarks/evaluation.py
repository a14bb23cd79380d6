"""Measures how long scoring takes: synthetic detections in memory, scored as in `codetr eval`.

    python benchmarks/evaluation.py

Annotations and detections are as many as in COCO: 80 classes, 7.3 objects and 300 detections per image, most of the
detections wrong. hotcoco scores 5,000 images; pycocotools scores 1,000 (5,000 would take over 400 s and 4 GiB), and the
results on 1,000 are compared to the last bit. Every measurement is a process of its own. Writes
benchmarks/results/evaluation_cpu.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from codetr_cli.annotations.objects import read_annotations
from codetr_cli.evaluation.scoring import score_detections
from codetr_cli.inference.detections import DetectionTable
from codetr_cli.runtime.devices import cpu_name

ROOT = Path(__file__).resolve().parent.parent
CLASSES, PER_IMAGE, OBJECTS = 80, 300, 7.3
RUNS = [("hotcoco", 1000), ("pycocotools", 1000), ("hotcoco", 5000)]


def main() -> None:
    """Measures each scorer in a process of its own and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", nargs=2, metavar=("SCORER", "IMAGES"), help="one measurement, in this process")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "evaluation_cpu.json")
    arguments = parser.parse_args()
    if arguments.measure:
        sys.stdout.write(json.dumps(measure(arguments.measure[0], int(arguments.measure[1]))))
        return
    rows = []
    for scorer, images in RUNS:
        command = [sys.executable, __file__, "--measure", scorer, str(images)]
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        seconds = rows[-1]["scoring_s"]
        sys.stdout.write(f"{scorer}, {images} images: {seconds['wall']} s, {seconds['cpu']} s of CPU\n")
    result = {
        "command": "python benchmarks/evaluation.py",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{cpu_name()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} when measured",
        "versions": {name: version(name) for name in ("hotcoco", "pycocotools", "numpy")}
        | {"python": platform.python_version()},
        "material": f"{CLASSES} classes, {OBJECTS} objects and {PER_IMAGE} detections an image",
        "equal_to_the_last_bit": rows[0]["metrics"] == rows[1]["metrics"],
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def measure(scorer: Any, images: int) -> dict[str, Any]:
    """Scores synthetic detections once."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "annotations.json"
        found = write_material(path, images)
        started, cpu = time.perf_counter(), time.process_time()
        truth = read_annotations(path)
        reading = {"wall": round(time.perf_counter() - started, 2), "cpu": round(time.process_time() - cpu, 2)}
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started, cpu = time.perf_counter(), time.process_time()
        scores = score_detections(truth, found, where=str(path), scorer=scorer)
        scoring = {"wall": round(time.perf_counter() - started, 2), "cpu": round(time.process_time() - cpu, 2)}
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        started = time.perf_counter()
        (Path(folder) / "detections.json").write_text(found.to_json(), encoding="utf-8")
    return {
        "engine": scorer,
        "images": images,
        "objects": scores.objects,
        "detections": len(found),
        "reading_annotations_s": reading,
        "scoring_s": scoring,
        "memory_mib": round(grown),
        "writing_detections_s": round(time.perf_counter() - started, 2),
        "metrics": scores.metrics,
    }


def write_material(path: Path, images: int) -> DetectionTable:
    """Writes annotations and returns detections: each object is detected twice, the others are random boxes."""
    generator = np.random.default_rng(0)
    count = generator.poisson(OBJECTS, images)
    rows = np.repeat(np.arange(images), count)
    sides = np.exp(generator.normal(4.0, 1.0, (len(rows), 2))).clip(2, 400)
    boxes = np.concatenate([generator.uniform(0, 240, (len(rows), 2)), sides], axis=1).round(2)
    classes = generator.integers(1, CLASSES + 1, len(rows))
    annotations = [
        {
            "id": number,
            "image_id": int(row) + 1,
            "category_id": int(category),
            "bbox": box.tolist(),
            "area": round(float(box[2] * box[3]) * 0.6, 2),
            "iscrowd": int(number % 90 == 0),
        }
        for number, (row, category, box) in enumerate(zip(rows, classes, boxes, strict=True), start=1)
    ]
    table = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 480, "width": 640} for i in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": i, "name": f"class {i}"} for i in range(1, CLASSES + 1)],
    }
    path.write_text(json.dumps(table), encoding="utf-8")
    tables = []
    ends = np.cumsum(count)
    for image in range(images):
        mine = slice(ends[image] - count[image], ends[image])
        right = np.tile(boxes[mine], (2, 1)) * generator.normal(1, 0.08, (2 * count[image], 4))
        wrong = PER_IMAGE - len(right)
        anywhere = np.concatenate(
            [generator.uniform(0, 240, (wrong, 2)), np.exp(generator.normal(4.0, 1.0, (wrong, 2))).clip(2, 400)], axis=1
        )
        xywh = np.concatenate([right, anywhere])
        tables.append(
            DetectionTable.of_image(
                image + 1,
                np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1),
                np.concatenate([generator.beta(4, 2, len(right)), generator.beta(1, 8, wrong)]),
                np.concatenate([np.tile(classes[mine], 2), generator.integers(1, CLASSES + 1, wrong)]),
            )
        )
    return DetectionTable.join(tables)


if __name__ == "__main__":
    main()
