"""Detections as columns and as objects; no network is needed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from codetr_cli.errors import ArgumentError
from codetr_cli.inference.prediction import Detection, Prediction
from codetr_cli.inference.rle import encode_crop

SIZE = (40, 60)


@pytest.fixture
def found() -> Prediction:
    bitmap = np.ones((4, 5), np.uint8)
    return Prediction(
        boxes=np.array([[1, 2, 6, 6], [10, 10, 20, 30], [0, 0, 60, 40]], np.float32),
        scores=np.array([0.9, 0.5, 0.25], np.float32),
        labels=np.array([1, 0, 1]),
        category_ids=np.array([7, 3, 7]),
        class_names=["ring", "bar", "ring"],
        image_size=SIZE,
        masks=[encode_crop(bitmap, 2 * row, 3 * row, SIZE) for row in range(3)],
        mask_scores=np.array([0.8, 0.4, 0.2], np.float32),
    )


def test_objects_are_the_rows(found):
    assert [item.class_name for item in found] == found.class_names
    second = found[1]
    assert isinstance(second, Detection)
    assert (second.box, second.score, second.label, second.category_id) == ((10.0, 10.0, 20.0, 30.0), 0.5, 0, 3)
    assert second.mask == found.masks[1]
    assert second.mask_score == pytest.approx(0.4)
    assert found[-1] == found[2] == found[np.int64(2)]


@pytest.mark.parametrize(
    "rows",
    [
        [0, 2],
        np.array([0, 2]),
        torch.tensor([0, 2]),
        np.array([True, False, True]),
        slice(None, None, 2),
    ],
    ids=["list", "array", "tensor", "booleans", "slice"],
)
def test_every_column_follows_the_rows(found, rows):
    chosen = found[rows]
    assert (len(chosen), chosen.class_names, chosen.image_size) == (2, ["ring", "ring"], SIZE)
    assert chosen.boxes.tolist() == found.boxes[[0, 2]].tolist()
    assert chosen.masks == [found.masks[0], found.masks[2]]
    assert chosen.mask_scores.tolist() == found.mask_scores[[0, 2]].tolist()


def test_no_rows(found):
    for nothing in (found[[]], found[:0], found[found.scores > 1]):
        assert len(nothing) == 0
        assert nothing.boxes.shape == (0, 4)
        assert nothing.bitmaps().shape == (0, *SIZE)


@pytest.mark.parametrize("rows", [True, np.True_, "0", 1.0, [0.5], np.zeros((1, 1), int), np.array(True)])
def test_what_chooses_no_rows_is_an_error(found, rows):
    with pytest.raises(TypeError):
        found[rows]


def test_a_row_that_is_not_there(found):
    with pytest.raises(IndexError, match="there is no detection 3: there are 3"):
        found[3]


def test_masks_as_pixels(found):
    bitmaps = found.bitmaps()
    assert (bitmaps.dtype, bitmaps.shape) == (bool, (3, *SIZE))
    assert bitmaps.sum(axis=(1, 2)).tolist() == [20, 20, 20]


def test_records_in_the_format_of_coco(found):
    records = found.to_coco(9)
    assert [record["image_id"] for record in records] == [9, 9, 9]
    assert records[0]["bbox"] == [1.0, 2.0, 5.0, 4.0]
    assert [record["category_id"] for record in records] == [7, 3, 7]
    with pytest.raises(ValueError, match="image_id='9'"):
        found.to_coco("9")


def test_another_image_is_not_drawn_on(found):
    with pytest.raises(ValueError, match="60 x 40"):
        found.draw(np.zeros((30, 60, 3), np.uint8))


def test_detections_of_an_image_at_another_size(found):
    smaller = found.resized((20, 30))
    assert smaller.image_size == (20, 30)
    assert smaller.boxes.tolist() == (found.boxes / 2).tolist()
    assert smaller.bitmaps().shape == (3, 20, 30)
    assert found.resized(np.array([80, 120])).image_size == (80, 120)


@pytest.mark.parametrize("size", [(0, 10), (10.5, 10), (10,), (10, 10, 3), 10, "ab", None, (True, 10)])
def test_what_is_no_size_of_an_image(found, size):
    with pytest.raises(ArgumentError, match=r"size=.*it is .height, width. in whole pixels from 1"):
        found.resized(size)
