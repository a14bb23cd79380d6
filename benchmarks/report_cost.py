"""Measures what a report costs beyond the evaluation: CPU seconds and memory of each part, for data of COCO val's size.

    python benchmarks/report_cost.py

5,000 images of 640x480 pixels, 36,500 objects and 300 detections an image (1.5 million): each object is detected four
times, more and more loosely, a part of them in another class; the others are random boxes with low scores. Once with
80 classes by COCO's rules, once with 1,203 by LVIS's. Every case is a process of its own on one thread. Memory is the
peak of the resident size above what annotations and detections use. Writes benchmarks/results/report_cost.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from codetr_cli.analysis.analysis import Analysis, analyse
from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.annotations.file_names import NameRule
from codetr_cli.annotations.objects import Annotations
from codetr_cli.evaluation.scoring import Scores, score_detections
from codetr_cli.formats.resolve import DataPaths
from codetr_cli.inference.detections import DetectionTable
from codetr_cli.report.evaluation_report import write_report
from codetr_cli.report.facts import ReportFacts
from codetr_cli.runtime.devices import cpu_name
from codetr_cli.runtime.timing import memory_in_use, peak_memory, reset_peak_memory

ROOT = Path(__file__).resolve().parent.parent
WIDTH, HEIGHT, OBJECTS, PER_IMAGE = 640, 480, 7.3, 300
DIFFERENT_IMAGES = 100
CASES = {"coco": 80, "lvis": 1203}
CPU = torch.device("cpu")


def main() -> None:
    """Measures each case in a process of its own and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--measure", choices=CASES, help="one case, in this process")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "report_cost.json")
    arguments = parser.parse_args()
    if arguments.measure:
        sys.stdout.write(json.dumps(measure(arguments.measure, arguments.images)))
        return
    rows = []
    for case in CASES:
        command = [sys.executable, __file__, "--measure", case, "--images", str(arguments.images)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
        rows.append(json.loads(done.stdout))
        sys.stdout.write(f"{case}: {rows[-1]['cpu_s']} s of CPU beyond the evaluation\n")
    result = {
        "command": "python benchmarks/report_cost.py"
        + (f" --images {arguments.images}" if arguments.images != 5000 else ""),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{cpu_name()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} when measured",
        "versions": {name: version(name) for name in ("hotcoco", "numpy", "scipy", "opencv-python-headless")}
        | {"python": platform.python_version()},
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def measure(case: str, images: int) -> dict[str, Any]:
    """Scores synthetic detections, analyses them and writes the report."""
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        inputs = material(Path(folder), images, CASES[case], lvis=case == "lvis")
        parts: list[dict[str, Any]] = []
        truth, detections = inputs.ground_truth, inputs.detections
        scores: Scores = timed(parts, "evaluation", lambda: score_detections(truth, detections, where="annotations"))
        analysis = analysed(parts, inputs, scores)
        page = Path(folder) / "report.html"
        facts = facts_of(inputs, scores)
        timed(parts, "page and report.json", lambda: write_report(analysis, facts, page))
        sizes = {path.name: round(path.stat().st_size / 2**20, 2) for path in sorted(Path(folder).glob("report.*"))}
    beyond = parts[1:]
    return {
        "case": case,
        "classes": CASES[case],
        "images": images,
        "objects": analysis.counts.objects,
        "detections": len(inputs.detections),
        "ap": round(scores.metrics["AP"], 4),
        "ap_interval": [round(limit, 4) for limit in analysis.ap_interval or ()],
        "evaluation": parts[0],
        "cpu_s": round(sum(part["cpu_s"] for part in beyond), 1),
        "peak_mib": max(part["peak_mib"] for part in beyond),
        "parts": beyond,
        "file_mib": sizes,
    }


def timed(parts: list[dict[str, Any]], name: str, function: Callable[[], Any]) -> Any:
    """Calls a function and adds its seconds and memory to the parts."""
    meter = Meter(name)
    value = function()
    parts.append(meter.read())
    return value


def analysed(parts: list[dict[str, Any]], inputs: AnalysisInputs, scores: Scores) -> Analysis:
    """The analysis, with a row for each part that it names."""
    meters: list[Meter] = []

    def show(name: str) -> None:
        if meters:
            parts.append(meters[-1].read())
        meters.append(Meter(name))

    analysis = analyse(inputs, scores, show=show)
    parts.append(meters[-1].read())
    return analysis


class Meter:
    """CPU seconds and peak memory since it was made."""

    start = memory_in_use(CPU) or 0
    """Resident size with annotations and detections alone; set by `material`."""

    def __init__(self, name: str) -> None:
        self._name = name
        reset_peak_memory(CPU)
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, Any]:
        """The row of a part."""
        cpu, wall = time.process_time() - self._cpu, time.perf_counter() - self._wall
        peak = round(((peak_memory(CPU) or 0) - Meter.start) / 2**20)
        return {"part": self._name, "cpu_s": round(cpu, 2), "wall_s": round(wall, 2), "peak_mib": peak}


def material(folder: Path, images: int, classes: int, *, lvis: bool) -> AnalysisInputs:
    """Annotations, detections and image files."""
    generator = np.random.default_rng(0)
    counts = generator.poisson(OBJECTS, images)
    rows = np.repeat(np.arange(images), counts)
    popularity = 1 / np.arange(1, classes + 1)
    popularity /= popularity.sum()
    sides = np.exp(generator.normal(4, 1, (len(rows), 2))).clip(4, HEIGHT)
    corners = generator.random((len(rows), 2)) * ([WIDTH, HEIGHT] - sides).clip(0)
    boxes = np.concatenate([corners, sides], axis=1).round(2)
    several = [generator.integers(1, classes + 1, (images, number)).tolist() if lvis else [] for number in (8, 2)]
    truth = Annotations(
        class_names=[f"class {label}" for label in range(classes)],
        category_ids=list(range(1, classes + 1)),
        image_ids=np.arange(1, images + 1),
        file_names=[f"{image:012d}.jpg" for image in range(1, images + 1)],
        sizes=np.tile([HEIGHT, WIDTH], (images, 1)),
        image_rows=rows,
        labels=generator.choice(classes, len(rows), p=popularity),
        boxes_xywh=boxes,
        area=boxes[:, 2] * boxes[:, 3] * 0.7,
        iscrowd=(generator.random(len(rows)) < (0 if lvis else 0.01)).astype(np.int64),
        ignore=np.zeros(len(rows), bool),
        frequencies=[("r", "c", "f")[label % 3] for label in range(classes)] if lvis else [],
        neg_category_ids=several[0],
        not_exhaustive_category_ids=several[1],
    )
    write_images(folder, truth.file_names, generator)
    paths = DataPaths(folder, folder / "annotations.json", NameRule.of(folder))
    inputs = AnalysisInputs.of(truth, detections_of(truth, popularity, generator), paths)
    Meter.start = memory_in_use(CPU) or 0
    return inputs


def detections_of(truth: Annotations, popularity: np.ndarray, generator: np.random.Generator) -> DetectionTable:
    """Four detections of each object, and random boxes up to `PER_IMAGE` an image."""
    images, classes = len(truth.image_ids), len(popularity)
    spread, sureness = np.array([0.03, 0.12, 0.3, 0.6]), np.array([0.95, 0.6, 0.4, 0.3])
    of = np.repeat(np.arange(len(truth.labels)), len(spread))
    moved = generator.normal(0, 1, (len(of), 4)) * np.tile(spread, len(truth.labels))[:, None]
    near = truth.boxes_xywh[of]
    near = np.concatenate([near[:, :2] + moved[:, :2] * near[:, 2:], near[:, 2:] * np.exp(moved[:, 2:])], axis=1)
    labels = truth.labels[of].copy()
    other = generator.random(len(of)) < 0.15
    labels[other] = generator.integers(0, classes, int(other.sum()))
    scores = generator.beta(2, 2, len(of)) * np.tile(sureness, len(truth.labels))
    fill = np.repeat(np.arange(images), (PER_IMAGE - np.bincount(truth.image_rows[of], minlength=images)).clip(0))
    sides = np.exp(generator.normal(4, 1, (len(fill), 2))).clip(2, WIDTH)
    random_boxes = np.concatenate([generator.random((len(fill), 2)) * [WIDTH, HEIGHT], sides], axis=1)
    rows = np.concatenate([truth.image_rows[of], fill])
    order = np.argsort(rows, kind="stable")
    chosen = np.concatenate([labels, generator.choice(classes, len(fill), p=popularity)])
    return DetectionTable(
        image_ids=truth.image_ids[rows[order]],
        category_ids=np.array(truth.category_ids)[chosen[order]],
        boxes_xywh=np.concatenate([near, random_boxes])[order].round(4),
        scores=np.concatenate([scores, generator.beta(1, 8, len(fill)) * 0.5])[order].round(8),
    )


def write_images(folder: Path, names: list[str], generator: np.random.Generator) -> None:
    """Writes a hundred different photo-like images under all names."""
    for number, name in enumerate(names):
        first = folder / names[number % DIFFERENT_IMAGES]
        if number >= DIFFERENT_IMAGES:
            os.link(first, folder / name)
            continue
        coarse = generator.integers(0, 255, (HEIGHT // 16, WIDTH // 16, 3), np.uint8)
        pixels = cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC).astype(np.int64)
        noisy = (pixels + generator.integers(-12, 13, pixels.shape)).clip(0, 255).astype(np.uint8)
        cv2.imwrite(str(first), noisy)


def facts_of(inputs: AnalysisInputs, scores: Scores) -> ReportFacts:
    """What the report is about."""
    return ReportFacts(
        title="Cost of a report",
        protocol="synthetic detections",
        metrics=scores.metrics,
        per_class=[score.as_dict() for score in scores.per_class],
        images=scores.images,
        objects=scores.objects,
        annotations=str(inputs.paths.annotations_path),
        images_dir=str(inputs.paths.images_dir),
        data="",
        command="python benchmarks/report_cost.py",
    )


if __name__ == "__main__":
    main()
