from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from codetr_cli.inference.draw_options import DrawOptions
from codetr_cli.inference.prediction import Prediction
from codetr_cli.prediction import comparison_drawing
from codetr_cli.prediction.comparison import compare
from codetr_cli.prediction.comparison_drawing import FALSE_ALARM, HIT, MISS, draw_comparison
from codetr_cli.prediction.ground_truth import ImageTruth
from tests.inference.vision import SEEN_BY, oklab


def scene(width, height):
    """A hit on the left, a miss above on the right, a false alarm below."""
    unit = np.array([width, height, width, height]) / 10
    boxes = (np.array([[1, 2, 4, 8], [6, 6, 9, 9]]) * unit).astype(np.float32)
    prediction = Prediction(boxes, np.array([0.9, 0.5]), np.array([0, 0]), np.array([1, 1]), ["a"] * 2, (height, width))
    objects = np.array([[1, 2, 4, 8], [6, 1, 9, 4]]) * unit
    everything = np.ones(1, bool)
    truth = ImageTruth(
        objects, np.zeros(2, np.int64), ["a", "a"], np.zeros(2, bool), everything, everything, (height, width)
    )
    image = np.full((height, width, 3), 128, np.uint8)
    return image, prediction, compare(boxes, prediction.scores, prediction.labels, truth)


def colours(picture):
    return {colour for colour in (HIT, MISS, FALSE_ALARM) if (picture == np.array(colour)).all(axis=2).any()}


@pytest.mark.parametrize("size", [(640, 480), (900, 500), (64, 48), (30, 400)])
def test_both_sides_have_their_colours(size):
    width, height = size
    picture = draw_comparison(*scene(width, height), DrawOptions())
    factor = max(480 // max(size), 1)
    assert picture.shape[0] > height * factor
    assert picture.shape[1] > 2 * width * factor
    panels = picture[-height * factor :]
    assert colours(panels[:, : width * factor]) == {HIT, MISS}
    assert colours(panels[:, -width * factor :]) == {HIT, FALSE_ALARM}


def test_an_overlay_has_all_of_them_in_one():
    image, prediction, comparison = scene(640, 480)
    picture = draw_comparison(image, prediction, comparison, DrawOptions(labels="none"), "overlay")
    assert picture.shape[1] == 640
    panel = picture[-480:]
    assert colours(panel) == {HIT, MISS, FALSE_ALARM}
    assert tuple(panel[200, 64]) == HIT
    assert tuple(panel[300, 384]) == FALSE_ALARM


@pytest.mark.parametrize(("crowds", "words"), [(0, "2"), (1, "1 and 1 crowd"), (2, "0 and 2 crowds")])
def test_crowds_are_counted_apart(monkeypatch, crowds, words):
    image, prediction, comparison = scene(640, 480)
    truth = replace(comparison.truth, iscrowd=np.arange(2) < crowds)
    texts = []
    monkeypatch.setattr(comparison_drawing, "draw_text", lambda bar, text, *more: texts.append(text))
    found = compare(prediction.boxes, prediction.scores, prediction.labels, truth)
    draw_comparison(image, prediction, found, DrawOptions())
    assert f"Annotated: {words}" in texts


def test_a_comparison_of_nothing():
    image, prediction, _ = scene(640, 480)
    none = np.zeros(0, np.int64)
    truth = ImageTruth(np.zeros((0, 4)), none, [], none.astype(bool), np.ones(1, bool), np.ones(1, bool), (480, 640))
    nothing = prediction[:0]
    comparison = compare(nothing.boxes, nothing.scores, nothing.labels, truth)
    assert colours(draw_comparison(image, nothing, comparison, DrawOptions())[-480:]) == set()


@pytest.mark.parametrize("vision", SEEN_BY)
def test_everybody_can_distinguish_them(vision):
    lab = oklab([HIT, MISS, FALSE_ALARM], SEEN_BY[vision])
    assert min(np.linalg.norm(lab[i] - lab[i - 1]) for i in range(3)) > 0.15
