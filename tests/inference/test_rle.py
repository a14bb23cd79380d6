from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from codetr_cli.inference.rle import decode_masks, encode_crop, encode_masks, resize_mask
from codetr_cli.models.postprocess import Detections
from tests.models.pasted_masks import paste_masks


def as_coco(full):
    return coco_mask.encode(np.asfortranarray(full.astype(np.uint8)))["counts"].decode()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_run_lengths_are_pycocotools_own(share):
    generator = np.random.default_rng(0)
    for _ in range(60):
        height, width = (int(side) for side in generator.integers(1, 12, 2))
        top, left = int(generator.integers(0, height)), int(generator.integers(0, width))
        shape = (int(generator.integers(0, height - top + 1)), int(generator.integers(0, width - left + 1)))
        pixels = generator.random(shape) < share
        full = np.zeros((height, width), bool)
        full[top : top + shape[0], left : left + shape[1]] = pixels
        assert encode_crop(pixels, top, left, (height, width)) == {"size": [height, width], "counts": as_coco(full)}


def test_masks_of_detections_come_back_as_they_were_pasted():
    corner = torch.rand(12, 2) * 60 - 10
    boxes = torch.cat([corner, corner + torch.rand(12, 2) * 40], 1)
    found = Detections(boxes, torch.rand(12), torch.zeros(12, dtype=torch.int64), torch.rand(12, 14, 14))
    encoded = encode_masks(found, (50, 60))
    assert json.loads(json.dumps(encoded)) == encoded
    decoded = decode_masks(encoded, (50, 60))
    assert decoded.dtype == bool
    assert np.array_equal(decoded, paste_masks(found.masks, boxes, (50, 60)).numpy())
    assert decoded.any()


def test_without_masks_or_detections_there_is_nothing():
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert encode_masks(nothing, (5, 6)) is None
    empty = Detections(nothing.boxes, nothing.scores, nothing.labels, torch.zeros(0, 28, 28))
    assert encode_masks(empty, (5, 6)) == []
    assert decode_masks([], (5, 6)).shape == (0, 5, 6)


@pytest.mark.parametrize("new_size", [(20, 30), (7, 41), (90, 60), (1, 1), (40, 30)])
def test_a_mask_is_resized_with_its_image(new_size):
    full = np.zeros((40, 60), bool)
    full[5:31, 10:50] = np.random.default_rng(0).random((26, 40)) < 0.7
    rows, columns = ((np.arange(new) * 2 + 1) * old // (2 * new) for new, old in zip(new_size, (40, 60), strict=True))
    resized = resize_mask({"size": [40, 60], "counts": as_coco(full)}, (40, 60), new_size)
    assert resized == {"size": list(new_size), "counts": as_coco(full[np.ix_(rows, columns)])}
    empty = {"size": [40, 60], "counts": as_coco(full & False)}
    assert resize_mask(empty, (40, 60), new_size)["counts"] == as_coco(np.zeros(new_size))
