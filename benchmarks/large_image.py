"""Measures the memory of `codetr predict --tiles` for images that are read in parts.

    nice python benchmarks/large_image.py --work /tmp/large --checkpoint /tmp/small_objects/sliced

The images are synthetic: scenes of benchmarks/small_objects.py side by side, in a TIFF of 12,000 x 9,000 pixels, and in
one of 20,000 x 20,000. They are predicted in a process of its own on one core, whose resident memory is read from the
kernel every half second. Detections are compared with the objects drawn. Writes benchmarks/results/large_image.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.small_objects import describe_machine, draw_scene, network_settings  # noqa: E402 - needs the path

SCENE = (1000, 1000)
SCENES = 12
"""Different ones, which are repeated."""


def main() -> None:
    """Makes the images, predicts them and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the images and the predictions")
    parser.add_argument("--checkpoint", type=Path, required=True, help="a network of benchmarks/small_objects.py")
    parser.add_argument("--tiles", default="400x400,2000x2000", help="size of the tiles in each image")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "large_image.json")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    first, second = arguments.tiles.split(",")
    results = [
        measure(arguments, (9_000, 12_000), first, {"compress": "lzw", "predictor": 2}),
        measure(arguments, (20_000, 20_000), second, {"compress": "jpeg", "photometric": "ycbcr"}),
    ]
    report = {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "note": "one thread, beside other work on the machine",
        "images": results,
    }
    arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def write_image(path: Path, size: tuple[int, int], options: dict[str, Any]) -> list[list[float]]:
    """A TIFF with tiles of 512 pixels, written row by row of scenes; returns the boxes (x1, y1, x2, y2, label)."""
    import rasterio
    from rasterio.windows import Window

    scenes = [draw_scene(np.random.default_rng([11, number]), SCENE) for number in range(SCENES)]
    rng, boxes = np.random.default_rng(12), []
    height, width = size
    layout = {"height": height, "width": width, "count": 3, "dtype": "uint8", "tiled": True}
    options = {"photometric": "rgb", **options}
    with rasterio.open(path, "w", driver="GTiff", blockxsize=512, blockysize=512, **layout, **options) as file:
        for top in range(0, height, SCENE[0]):
            row = np.empty((SCENE[0], width, 3), np.uint8)
            for left in range(0, width, SCENE[1]):
                pixels, objects = scenes[int(rng.integers(SCENES))]
                row[:, left : left + SCENE[1]] = pixels
                for label, points in objects:
                    points = points + np.array([left, top])
                    boxes.append([*points.min(axis=0).tolist(), *points.max(axis=0).tolist(), label])
            file.write(np.moveaxis(row, -1, 0), window=Window(0, top, width, SCENE[0]))
    return boxes


def measure(arguments: argparse.Namespace, size: tuple[int, int], tiles: str, options: dict[str, Any]) -> Any:
    """Predicts one image; returns the memory, the time and how many objects were found."""
    path = arguments.work / f"{size[1]}x{size[0]}.tif"
    record = path.with_suffix(".json")
    if not record.exists():
        record.write_text(json.dumps(write_image(path, size, options)), encoding="utf-8")
    boxes = np.array(json.loads(record.read_text(encoding="utf-8")))
    out = arguments.work / f"predicted_{size[1]}x{size[0]}_{tiles}"
    words = ["predict", str(path), "--checkpoint", str(arguments.checkpoint), "--out", str(out), "--tiles", tiles]
    words += ["--device", "cpu", "--score", "0.4", "--force", *network_settings()]
    started = time.monotonic()
    curve = watch_memory([sys.executable, "-m", "codetr_cli", *words])
    seconds = time.monotonic() - started
    found = json.loads((out / "predictions.json").read_text(encoding="utf-8"))
    return {
        "size": [size[1], size[0]],
        "megapixels": size[0] * size[1] / 1e6,
        "file_mb": round(path.stat().st_size / 1e6, 1),
        "decoded_mb": round(3 * size[0] * size[1] / 1e6),
        "tiles": tiles,
        "command": "codetr " + " ".join(words),
        "seconds": round(seconds, 1),
        "peak_rss_mb": max(curve),
        "rss_mb_over_time": [curve[round(share * (len(curve) - 1) / 20)] for share in range(21)],
        "objects": len(boxes),
        "detections": len(found),
        **compare(boxes, found),
    }


def watch_memory(command: list[str]) -> list[int]:
    """Resident memory of a process in MB, every half second and at its peak."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment)
    status, curve, peak = Path(f"/proc/{process.pid}/status"), [], 0
    while process.poll() is None:
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        if "VmRSS" in fields:
            curve.append(int(fields["VmRSS"].split()[0]) // 1024)
            peak = max(peak, int(fields["VmHWM"].split()[0]) // 1024)
        time.sleep(0.5)
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode}: {' '.join(command)}")
    return [*curve, peak]


def compare(boxes: np.ndarray, found: list[dict[str, Any]]) -> dict[str, Any]:
    """Objects that were found with IoU 0.5 and their class, each by one detection, best scores first."""
    free, hits = np.ones(len(boxes), bool), 0
    order = np.argsort(boxes[:, 0], kind="stable")
    boxes = boxes[order]
    for item in sorted(found, key=lambda item: -item["score"]):
        x, y, width, height = item["bbox"]
        start, stop = np.searchsorted(boxes[:, 0], (x - 100, x + width))
        near = boxes[start:stop]
        across = np.minimum(near[:, 2], x + width) - np.maximum(near[:, 0], x)
        down = np.minimum(near[:, 3], y + height) - np.maximum(near[:, 1], y)
        shared = across.clip(0) * down.clip(0)
        areas = (near[:, 2] - near[:, 0]) * (near[:, 3] - near[:, 1]) + width * height
        overlap = shared / (areas - shared) * free[start:stop] * (near[:, 4] == item["category_id"] - 1)
        if len(overlap) and overlap.max() >= 0.5:
            free[start + int(overlap.argmax())] = False
            hits += 1
    return {"recall": round(hits / len(boxes), 3), "precision": round(hits / max(1, len(found)), 3)}


if __name__ == "__main__":
    main()
