"""Values of the options that decide which detections become labels."""

from __future__ import annotations

import pytest

from codetr_cli.commands._labels import band_of, scores_of
from codetr_cli.errors import ConfigError


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (None, (0.3, {})),
        (["0.5"], (0.5, {})),
        (["person=0.5"], (0.3, {"person": 0.5})),
        (["a=b=0.25", "1e-3", "cat = 1"], (0.001, {"a=b": 0.25, "cat": 1.0})),
    ],
)
def test_scores_of_all_and_of_single_classes(texts, expected):
    assert scores_of(texts) == expected


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["2"], "from 0 to 1; 2 per cent are 0.02"),
        (["cat=40"], "40 per cent are 0.4"),
        (["nan"], "from 0 to 1"),
        (["cat="], "from 0 to 1"),
        (["=0.4"], "name the class"),
        (["0.1", "0.2"], "twice for all classes"),
        (["cat=0.1", "cat=0.2"], "twice for cat"),
    ],
)
def test_other_scores_are_refused(texts, words):
    with pytest.raises(ConfigError, match=words):
        scores_of(texts)


def test_bands_of_scores():
    assert band_of(None, "--review") is None
    assert band_of("0.2:0.5", "--review") == (0.2, 0.5)
    for text in ("0.2", "0.5:0.2", "0.3:0.3", "a:b", "0.2:1.5", ":0.5"):
        with pytest.raises(ConfigError, match=r"--review"):
            band_of(text, "--review")
