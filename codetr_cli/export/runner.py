#!/usr/bin/env python3
# Copyright (c) the codetr authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0. Unless required by
# applicable law or agreed to in writing, software distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
"""Detects objects with an ONNX file of `codetr export`, without PyTorch: this one file, to copy into other programs.

    pip install onnxruntime numpy opencv-python-headless     # or pillow instead of opencv-python-headless
    python runner.py model.onnx image.jpg ... --score 0.5

In a program:

    runner = Runner("model.onnx")
    for detection in runner.detect(load_image("image.jpg"), score=0.5):
        print(detection["class_name"], detection["score"], detection["box"])     # x1, y1, x2, y2 in pixels
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

try:
    import cv2
except ImportError:
    cv2 = None  # type: ignore[assignment]  # Pillow reads the images, and NumPy resizes them to the same pixels

GREY = 114
"""Of the padding of a canvas."""


class Runner:
    """An ONNX file and what it says of itself.

    Args:
        path: of the file.
        providers: execution providers of ONNX Runtime, e.g. ["CUDAExecutionProvider"].
    """

    def __init__(self, path: str, providers: list[str] | None = None) -> None:
        self.session = onnxruntime.InferenceSession(path, providers=providers or ["CPUExecutionProvider"])
        text = self.session.get_modelmeta().custom_metadata_map.get("codetr")
        if text is None:
            raise ValueError(f"{path} was not written by `codetr export`")
        metadata = json.loads(text)
        if metadata["format"] != "codetr-export-1":
            raise ValueError(f"{path} has metadata of format {metadata['format']!r}: a newer runner reads them")
        self.input, self.output = metadata["input"], metadata["output"]
        self.class_names, self.category_ids = metadata["class_names"], metadata["category_ids"]
        self.names = [output.name for output in self.session.get_outputs()]

    def detect(self, image: np.ndarray, score: float = 0.3) -> list[dict[str, Any]]:
        """The objects in an image (H, W, 3), uint8 RGB, best first.

        Returns:
            dicts of box (x1, y1, x2, y2 in pixels), score, label, class_name, category_id, and of networks with masks
            mask (bool, H, W) and mask_score.
        """
        resized = self.resize(image)
        height, width = resized.shape[:2]
        batch = self.input["batch"] or 1
        images = np.repeat(self.pad(resized)[None], batch, 0)
        sizes = np.array([[height, width]] * batch, np.int64)
        outputs = dict(zip(self.names, self.session.run(None, {"images": images, "image_sizes": sizes}), strict=True))
        found = {name: value[0] for name, value in outputs.items()}
        if not self.output["detections"]:
            found = best_queries(found["logits"], found["boxes"], height, width, self.output["candidates"])
        found = {name: value[: self.output["candidates"]] for name, value in found.items()}
        scale = self.scale(image, resized)
        found["boxes"] = found["boxes"].astype(np.float32) / np.array(scale * 2, np.float32)
        keep, scores = suppress(found["boxes"], found["scores"], found["labels"], self.output)
        detections = []
        for index, value in zip(keep, scores, strict=True):
            if value < score:
                continue
            label, box = int(found["labels"][index]), found["boxes"][index]
            detection = {
                "box": [float(side) for side in box],
                "score": float(value),
                "label": label,
                "class_name": self.class_names[label],
                "category_id": self.category_ids[label],
            }
            if "masks" in found:
                detection["mask"] = paste(found["masks"][index], box, image.shape[:2])
                detection["mask_score"] = float(value * found["mask_ious"][index])
            detections.append(detection)
        return detections

    def new_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of an image of `size` in the input, before it is padded."""
        rule = self.input
        limits = (rule["canvas"],) * 2 if rule["canvas"] else (rule["short_side"], rule["long_side"])
        factor = min(max(limits) / max(size), min(limits) / min(size))
        new = tuple(max(1, int(side * factor + 0.5)) for side in size)
        frame = (rule["height"], rule["width"])
        if rule["canvas"] is None and frame[0] is not None and (new[0] > frame[0] or new[1] > frame[1]):
            factor = min(frame[0] / size[0], frame[1] / size[1])
            new = tuple(min(most, max(1, int(side * factor + 0.5))) for side, most in zip(size, frame, strict=True))
        return new[0], new[1]

    def resize(self, image: np.ndarray) -> np.ndarray:
        """The image as the network sees it; on a canvas with the grey around it, which is part of the image."""
        resized = resize_bilinear(image, *self.new_size((image.shape[0], image.shape[1])))
        side = self.input["canvas"]
        if side is None:
            return resized
        canvas = np.full((side, side, 3), GREY, np.uint8)
        canvas[: resized.shape[0], : resized.shape[1]] = resized
        return canvas

    def scale(self, image: np.ndarray, resized: np.ndarray) -> tuple[float, float]:
        """(width, height) factors of the resize."""
        height, width = self.new_size((image.shape[0], image.shape[1]))
        return width / image.shape[1], height / image.shape[0]

    def pad(self, image: np.ndarray) -> np.ndarray:
        """The input: uint8 (H, W, 3), or float32 (3, H, W), normalised, with zeros in the padding."""
        rule, (height, width) = self.input, image.shape[:2]
        padded_height = rule["height"] or -(-height // rule["divisor"]) * rule["divisor"]
        padded_width = rule["width"] or -(-width // rule["divisor"]) * rule["divisor"]
        if not rule["pixels"]:
            image = (image.astype(np.float32) - np.float32(rule["mean"])) / np.float32(rule["std"])
        padded = np.zeros((padded_height, padded_width, 3), image.dtype)
        padded[:height, :width] = image
        return padded if rule["pixels"] else np.ascontiguousarray(padded.transpose(2, 0, 1))


def best_queries(logits: np.ndarray, boxes: np.ndarray, height: int, width: int, count: int) -> dict[str, np.ndarray]:
    """The best scores over queries and classes, and their boxes as corners in pixels of the valid input."""
    scores = (1 / (1 + np.exp(-logits.astype(np.float32)))).ravel()
    best = np.argsort(-scores, kind="stable")[:count]
    centre, sides = np.split(boxes.astype(np.float32)[best // logits.shape[1]], 2, 1)
    limits = np.array([width, height] * 2, np.float32)
    corners = np.concatenate([centre - sides / 2, centre + sides / 2], 1) * limits
    return {"boxes": np.clip(corners, 0, limits), "scores": scores[best], "labels": best % logits.shape[1]}


def suppress(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, rule: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the kept boxes and their scores, best first; overlaps count within a class."""
    most, soft = rule["max_detections"], rule["nms"] == "soft"
    scores = scores.astype(np.float32).copy()
    if rule["nms"] == "none" or not len(boxes):
        return np.arange(len(boxes))[:most], scores[:most]
    shifted = boxes + (labels * (boxes.max() + np.float32(1)))[:, None].astype(np.float32)  # classes never overlap
    areas = (shifted[:, 2] - shifted[:, 0]) * (shifted[:, 3] - shifted[:, 1])
    waiting = np.ones(len(boxes), bool)
    kept: list[int] = []
    while waiting.any() and len(kept) < most:
        best = int(np.argmax(np.where(waiting, scores, -1)))
        waiting[best] = False
        kept.append(best)
        sides = np.minimum(shifted[:, 2:], shifted[best, 2:]) - np.maximum(shifted[:, :2], shifted[best, :2])
        overlap = np.prod(np.maximum(sides, 0), 1)
        iou = overlap / np.maximum(areas + areas[best] - overlap, np.float32(1e-12))
        if soft:
            scores[waiting] *= np.where(iou >= rule["nms_iou"], 1 - iou, 1)[waiting].astype(np.float32)
            waiting &= scores >= rule["nms_min_score"]
        else:
            waiting &= iou <= rule["nms_iou"]
    return np.array(kept), scores[kept]


def resize_bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes like OpenCV's INTER_LINEAR on uint8, to the same pixels with and without OpenCV."""
    if cv2 is not None:
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    old_height, old_width = image.shape[:2]
    if (old_height, old_width) == (2 * height, 2 * width):  # OpenCV averages then
        total = image.reshape(height, 2, width, 2, 3).sum((1, 3), dtype=np.int32)
        return ((total + 2) >> 2).astype(np.uint8)
    columns, right, weights_x = _taps(old_width, width, inside=True)
    rows, below, weights_y = _taps(old_height, height, inside=False)
    pixels = image.astype(np.int32)
    lines = pixels[:, columns] * weights_x[0][None, :, None] + pixels[:, right] * weights_x[1][None, :, None]
    upper = (weights_y[0][:, None, None] * (lines[rows] >> 4)) >> 16
    lower = (weights_y[1][:, None, None] * (lines[below] >> 4)) >> 16
    return np.clip((upper + lower + 2) >> 2, 0, 255).astype(np.uint8)


def _taps(old: int, new: int, *, inside: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two pixels that each new one is between, and their weights in 1/2048."""
    position = ((np.arange(new) + 0.5) * (1 / (new / old)) - 0.5).astype(np.float32)
    first = np.floor(position).astype(np.int64)
    share = position - first.astype(np.float32)
    if inside:
        share = np.where((first < 0) | (first >= old - 1), np.float32(0), share)
    weights = np.rint(np.stack([1 - share, share]) * np.float32(2048)).astype(np.int32)
    return np.clip(first, 0, old - 1), np.clip(first + 1, 0, old - 1), weights


def paste(mask: np.ndarray, box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask (M, M) of a box as bool (height, width): bilinear between the centres of its cells, from 0.5 on."""
    weights = []
    for low, high, limit in ((box[1], box[3], size[0]), (box[0], box[2], size[1])):
        place = (np.arange(limit) + 0.5 - low) / max(high - low, 1e-6) * len(mask) - 0.5
        weights.append(np.maximum(0, 1 - np.abs(place[:, None] - np.arange(len(mask)))))
    return weights[0] @ mask @ weights[1].T >= 0.5


def load_image(path: str) -> np.ndarray:
    """An image file as uint8 RGB (H, W, 3), rotated as its EXIF data say."""
    if cv2 is not None:
        # cv2.imread takes no names with other letters than ASCII on Windows.
        content = np.frombuffer(Path(path).read_bytes(), np.uint8)
        image = cv2.imdecode(content, cv2.IMREAD_COLOR) if content.size else None
        if image is None:
            raise ValueError(f"{path} cannot be read as an image")
        return np.ascontiguousarray(image[:, :, ::-1])
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))


def main() -> None:
    """The command line: one JSON list on stdout, a dict of file and detections for each image."""
    parser = argparse.ArgumentParser(description="Detect objects with an ONNX file of `codetr export`.")
    parser.add_argument("model")
    parser.add_argument("images", nargs="+")
    parser.add_argument("--score", type=float, default=0.3)
    given = parser.parse_args()
    runner, results = Runner(given.model), []
    for path in given.images:
        try:
            image = load_image(path)
        except (OSError, ValueError) as error:
            sys.exit(f"error: {error}")
        detections = runner.detect(image, given.score)
        for detection in detections:
            detection.pop("mask", None)
        results.append({"file": path, "detections": detections})
    json.dump(results, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
