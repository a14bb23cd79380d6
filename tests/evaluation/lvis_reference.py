"""LVIS's rules in plain Python, object by object, as a reference: slow, and independent of every scoring backend.

For each class: detections of images that neither have the class annotated nor list it as absent are ignored; the 300
best detections of an image count; each takes the free object it overlaps most from the threshold on, objects of the
asked size first; those that take none are wrong unless their size is not asked for or the class is not annotated
exhaustively in the image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
SIZES = {"": (0, 1e10), "s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e10)}


def lvis_metrics(content: dict[str, Any], records: list[dict[str, Any]], kind: str) -> dict[str, float]:
    """AP, AP50, AP75, by size and by frequency, and AR; -1 where there is no object."""
    images = {image["id"]: image for image in content["images"]}
    objects = [_prepared(entry, images[entry["image_id"]], kind, "bbox") for entry in content["annotations"]]
    detections = _best_of_each_image(
        [_prepared(record, images[record["image_id"]], kind, "score") for record in records]
    )
    curves = {
        (category["id"], size): _curves(category["id"], limits, images, objects, detections, kind)
        for category in content["categories"]
        for size, limits in SIZES.items()
    }
    frequency = {category["id"]: category["frequency"] for category in content["categories"]}

    def mean(table: int, size: str = "", rows: slice = slice(None), group: str = "rcf") -> float:
        values = [
            c[table][rows] for (i, s), c in curves.items() if c is not None and s == size and frequency[i] in group
        ]
        return float(np.mean(values)) if values else -1.0

    metrics = {"AP": mean(0), "AP50": mean(0, rows=slice(0, 1)), "AP75": mean(0, rows=slice(5, 6)), "AR300": mean(1)}
    metrics |= {f"AP{size}": mean(0, size) for size in "sml"} | {f"AR{size}": mean(1, size) for size in "sml"}
    return metrics | {f"AP{group}": mean(0, group=group) for group in "rcf"}


def _prepared(entry: dict[str, Any], image: dict[str, Any], kind: str, other: str) -> dict[str, Any]:
    """With its area and, for masks, pixels; detections of masks rank by the mask's score."""
    prepared = dict(entry)
    if kind == "segm":
        outline, (h, w) = entry["segmentation"], (image["height"], image["width"])
        rle = mask_utils.merge(mask_utils.frPyObjects(outline, h, w)) if isinstance(outline, list) else outline
        prepared["pixels"] = mask_utils.decode(rle).astype(bool)
        prepared["score"] = entry.get("mask_score")
    elif other == "score":
        prepared["score"] = entry["score"]
    if other == "score":
        prepared["area"] = prepared["pixels"].sum() if kind == "segm" else entry["bbox"][2] * entry["bbox"][3]
    return prepared


def _best_of_each_image(detections: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kept: list[dict[str, Any]] = []
    for image_id in sorted({entry["image_id"] for entry in detections}):
        mine = [entry for entry in detections if entry["image_id"] == image_id]
        kept += sorted(mine, key=lambda entry: -entry["score"])[:300]
    return kept


def _overlap(a: dict[str, Any], b: dict[str, Any], kind: str) -> float:
    if kind == "segm":
        return float((a["pixels"] & b["pixels"]).sum() / max((a["pixels"] | b["pixels"]).sum(), 1))
    (ax, ay, aw, ah), (bx, by, bw, bh) = a["bbox"], b["bbox"]
    w, h = min(ax + aw, bx + bw) - max(ax, bx), min(ay + ah, by + bh) - max(ay, by)
    common = max(w, 0.0) * max(h, 0.0)
    return common / (aw * ah + bw * bh - common)


def _curves(
    category_id: int,
    limits: tuple[float, float],
    images: dict[int, dict[str, Any]],
    objects: list[dict[str, Any]],
    detections: list[dict[str, Any]],
    kind: str,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Precision (10, 101) and recall (10,) of one class and size; None without objects."""
    total, marks = 0, []  # marks: (score, per threshold 1 right, 0 wrong, None does not count)
    for image_id in sorted(images):
        image = images[image_id]
        ground_truth = [e for e in objects if e["image_id"] == image_id and e["category_id"] == category_id]
        mine = [e for e in detections if e["image_id"] == image_id and e["category_id"] == category_id]
        if not ground_truth and category_id not in image["neg_category_ids"]:
            continue
        asked = [limits[0] <= entry["area"] <= limits[1] for entry in ground_truth]
        total += sum(asked)
        ground_truth = [e for _, e in sorted(zip(asked, ground_truth, strict=True), key=lambda pair: not pair[0])]
        asked = sorted(asked, reverse=True)
        mine = sorted(mine, key=lambda entry: -entry["score"])
        lenient = category_id in image["not_exhaustive_category_ids"]
        columns = [_match(mine, ground_truth, asked, limits, float(t), kind, lenient=lenient) for t in THRESHOLDS]
        marks += [(entry["score"], row) for entry, row in zip(mine, zip(*columns, strict=True), strict=True)]
    if not total:
        return None
    marks.sort(key=lambda mark: -mark[0])
    precision, recall = np.zeros((10, 101)), np.zeros(10)
    for index in range(10):
        rights = np.array([row[index] for _, row in marks if row[index] is not None])
        if len(rights):
            right = np.cumsum(rights)
            recalls, precisions = right / total, right / np.arange(1, len(rights) + 1)
            recall[index] = recalls[-1]
            precision[index] = [precisions[recalls >= r].max(initial=0.0) for r in RECALLS]
    return precision, recall


def _match(
    mine: list[dict[str, Any]],
    ground_truth: list[dict[str, Any]],
    asked: list[bool],
    limits: tuple[float, float],
    threshold: float,
    kind: str,
    *,
    lenient: bool,
) -> list[int | None]:
    free, marks = [True] * len(ground_truth), []
    for entry in mine:
        best, chosen = threshold, None
        for index, candidate in enumerate(ground_truth):
            if chosen is not None and asked[chosen] and not asked[index]:
                break
            if free[index] and (overlap := _overlap(entry, candidate, kind)) >= best:
                best, chosen = overlap, index
        if chosen is not None:
            free[chosen] = False
            marks.append(1 if asked[chosen] else None)
        else:
            marks.append(None if lenient or not limits[0] <= entry["area"] <= limits[1] else 0)
    return marks
