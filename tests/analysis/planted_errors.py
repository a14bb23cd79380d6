"""Label errors of known kind and place in annotations that had none, and detections of a detector as it could be."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np

KINDS = ("missing box", "wrong class", "loose box", "duplicate", "crowd", "spurious box")
Xywh = tuple[float, float, float, float]


@dataclass(frozen=True)
class Planted:
    """A label error: its image, the box of the annotation that is wrong or missing, and the ids concerned."""

    kind: str
    image_id: int
    box_xywh: Xywh
    true_boxes_xywh: tuple[Xywh, ...]
    annotation_ids: tuple[int, ...] = ()


def plant(content: dict[str, Any], share: float, seed: int = 0) -> tuple[dict[str, Any], list[Planted]]:
    """A COCO file with errors of each kind in a share of its objects, and the list of them.

    Half of the duplicates have another class. Half of the crowds are one box over two or more objects of a class that
    are near each other, the others a crowd flag on a single object.
    """
    rng = np.random.default_rng(seed)
    right, content = content["annotations"], copy.deepcopy(content)
    by_id = {entry["id"]: entry for entry in content["annotations"]}
    for entry in by_id.values():
        entry.pop("segmentation", None)
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    classes = [category["id"] for category in content["categories"]]
    count = round(share * len(by_id))
    planted: list[Planted] = []
    used: set[int] = set()
    next_id = max(by_id) + 1
    for first, others in _near_groups(list(by_id.values()), rng)[: count // 2]:
        group = [first, *others]
        boxes = tuple(tuple(entry["bbox"]) for entry in group)
        used.update(entry["id"] for entry in group)
        first["bbox"] = list(_union(boxes))
        for other in others:
            del by_id[other["id"]]
        planted.append(Planted("crowd", first["image_id"], tuple(first["bbox"]), boxes, (first["id"],)))
    free = [key for key in by_id if key not in used]
    rng.shuffle(free)
    kinds = [*("missing box", "wrong class", "loose box", "duplicate") * count, *["crowd"] * (count - count // 2)]
    for kind, key in zip(kinds, free, strict=False):
        entry = by_id[key]
        true = tuple(entry["bbox"])
        ids = (key,)
        if kind == "missing box":
            del by_id[key]
            ids = ()
        elif kind == "wrong class":
            entry["category_id"] = int(rng.choice([each for each in classes if each != entry["category_id"]]))
        elif kind == "loose box":
            entry["bbox"] = list(_loosened(true, sizes[entry["image_id"]], rng))
        elif kind == "duplicate":
            second = {**entry, "id": next_id, "bbox": list(_jittered(true, 0.02, rng))}
            if rng.random() < 0.5:
                second["category_id"] = int(rng.choice([each for each in classes if each != entry["category_id"]]))
            by_id[next_id] = second
            ids, next_id = (key, next_id), next_id + 1
        else:
            entry["iscrowd"] = 1
        planted.append(Planted(kind, entry["image_id"], tuple(entry["bbox"]), (true,), ids))
    planted += _spurious(by_id, right, sizes, count, rng)
    for entry in by_id.values():
        entry["area"] = entry["bbox"][2] * entry["bbox"][3]
    content["annotations"] = list(by_id.values())
    return content, planted


def _spurious(
    by_id: dict[int, dict[str, Any]],
    right: list[dict[str, Any]],
    sizes: dict[int, tuple[int, int]],
    count: int,
    rng: np.random.Generator,
) -> list[Planted]:
    """Adds annotations of nothing, with classes and sizes of real ones, in places that are on objects by under 10 %."""
    in_image: dict[int, list[Any]] = {image: [] for image in sizes}
    for entry in right:
        in_image[entry["image_id"]].append(entry["bbox"])
    planted: list[Planted] = []
    number = max(by_id) + 1
    while len(planted) < count:
        like, image = right[int(rng.integers(len(right)))], int(rng.choice(list(sizes)))
        w, h = like["bbox"][2:]
        x, y = rng.uniform(0, 1, 2) * (sizes[image][0] - w, sizes[image][1] - h)
        box = (float(x), float(y), float(w), float(h))
        if min(x, y) < 0 or any(_shared(box, other) >= 0.1 * w * h for other in in_image[image]):
            continue
        in_image[image].append(box)
        by_id[number] = {**like, "id": number, "image_id": image, "bbox": list(box), "iscrowd": 0}
        by_id[number].pop("segmentation", None)
        planted.append(Planted("spurious box", image, box, (), (number,)))
        number += 1
    return planted


def noisy_detections(content: dict[str, Any], seed: int = 0, *, missed: float = 0.1) -> list[dict[str, Any]]:
    """Detections of a fair detector, as COCO's records: it misses objects, confuses classes and sees things.

    Of the objects, a share is missed and a twelfth has another class; each has readings as other classes with low
    scores. Every image has some detections of nothing. Sides are off by 3 % (standard deviation).
    """
    rng = np.random.default_rng(seed)
    classes = [category["id"] for category in content["categories"]]
    records: list[dict[str, Any]] = []

    def add(image_id: int, category_id: int, box: Any, score: float) -> None:
        values = [round(float(value), 4) for value in box]
        records.append({"image_id": image_id, "category_id": category_id, "bbox": values, "score": round(score, 6)})

    for entry in content["annotations"]:
        others = [each for each in classes if each != entry["category_id"]]
        if rng.random() < missed:
            continue
        is_right = rng.random() > 1 / 12
        score = float(rng.beta(6, 2) if is_right else rng.beta(2, 3))
        label = entry["category_id"] if is_right else int(rng.choice(others))
        box = _jittered(entry["bbox"], 0.03, rng)
        add(entry["image_id"], label, box, score)
        reading = int(rng.choice([each for each in classes if each != label]))
        add(entry["image_id"], reading, _jittered(box, 0.01, rng), float(rng.beta(1, 6)) * score)
    for image in content["images"]:
        for _ in range(3):
            w, h = rng.uniform(0.1, 0.4, 2) * (image["width"], image["height"])
            x, y = rng.uniform(0, 1, 2) * (image["width"] - w, image["height"] - h)
            add(image["id"], int(rng.choice(classes)), (x, y, w, h), float(rng.beta(1.2, 6)))
    return records


def random_content(images: int = 200, classes: int = 4, seed: int = 0) -> dict[str, Any]:
    """A COCO file of boxes that overlap little, for data sets without pictures."""
    rng = np.random.default_rng(seed)
    content: dict[str, Any] = {
        "images": [
            {"id": number, "file_name": f"{number:06d}.jpg", "width": 640, "height": 480}
            for number in range(1, images + 1)
        ],
        "categories": [{"id": 10 * number, "name": f"class {number}"} for number in range(1, classes + 1)],
        "annotations": [],
    }
    for image in content["images"]:
        boxes: list[Xywh] = []
        for _ in range(int(rng.integers(1, 9))):
            w, h = rng.uniform(40, 160, 2)
            x, y = rng.uniform(0, 1, 2) * (640 - w, 480 - h)
            box = (float(x), float(y), float(w), float(h))
            if all(iou(box, other) < 0.2 for other in boxes):
                boxes.append(box)
        for box in boxes:
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": image["id"],
                    "category_id": 10 * int(rng.integers(1, classes + 1)),
                    "bbox": list(box),
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
    return content


def _near_groups(entries: list[dict[str, Any]], rng: np.random.Generator) -> list[tuple[Any, list[Any]]]:
    """Pairs of objects of a class in an image, the nearest ones of their image first, in random order of images."""
    by_image: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for entry in entries:
        by_image.setdefault((entry["image_id"], entry["category_id"]), []).append(entry)
    pairs = []
    for group in by_image.values():
        if len(group) < 2:
            continue
        options = [(a, b) for index, a in enumerate(group) for b in group[index + 1 :]]
        a, b = min(options, key=lambda pair: _area(_union([pair[0]["bbox"], pair[1]["bbox"]])))
        spread = _area(_union([a["bbox"], b["bbox"]])) / (_area(a["bbox"]) + _area(b["bbox"]))
        if spread < 3:
            pairs.append((a, [b]))
    rng.shuffle(pairs)
    return pairs


def _area(box: Any) -> float:
    return float(box[2] * box[3])


def _union(boxes: Any) -> Xywh:
    array = np.array(boxes, float)
    x, y = array[:, :2].min(0)
    right, bottom = (array[:, :2] + array[:, 2:]).max(0)
    return float(x), float(y), float(right - x), float(bottom - y)


def _loosened(box: Xywh, size: tuple[int, int], rng: np.random.Generator) -> Xywh:
    """A box that grew, shrank or was shifted until its IoU with the true one is between 0.5 and 0.72."""
    for _ in range(1000):
        x, y, w, h = box
        left, top, right, bottom = rng.uniform(-0.35, 0.35, 4)
        x1, y1 = max(x + left * w, 0.0), max(y + top * h, 0.0)
        x2, y2 = min(x + w + right * w, size[0]), min(y + h + bottom * h, size[1])
        loose = (x1, y1, x2 - x1, y2 - y1)
        if 0.5 <= iou(box, loose) <= 0.72:
            return tuple(float(value) for value in loose)  # type: ignore[return-value]
    raise AssertionError(box)


def _jittered(box: Any, amount: float, rng: np.random.Generator) -> Xywh:
    x, y, w, h = box
    dx, dy, dw, dh = rng.normal(0, amount, 4) * (w, h, w, h)
    return float(x + dx), float(y + dy), float(max(w + dw, 1)), float(max(h + dh, 1))


def iou(a: Any, b: Any) -> float:
    """IoU of two boxes (x, y, width, height)."""
    both = _shared(a, b)
    return both / (_area(a) + _area(b) - both) if both else 0.0


def _shared(a: Any, b: Any) -> float:
    """Area that two boxes share."""
    across = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    down = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(across, 0.0) * max(down, 0.0)
