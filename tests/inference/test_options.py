from __future__ import annotations

import pytest

from codetr_cli.errors import ConfigError
from codetr_cli.inference.options import MIN_TILE, DetectOptions, TileOptions


@pytest.mark.parametrize(
    ("text", "size"), [("auto", None), ("640", (640, 640)), ("800x600", (800, 600)), (f"{MIN_TILE}", (MIN_TILE,) * 2)]
)
def test_sizes_of_tiles(text: str, size: tuple[int, int] | None):
    assert TileOptions.parse(text, 0.1) == TileOptions(size=size, overlap=0.1)


@pytest.mark.parametrize(
    "text", ["", "0", "31", "640x", "x640", "640x31", "-640", "1e3", "640X480", "9999999999", "٦٤٠"]
)
def test_what_is_no_size_of_tiles(text: str):
    with pytest.raises(ConfigError):
        TileOptions.parse(text)


@pytest.mark.parametrize("overlap", [-0.1, 0.91, float("nan"), float("inf")])
def test_overlaps_that_are_not_allowed(overlap: float):
    with pytest.raises(ConfigError, match=r"from 0 to 0\.9"):
        TileOptions(overlap=overlap)


def test_the_lowest_score_of_any_class():
    options = DetectOptions(score=0.5, class_scores={"bar": 0.2, "disc": 0.7})
    assert options.lowest_score == 0.2
    assert options.scores_of(["bar", "ring", "disc"]) == [0.2, 0.5, 0.7]
    options.check_classes(["bar", "ring", "disc"])
    with pytest.raises(ConfigError, match="no class 'bar'"):
        options.check_classes(["bear", "disc"])
