from __future__ import annotations

import numpy as np
import pytest

from codetr_cli.images.pixels import PixelError, to_rgb

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
GREY = np.repeat(RGB[..., :1], 3, axis=2)


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (RGB, RGB),
        (np.asfortranarray(RGB), RGB),
        (RGB[..., 0], GREY),
        (RGB[..., :1], GREY),
        (RGB[..., :2], GREY),  # grey and alpha
        (np.dstack([RGB, RGB[..., 0]]), RGB),
        (RGB.astype(np.uint16) * 257, RGB),
        (RGB.astype(np.uint16) * 256 + 255, RGB),
        (RGB / 255, RGB),
        ((RGB / 255).astype(np.float32), RGB),
        (RGB > 127, np.where(RGB > 127, 255, 0)),
    ],
)
def test_one_picture_in_many_forms(pixels: np.ndarray, expected: np.ndarray) -> None:
    found = to_rgb(pixels)
    assert found.dtype == np.uint8
    assert found.flags["C_CONTIGUOUS"]
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.zeros((3, 40, 60), np.uint8), r"seems to be \(channels, H, W\)"),
        (np.zeros((40, 60, 5), np.uint8), "neither"),
        (np.zeros((1, 40, 60, 3), np.uint8), "neither"),
        (np.zeros(3, np.uint8), "neither"),
        (np.zeros((0, 60, 3), np.uint8), "no pixels"),
        (np.zeros((40, 60, 3), np.int64), "type int64"),
        (np.zeros((40, 60, 3), np.complex64), "type complex64"),
        (np.full((40, 60, 3), "a"), "type <U1"),
        (np.full((40, 60, 3), np.nan), "not finite"),
        (np.full((40, 60, 3), np.inf), "not finite"),
        (np.full((40, 60, 3), 255.0), r"in \[0, 1\], not 255 to 255"),
        (np.full((40, 60, 3), -0.1), r"in \[0, 1\], not -0.1"),
    ],
)
def test_what_is_no_picture_is_refused(pixels: np.ndarray, words: str) -> None:
    with pytest.raises(PixelError, match=words):
        to_rgb(pixels)
