"""Measures memory and time of reading annotation files, and of checking a folder of as many images as COCO has.

    python benchmarks/annotations_memory.py --out benchmarks/results/annotations_memory.json

The file is synthetic, of LVIS's size by default, with polygons. Every figure comes from a process of its own, one after
the other on one core: the peak of its resident size above that after its imports. `--package DIR` measures another
checkout of the program, and `--before FILE` adds an earlier result to the new one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

MEASURE = """
import gc, json, resource, sys, time
from contextlib import contextmanager
from pathlib import Path
from codetr_cli.config.data_settings import DataConfig
from codetr_cli.annotations.objects import read_annotations
from codetr_cli.data.checks.annotations import check_annotations
from codetr_cli.data.checks.dataset import check_dataset
from codetr_cli.annotations.findings import Findings
job, path = sys.argv[1], Path(sys.argv[2])
@contextmanager
def silent(description, total):
    yield lambda count: None
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started, cpu = time.perf_counter(), time.process_time()
if job == "read":
    read_annotations(path)
elif job == "read_outlines":
    read_annotations(path, with_outlines=True)
elif job == "check":
    check_annotations(path, Findings(), "here", training=True)
else:
    check_dataset(path, config=DataConfig(), progress=silent)
seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps({"job": job, "seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), "peak_mb": peak // 1024}))
"""


def main() -> int:
    """Measures every job, each in a process of its own, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_170, help="of LVIS's training part")
    parser.add_argument("--objects", type=int, default=1_270_141)
    parser.add_argument("--classes", type=int, default=1_203)
    parser.add_argument("--files", type=int, default=118_287, help="images of the folder that is checked")
    parser.add_argument("--repeat", type=int, default=3, help="the fastest of so many is kept")
    parser.add_argument("--package", type=Path, default=ROOT, help="checkout of the program that is measured")
    parser.add_argument("--work", type=Path, help="folder of the synthetic data, kept; default: a temporary one")
    parser.add_argument("--before", type=Path, help="an earlier result, copied into this one")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp(prefix="annotations_"))
    try:
        result = _measure(options, work)
    finally:
        if options.work is None:
            shutil.rmtree(work)
    text = json.dumps(result, indent=1) + "\n"
    if options.out:
        options.out.write_text(text)
    else:
        sys.stdout.write(text)
    return 0


def _measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    large = work / "lvis_size.json"
    if not large.exists():
        work.mkdir(parents=True, exist_ok=True)
        write_annotations(large, options.images, options.objects, options.classes)
    folder = work / "coco_size"
    if not folder.exists():
        write_folder(folder, options.files)
    rows = []
    for job, path in (("read", large), ("read_outlines", large), ("check", large), ("folder", folder)):
        runs = [_run(options.package, job, path) for _ in range(options.repeat)]
        rows.append(min(runs, key=lambda run: run["cpu_seconds"]))
    result = {
        "command": "python benchmarks/annotations_memory.py " + " ".join(_shown(sys.argv[1:])),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": {"system": platform.platform(), "cpus": os.cpu_count(), "cores_used": 1},
        "versions": {"python": platform.python_version()},
        "note": "peak_mb: peak resident size above that after the imports; folder: the check of a folder of "
        f"{options.files:,} images and {3 * options.files:,} objects",
        "data": {"objects": options.objects, "images": options.images, "classes": options.classes,
                 "file_mb": large.stat().st_size >> 20},
        "rows": rows,
    }  # fmt: skip
    if options.before:
        earlier = json.loads(options.before.read_text())
        result["before"] = {key: earlier[key] for key in ("date", "rows")}
    return result


def _shown(words: list[str]) -> list[str]:
    """The arguments without the folders of one machine."""
    return [word for index, word in enumerate(words) if "--work" not in words[max(index - 1, 0) : index + 1]]


def _run(package: Path, job: str, path: Path) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    words = [sys.executable, "-c", MEASURE, job, str(path.resolve())]
    if shutil.which("taskset"):
        words = ["taskset", "-c", str(min(os.sched_getaffinity(0))), *words]
    output = subprocess.run(words, env=environment, cwd=package, check=True, stdout=subprocess.PIPE, text=True).stdout
    result: dict[str, Any] = json.loads(output)
    return result


def write_annotations(path: Path, images: int, objects: int, classes: int, *, prefix: str = "") -> None:
    """Writes an annotation file with random boxes and polygons, an entry a line."""
    generator = random.Random(0)
    with path.open("w") as file:
        file.write('{"images": [')
        for index in range(images):
            record = {"id": index + 1, "file_name": f"{prefix}{index + 1:012d}.png", "width": 640, "height": 480}
            file.write(f"{',' if index else ''}\n{json.dumps(record)}")
        file.write('],\n"annotations": [')
        for index in range(objects):
            x, y = generator.uniform(0, 500), generator.uniform(0, 300)
            w, h = generator.uniform(2, 139), generator.uniform(2, 179)
            points = [round(x + w * generator.random(), 2) if k % 2 == 0 else round(y + h * generator.random(), 2)
                      for k in range(20)]  # fmt: skip
            record = {
                "id": index + 1, "image_id": generator.randrange(images) + 1, "iscrowd": 0,
                "category_id": generator.randrange(classes) + 1, "area": round(w * h / 2, 2),
                "bbox": [round(x, 2), round(y, 2), round(w, 2), round(h, 2)], "segmentation": [points],
            }  # fmt: skip
            file.write(f"{',' if index else ''}\n{json.dumps(record)}")
        categories = [{"id": index + 1, "name": f"class {index + 1}"} for index in range(classes)]
        file.write(f'],\n"categories": {json.dumps(categories)}}}\n')


def write_folder(folder: Path, files: int) -> None:
    """Writes a folder in COCO's layout, whose images are links to a few small files."""
    import cv2
    import numpy as np

    (folder / "annotations").mkdir(parents=True)
    for split, count in (("train", files), ("val", 100)):
        images = folder / f"{split}2017"
        images.mkdir()
        write_annotations(folder / f"annotations/instances_{split}2017.json", count, 3 * count, 80)
        for index in range(count):
            name = images / f"{index + 1:012d}.png"
            if index % 10_000 == 0:  # a file has a limited number of names
                cv2.imwrite(str(name), np.zeros((480, 640, 3), np.uint8))
                source = name
            else:
                os.link(source, name)


if __name__ == "__main__":
    raise SystemExit(main())
