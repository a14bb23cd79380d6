from __future__ import annotations

import cv2
import numpy as np
import pytest

from codetr_cli.annotations.masks import Masks
from tests.data.fakes import bitmaps

SIZE = (60, 80)


def test_nearest_resizes_equal_opencv() -> None:
    generator = np.random.default_rng(2)
    for _ in range(60):
        old, new = ((int(h), int(w)) for h, w in generator.integers(1, 400, (2, 2)))
        masks = bitmaps(3, old, seed=int(generator.integers(1000)))
        ours = Masks.from_array(masks).resized(new).array()
        expected = [cv2.resize(mask, new[::-1], interpolation=cv2.INTER_NEAREST) for mask in masks]
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("look_between", [False, True])
def test_steps_equal_those_on_whole_arrays(look_between: bool) -> None:
    generator = np.random.default_rng(3)
    for _ in range(30):
        arrays = bitmaps(5, SIZE, seed=int(generator.integers(1000)))
        masks = Masks.from_array(arrays)
        for step in generator.permutation(5):
            h, w = arrays.shape[1:]
            if step == 0:
                new = (int(generator.integers(10, 200)), int(generator.integers(10, 200)))
                arrays = np.stack([cv2.resize(m, new[::-1], interpolation=cv2.INTER_NEAREST) for m in arrays])
                masks = masks.resized(new)
            elif step == 1:
                top, left = int(generator.integers(h)), int(generator.integers(w))
                arrays = arrays[:, top : top + 40, left : left + 50]
                masks = masks.cropped(top, left, *arrays.shape[1:])
            elif step == 2:
                arrays, masks = arrays[:, :, ::-1], masks.flipped()
            elif step == 3:
                arrays, masks = np.pad(arrays, ((0, 0), (0, 7), (0, 3))), masks.padded((h + 7, w + 3))
            else:
                keep = generator.random(len(arrays)) < 0.8
                arrays, masks = arrays[keep], masks.select(keep)
            if look_between:
                np.testing.assert_array_equal(masks.areas(), arrays.sum(axis=(1, 2)))
        np.testing.assert_array_equal(masks.array(), arrays)
        np.testing.assert_array_equal(masks.union(), arrays.any(axis=0))
        for box, array in zip(masks.tight_boxes(), arrays, strict=True):
            ys, xs = np.nonzero(array)
            expected = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] if len(xs) else [0, 0, 0, 0]
            assert box.tolist() == expected


def test_covered_pixels_are_taken_away_and_objects_joined() -> None:
    arrays, others = bitmaps(4), bitmaps(3, seed=9)
    covered = bitmaps(2, seed=5)[0]
    masks = Masks.from_array(arrays)
    np.testing.assert_array_equal(masks.without(covered).array(), arrays * (1 - covered))
    np.testing.assert_array_equal(masks.array(), arrays)
    joined = masks.joined(Masks.from_array(others))
    np.testing.assert_array_equal(joined.array((70, 90))[:, :60, :80], np.concatenate([arrays, others]))
    assert len(masks.select(np.array([3, 0]))) == 2
    np.testing.assert_array_equal(masks.select(np.array([2, 0])).array(), arrays[[2, 0]])


def test_no_objects_have_no_masks() -> None:
    none = Masks([], SIZE)
    assert none.resized((10, 20)).padded((30, 30)).array().shape == (0, 30, 30)
    assert none.tight_boxes().shape == (0, 4)
    assert none.areas().shape == (0,)
    assert not none.union().any()
