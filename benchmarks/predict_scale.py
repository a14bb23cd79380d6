"""Measures the memory of a prediction of very many images, without the network: its list, its results, its files.

    python benchmarks/predict_scale.py

A list of 300,000 names is predicted as `codetr predict list.txt --no-draw --format jsonl,parquet` does, in one process,
by a detector that reads nothing and finds ten objects in each image. Everything else is real: threads, part files,
merging, writing. A list of a tenth of it is measured beside it. Each is measured in a process of its own, whose
resident memory is sampled; figures are above that after the imports. Then the time is what codetr itself needs for an
image. Writes benchmarks/results/predict_scale.json. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

IMAGES, OBJECTS, SIZE = 300_000, 10, (480, 640)
FORMATS = ("jsonl", "parquet")
SAMPLE_S = 0.25


def main() -> None:
    """Measures lists of two lengths and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "predict_scale.json")
    parser.add_argument("--one", type=int, default=None, help="measure so many images in this process")
    parser.add_argument("--note", default="", help="what else ran")
    arguments = parser.parse_args()
    if arguments.one is not None:
        sys.stdout.write(json.dumps(measure(arguments.one)) + "\n")
        return
    measured = {}
    for count in (arguments.images // 10, arguments.images):
        ran = subprocess.run(
            [sys.executable, __file__, "--one", str(count)], check=True, stdout=subprocess.PIPE, env=environment()
        )
        measured[str(count)] = json.loads(ran.stdout.splitlines()[-1])
        sys.stdout.write(f"{count:,} images: {measured[str(count)]}\n")
    import torch

    result = {
        "command": f"python benchmarks/predict_scale.py --images {arguments.images}",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "objects_per_image": OBJECTS,
        "list_bytes_per_image": list_bytes(arguments.images),
        "formats": FORMATS,
        "note": arguments.note,
        "images": measured,
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def environment() -> dict[str, str]:
    """Of the measured process: freed memory goes back to the system at once, and there is one thread a library."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}


def resident() -> float:
    """Resident memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure(count: int) -> dict[str, Any]:
    """Predicts a list of so many images that do not exist; memory and times."""
    import torch

    from codetr_cli.prediction.inputs import find_images
    from codetr_cli.prediction.job import PredictJob, run_prediction
    from codetr_cli.prediction.pictures import PictureOptions

    with tempfile.TemporaryDirectory() as folder:
        weights = stub(Path(folder, "stub"))
        listed = Path(folder, "list.txt")
        with listed.open("w", encoding="utf-8") as file:
            file.writelines(f"/data/images/train/{number // 1000:05}/{number + 1:012}.jpg\n" for number in range(count))
        before = resident()
        started = time.monotonic()
        images = find_images([str(listed)])
        seconds_listing, after_listing = time.monotonic() - started, resident() - before
        job = PredictJob(
            images=images,
            weights=weights,
            pictures=PictureOptions(draw=False),
            formats=FORMATS,
            out=Path(folder, "out"),
        )
        samples: list[tuple[float, float]] = []
        progress = [0]

        @contextmanager
        def show(total: int, done: int) -> Iterator[Any]:
            yield lambda images: progress.__setitem__(0, progress[0] + images)

        with sampling(samples, progress, before):
            started = time.monotonic()
            outcome = run_prediction(job, device=torch.device("cpu"), show=show, warn=sys.stderr.write)
            seconds = time.monotonic() - started
        assert outcome is not None
        assert outcome.tally.done == count
        assert outcome.tally.detections == count * OBJECTS
        written = sum(path.stat().st_size for path in outcome.files)
    return {
        "seconds_listing": round(seconds_listing, 1),
        "mb_after_listing": round(after_listing),
        "mb_by_share_of_images": {str(share): at_share(samples, count, share) for share in (0.1, 0.25, 0.5, 0.75, 1.0)},
        "mb_at_most": round(max(memory for _, memory in samples)),
        "mb_while_writing_at_most": round(max(memory for done, memory in samples if done >= count)),
        "seconds": round(seconds, 1),
        "images_per_second_detecting": outcome.summary["images_per_second"],
        "written_mb": round(written / 1e6),
    }


def at_share(samples: list[tuple[float, float]], count: int, share: float) -> int:
    """Memory in MB when a share of the images was done."""
    return round(next((memory for done, memory in samples if done >= share * count), samples[-1][1]))


def list_bytes(count: int) -> float:
    """Memory of the list of inputs for an image, in bytes."""
    from codetr_cli.prediction.sources.input_list import InputList

    tracemalloc.start()
    images = InputList()
    for number in range(count):
        images.append("file", f"/data/images/train/{number // 1000:05}/", f"{number + 1:012}.jpg")
    images.number(range(1, count + 1))
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return round(size / count, 1)


@contextmanager
def sampling(samples: list[tuple[float, float]], progress: list[int], before: float) -> Iterator[None]:
    """Collects (images done, MB) from time to time."""
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(SAMPLE_S):
            samples.append((progress[0], resident() - before))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@dataclass(frozen=True)
class Unread:
    """An image as a network would take it."""

    orig_size: tuple[int, int] = SIZE


def stub(work: Path) -> str:
    """Lets detectors find the same objects in every image, without its pixels; a checkpoint for them."""
    import numpy as np

    from benchmarks.predict_kills import CLASSES, prepare
    from codetr_cli.inference.detector import Detector
    from codetr_cli.inference.prediction import Prediction
    from codetr_cli.prediction.predictor import Predictor

    generator = np.random.default_rng(0)
    corners = generator.uniform(0, 200, (OBJECTS, 2)).astype(np.float32)
    labels = np.arange(OBJECTS) % len(CLASSES)
    found = Prediction(
        boxes=np.concatenate([corners, corners + np.float32(100.5)], axis=1),
        scores=np.linspace(0.95, 0.35, OBJECTS, dtype=np.float32),
        labels=labels,
        category_ids=labels + 1,
        class_names=[CLASSES[label] for label in labels],
        image_size=SIZE,
        classes=tuple(CLASSES),
    )
    pixels = np.zeros((1, 1, 3), np.uint8)
    replaced: tuple[tuple[type, str, Any], ...] = (
        (Predictor, "_weigh", lambda self, item: 0),
        (Predictor, "_read", lambda self, item: pixels),
        (Detector, "prepare", lambda self, pixels, options: Unread()),
        (Detector, "shape_of", lambda self, prepared: prepared.orig_size),
        (Detector, "detect", lambda self, images, options: [found for _ in images]),
        (Detector, "to_prediction", lambda self, detections, size, options: detections),
    )
    for owner, name, function in replaced:
        setattr(owner, name, function)
    prepare(work, 2)
    return str(work / "model.safetensors")


if __name__ == "__main__":
    main()
