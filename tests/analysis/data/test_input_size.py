"""Factors of images: equal to what the transforms of test images and tiles do, for every kind of input."""

from __future__ import annotations

import numpy as np
import pytest

from codetr_cli.analysis.data.input_size import NetworkLimits, input_scales, tiled_scales
from codetr_cli.config.overrides import apply_overrides
from codetr_cli.config.schema import Settings
from codetr_cli.data.transforms import resized_size
from codetr_cli.inference.options import TileOptions
from codetr_cli.inference.tiling import Tiling

INPUTS = {
    "sides": [],
    "canvas": ["test.canvas=1024"],
    "one size": ["test.fixed_size=[512,768]"],
    "one size, smaller sides": ["test.fixed_size=[512,768]", "test.short_side=256", "test.long_side=400"],
    "square": ["test.short_side=256", "test.long_side=256"],
}


def sizes() -> np.ndarray:
    random = np.random.default_rng(3)
    return np.concatenate([random.integers(1, 5000, (300, 2)), [[800, 1333], [1333, 800], [1000, 1666], [1001, 1667]]])


@pytest.mark.parametrize("overrides", INPUTS.values(), ids=INPUTS)
def test_factors_are_those_of_the_transforms(overrides: list[str]) -> None:
    test = apply_overrides(Settings(name="test"), overrides).test
    found = input_scales(sizes(), test)
    for size, scale in zip(sizes().tolist(), found.tolist(), strict=True):
        height, width = resized_size((size[0], size[1]), test)
        assert abs(height - size[0] * scale) <= 1
        assert abs(width - size[1] * scale) <= 1


@pytest.mark.parametrize("overrides", INPUTS.values(), ids=INPUTS)
def test_images_are_cut_as_the_detector_cuts_them(overrides: list[str]) -> None:
    settings = apply_overrides(Settings(name="test"), overrides)
    tiling = Tiling(options=TileOptions(), test=settings.test, data=settings.data)
    scales, is_cut = tiled_scales(sizes(), settings.test)
    whole = input_scales(sizes(), settings.test)
    assert 0 < is_cut.sum() < len(is_cut)
    for row, size in enumerate(sizes().tolist()):
        tiles = tiling.tiles((size[0], size[1]))
        assert bool(tiles) == is_cut[row], size
        expected = whole[row]
        if tiles:
            tile = (tiles[0].height, tiles[0].width)
            expected = max(expected, input_scales(np.array([tile]), settings.test)[0])
        assert scales[row] == pytest.approx(expected)


def test_images_without_pixels_have_no_factor() -> None:
    test = Settings(name="test").test
    assert np.isnan(input_scales(np.array([[0, 10], [0, 0]]), test)).all()
    assert len(input_scales(np.zeros((0, 2), np.int64), test)) == 0


def test_another_size_of_the_input_can_be_set() -> None:
    for overrides, key, value in (
        ([], "test.long_side", "1984"),
        (["test.canvas=1024"], "test.canvas", "1536"),
        (["test.fixed_size=[512,768]"], "test.fixed_size", "[768,1152]"),
        (["data.augmentation=lsj", "data.canvas=640"], "data.canvas", "960"),
    ):
        words = NetworkLimits.of(apply_overrides(Settings(name="test"), overrides)).enlarged(1.5).settings_words()
        given = dict(word.split("=", 1) for word in words.split() if word != "--set")
        assert given[key] == value
        apply_overrides(Settings(name="test"), [*overrides, *(f"{k}={v}" for k, v in given.items())])
