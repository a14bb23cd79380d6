"""Compares ways to merge the detections of tiles on scenes where the right result is known.

    python benchmarks/tile_merging.py --out benchmarks/results/tile_merging.json

No network takes part: an oracle detects exactly what each tile and the whole image show of random boxes, nested and
overlapping ones too, with random scores; optionally its boxes are some pixels off. The whole image does not show
objects of less than 8 pixels. Compared with codetr's merging are NMS at IoU 0.5, and greedy merging at IoS 0.5, in
which the best box swallows those of its class that share half of the smaller one with it and grows to the box around
them, as SAHI does by default (written here by its description). A result is right where its box has an IoU of 0.5 with
an object of its class, one to one.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
from scipy.optimize import linear_sum_assignment
from torchvision.ops import batched_nms

from codetr_cli.runtime.devices import cpu_name
from tests.inference.scenes import Scene, merged, random_scene, view_detections

OVERLAP = 0.25
SMALLEST = 8.0
"""Side in pixels of the smallest part that the whole image shows."""
Found = tuple[np.ndarray, np.ndarray]


def main() -> int:
    """Measures all ways on the same scenes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--load", default="not recorded", help="what else ran on the machine, for the result")
    parser.add_argument("--out", type=Path, help="write the result to this file instead of printing it")
    arguments = parser.parse_args()
    started = time.perf_counter()
    ways = {"codetr": by_codetr, "nms_iou_0.5": by_nms, "greedy_merging_ios_0.5": by_greedy_merging}
    result: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": {"cpu": cpu_name(), "load": arguments.load},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "scipy": scipy.__version__},
        "scenes": arguments.scenes,
        "tiles": f"100 to 300 pixels a side, overlap {OVERLAP}, and the whole image",
        "noise_px": {
            str(noise): {name: count(way, arguments.scenes, noise) for name, way in ways.items()}
            for noise in (0.0, 1.5)
        },
    }
    result["seconds"] = round(time.perf_counter() - started, 1)
    text = json.dumps(result, indent=1) + "\n"
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    return 0


def count(way: Any, scenes: int, noise: float) -> dict[str, int]:
    """Right, false and missed objects of a way to merge; with noise, objects have four times as many pixels a side."""
    totals = np.zeros(4, np.int64)
    for seed in range(scenes):
        rng = np.random.default_rng(seed)
        of, tile = random_scene(rng), (int(rng.integers(100, 300)), int(rng.integers(100, 300)))
        keep = ((of.boxes[:, 2:] - of.boxes[:, :2]) >= 4 * noise).all(1)
        of = Scene(of.size, of.boxes[keep], of.labels[keep])
        boxes, labels = way(of, tile, rng, noise)
        match = iou(boxes, of.boxes) * (labels[:, None] == of.labels[None])
        rows, columns = linear_sum_assignment(-match)
        right = int((match[rows, columns] >= 0.5).sum())
        totals += [len(of.boxes), right, len(boxes) - right, len(of.boxes) - right]
    return dict(zip(("objects", "right", "false", "missed"), totals.tolist(), strict=True))


def by_codetr(of: Scene, tile: tuple[int, int], rng: np.random.Generator, noise: float) -> Found:
    """As `codetr predict --tiles`, with soft-NMS and a lowest score of 0.3."""
    found = merged(of, tile, OVERLAP, whole=SMALLEST, rng=rng, jitter=noise, nms="soft")
    found = found[found.scores >= 0.3]
    return found.boxes.numpy(), found.labels.numpy()


def by_nms(of: Scene, tile: tuple[int, int], rng: np.random.Generator, noise: float) -> Found:
    """NMS of all views."""
    found, _ = view_detections(of, tile, OVERLAP, whole=SMALLEST, rng=rng, jitter=noise)
    boxes, scores, labels = (
        torch.cat([getattr(each, name) for each in found]) for name in ("boxes", "scores", "labels")
    )
    keep = batched_nms(boxes, scores, labels, 0.5)
    return boxes[keep].numpy(), labels[keep].numpy()


def by_greedy_merging(of: Scene, tile: tuple[int, int], rng: np.random.Generator, noise: float) -> Found:
    """Boxes grow by those of their class that have half of their area in common, the best score first."""
    found, _ = view_detections(of, tile, OVERLAP, whole=SMALLEST, rng=rng, jitter=noise)
    columns = (torch.cat([getattr(each, name) for each in found]).numpy() for name in ("boxes", "scores", "labels"))
    boxes, scores, labels = columns
    merged_boxes, merged_labels = [np.zeros((0, 4))], [np.zeros(0, np.int64)]
    for label in np.unique(labels):
        left = boxes[labels == label][np.argsort(-scores[labels == label])]
        while len(left):
            box, left = left[0], left[1:]
            for other in left.copy():
                sides = np.maximum(np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2]), 0)
                smaller = min((box[2:] - box[:2]).prod(), (other[2:] - other[:2]).prod())
                if sides.prod() > 0.5 * smaller > 0:
                    box = np.concatenate([np.minimum(box[:2], other[:2]), np.maximum(box[2:], other[2:])])
                    left = left[~(left == other).all(1)]
            merged_boxes.append(box[None])
            merged_labels.append(np.array([label]))
    return np.concatenate(merged_boxes), np.concatenate(merged_labels)


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU (N, M) of corner boxes (N, 4) and (M, 4)."""
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    common = np.maximum(sides, 0).prod(2)
    area_a, area_b = (a[:, 2:] - a[:, :2]).prod(1)[:, None], (b[:, 2:] - b[:, :2]).prod(1)[None]
    return common / np.maximum(area_a + area_b - common, 1e-9)


if __name__ == "__main__":
    raise SystemExit(main())
