from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from codetr_cli.inference.palette import FIRST, PALETTE, class_colour, class_colours, ink_on
from tests.inference.vision import SEEN_BY, oklab


@pytest.mark.parametrize("vision", SEEN_BY)
def test_colours_can_be_distinguished(vision):
    lab = oklab(PALETTE, SEEN_BY[vision])
    distances = np.linalg.norm(lab[:, None] - lab[None], axis=2) + 9 * np.eye(len(PALETTE))
    assert distances[:FIRST, :FIRST].min() > 0.06  # 0.02 is just noticeable
    assert distances.min() > 0.035


def test_a_class_has_one_colour_in_any_list():
    names = ["person", "car", "dog"]
    colours = class_colours(names)
    assert colours == class_colours(names[::-1])
    assert len(set(colours.values())) == 3
    assert colours["person"] == class_colour("person")
    assert class_colours(["person"]) == {"person": class_colour("person")}
    assert class_colours([]) == {}


def test_colours_are_those_of_earlier_versions():
    assert [PALETTE.index(class_colour(name)) for name in ("person", "car", "dog", "\u732b", "")] == [1, 6, 15, 9, 4]


@pytest.mark.parametrize("count", [2, 16, 40, 80, 1203])
def test_no_colour_is_used_again_before_all_others_are(count):
    uses = Counter(class_colours([f"class {i}" for i in range(count)]).values())
    assert sum(uses.values()) == count
    assert max(uses.values()) == -(-count // len(PALETTE))


def test_labels_contrast_with_their_background():
    def luminance(rgb):
        linear = [v / 255 / 12.92 if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in rgb]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    for colour in PALETTE:
        dark, light = sorted((luminance(colour), luminance(ink_on(colour))))
        assert (light + 0.05) / (dark + 0.05) > 4, colour
