"""Files of detections as different tools write them, all with the same content: a box of a cat and one of a dog."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from codetr_cli.annotations.objects import Annotations, read_annotations

BOXES = {11: [10.0, 20.0, 40.0, 30.0], 12: [5.0, 6.0, 50.0, 60.0]}
"""By image id, (x, y, width, height)."""
NAMES = {11: "street/000007.jpg", 12: "park/img_b.png"}
CLASSES = {1: "Cat", 3: "traffic light"}
OF_IMAGE = {11: 3, 12: 1}
"""Category ids."""


def ground_truth(path: Path) -> Annotations:
    """Annotations that the detections below fit perfectly, written to a file."""
    images = [{"id": i, "file_name": name, "width": 160, "height": 120} for i, name in NAMES.items()]
    objects = [
        {"id": number, "image_id": image_id, "category_id": OF_IMAGE[image_id], "bbox": box, "iscrowd": 0}
        for number, (image_id, box) in enumerate(BOXES.items(), 1)
    ]
    categories = [{"id": i, "name": name} for i, name in CLASSES.items()]
    path.write_text(json.dumps({"images": images, "annotations": objects, "categories": categories}))
    return read_annotations(path)


def records() -> list[dict[str, Any]]:
    """COCO's result format."""
    return [{"image_id": i, "category_id": OF_IMAGE[i], "bbox": box, "score": 0.5} for i, box in BOXES.items()]


def _corners(box: list[float]) -> list[float]:
    x, y, w, h = box
    return [x, y, x + w, y + h]


def _outline(x: float, y: float, w: float, h: float) -> list[list[float]]:
    return [[x, y, x, y + h, x + w, y + h, x + w, y]]


def _changed(*gone: str, **changes: Callable[[dict[str, Any]], Any]) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in record.items() if key not in gone}
        | {key: change(record) for key, change in changes.items()}
        for record in records()
    ]


def _supervision() -> list[dict[str, Any]]:
    keys = ("x_min", "y_min", "x_max", "y_max")
    return [
        {
            **dict(zip(keys, _corners(BOXES[i]), strict=True)),
            "class_id": CLASSES_IN_ORDER.index(OF_IMAGE[i]),
            "confidence": 0.5,
            "tracker_id": "",
            "class_name": CLASSES[OF_IMAGE[i]],
            "file_name": name,
        }
        for i, name in NAMES.items()
    ]


CLASSES_IN_ORDER = list(CLASSES)


def _per_image(key: str) -> list[dict[str, Any]]:
    return [
        {
            "image": name,
            key: [{"class": CLASSES[OF_IMAGE[i]], "confidence": 0.5, "bbox": BOXES[i], "class_id": 0}],
        }
        for i, name in NAMES.items()
    ]


def _columns(boxes: str) -> list[dict[str, Any]]:
    return [
        {"file_name": name, boxes: [_corners(BOXES[i])], "scores": [0.5], "labels": [OF_IMAGE[i]]}
        for i, name in NAMES.items()
    ]


def _roboflow() -> list[dict[str, Any]]:
    found = []
    for i, (x, y, w, h) in BOXES.items():
        name = CLASSES[OF_IMAGE[i]]
        part = {
            "x": x + w / 2,
            "y": y + h / 2,
            "width": w,
            "height": h,
            "confidence": 0.5,
            "class": name,
            "class_id": 0,
        }
        found.append({"image": NAMES[i], "predictions": [part]})
    return found


def _ultralytics(*, with_names: bool) -> list[dict[str, Any]]:
    ids: dict[int, int | str] = {11: 7, 12: "img_b"}  # int(stem) where the stem is numeric
    found = _changed(image_id=lambda r: ids[r["image_id"]])
    if with_names:
        found = [{**record, "file_name": Path(NAMES[i]).name} for record, i in zip(found, NAMES, strict=True)]
    return found


def _lines(values: list[Any]) -> str:
    return "\n".join(map(json.dumps, values)) + "\n"


VALUES: dict[str, Callable[[], Any]] = {
    "pycocotools": records,
    "pycocotools loadRes": lambda: [
        {**record, "segmentation": _outline(*record["bbox"]), "area": 1, "id": number, "iscrowd": 0}
        for number, record in enumerate(records(), 1)
    ],
    "Detectron2": lambda: _changed(bbox_mode=lambda r: 1),
    "Detectron2, corners": lambda: _changed(bbox_mode=lambda r: 0, bbox=lambda r: _corners(r["bbox"])),
    "MMDetection": lambda: _changed(segmentation=lambda r: None),
    "Ultralytics": lambda: _ultralytics(with_names=False),
    "Ultralytics, newer": lambda: _ultralytics(with_names=True),
    "Ultralytics' to_json": lambda: [
        {
            "file_name": NAMES[i],
            "name": CLASSES[OF_IMAGE[i]],
            "class": CLASSES_IN_ORDER.index(OF_IMAGE[i]),
            "confidence": 0.5,
            "box": dict(zip(("x1", "y1", "x2", "y2"), _corners(box), strict=True)),
        }
        for i, box in BOXES.items()
    ],
    "supervision": _supervision,
    "supervision, all as text": lambda: [{key: str(value) for key, value in each.items()} for each in _supervision()],
    "Roboflow": _roboflow,
    "codetr predict": lambda: _changed(
        image_id=lambda r: r["image_id"] % 10 + 100,
        file_name=lambda r: NAMES[r["image_id"]],
        category_name=lambda r: CLASSES[r["category_id"]],
    ),
    "COCO's tables": lambda: {
        "images": [{"id": i, "file_name": NAMES[i + 11]} for i in (0, 1)],
        "annotations": _changed(image_id=lambda r: r["image_id"] - 11, category_id=lambda r: r["category_id"] + 5),
        "categories": [{"id": i + 5, "name": name} for i, name in CLASSES.items()],
    },
    "annotations": lambda: {"annotations": records()},
    "predictions": lambda: {"predictions": records(), "info": {}},
    "detections": lambda: {"detections": records(), "annotations": []},
    "detections of images": lambda: {"detections": _per_image("detections")},
    "images with annotations": lambda: _per_image("annotations"),
    "by name": lambda: {name: [record] for name, record in zip(NAMES.values(), records(), strict=True)},
    "transformers": lambda: _columns("boxes"),
    "MMDetection's inferencer": lambda: _columns("bboxes"),
    "transformers' pipeline": lambda: [
        {
            "file_name": NAMES[i],
            "label": CLASSES[OF_IMAGE[i]],
            "score": 0.5,
            "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), _corners(box), strict=True)),
        }
        for i, box in BOXES.items()
    ],
    "whole floats": lambda: _changed(
        image_id=lambda r: float(r["image_id"]), category_id=lambda r: 1.0 * r["category_id"]
    ),
    "ids as text": lambda: _changed(
        image_id=lambda r: str(r["image_id"]), category_id=lambda r: str(r["category_id"]), score=lambda r: "0.5"
    ),
    "stems": lambda: _changed(image_id=lambda r: Path(NAMES[r["image_id"]]).stem),
    "names": lambda: _changed(image_id=lambda r: Path(NAMES[r["image_id"]]).name),
    "paths": lambda: _changed(image_id=lambda r: f"C:\\data\\val\\{NAMES[r['image_id']]}".replace("/", "\\")),
    "names with other suffixes": lambda: _changed(image_id=lambda r: f"{Path(NAMES[r['image_id']]).stem}.PNG"),
    "only file names": lambda: _changed("image_id", file_name=lambda r: NAMES[r["image_id"]]),
    "class names": lambda: _changed("category_id", category_name=lambda r: CLASSES[r["category_id"]]),
    "class names as ids": lambda: _changed(category_id=lambda r: CLASSES[r["category_id"]]),
    "other spelling of classes": lambda: _changed(
        category_id=lambda r: CLASSES[r["category_id"]].upper().replace(" ", "_")
    ),
    "classes under category": lambda: _changed("category_id", category=lambda r: CLASSES[r["category_id"]]),
    "labels": lambda: _changed("category_id", label=lambda r: CLASSES[r["category_id"]]),
    "whole floats as text": lambda: _changed(image_id=lambda r: f"{r['image_id']}.0"),
    "ids in lists": lambda: _changed(image_id=lambda r: [r["image_id"]]),
    "objects as categories": lambda: _changed(
        "category_id", category=lambda r: {"id": r["category_id"], "name": CLASSES[r["category_id"]]}
    ),
    "boxes as text": lambda: _changed(bbox=lambda r: str(r["bbox"])),
    "names of modes": lambda: _changed(bbox_mode=lambda r: "BoxMode.XYXY_ABS", bbox=lambda r: _corners(r["bbox"])),
    "Detectron2's instances": lambda: [
        {"image_id": i, "pred_boxes": [_corners(box)], "scores": [0.5], "pred_classes": [OF_IMAGE[i]]}
        for i, box in BOXES.items()
    ],
    "confidence": lambda: _changed("score", confidence=lambda r: r["score"]),
}
TEXTS: dict[str, Callable[[], bytes]] = {
    **{name: lambda make=make: json.dumps(make()).encode() for name, make in VALUES.items()},  # type: ignore[misc]
    "lines": lambda: _lines(records()).encode(),
    "lines of images": lambda: _lines(_columns("boxes")).encode(),
    "lines of lists": lambda: _lines([[record] for record in records()]).encode(),
    "lines with blank ones": lambda: _lines(records()).replace("\n", "\r\n\r\n").encode(),
    "lines with a mark": lambda: b"\xef\xbb\xbf" + _lines(records()).encode(),
    "UTF-16": lambda: json.dumps(records()).encode("utf-16"),
    "lines in UTF-16": lambda: _lines(records()).encode("utf-16"),
    "a byte order mark": lambda: b"\xef\xbb\xbf" + json.dumps(records()).encode(),
}
"""The content of a file by its writer or its form."""
