from __future__ import annotations

import json
import math
from dataclasses import dataclass
from enum import Enum
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pytest

from codetr_cli.analysis.jsonable import jsonable
from codetr_cli.evaluation.scoring import ClassScore, Scores


class Kind(Enum):
    LOOSE = "loose box"


@dataclass(frozen=True)
class Inner:
    values: Any
    kind: Kind = Kind.LOOSE


@dataclass(frozen=True)
class Outer:
    inner: Inner
    delta_ap: float = -1.0
    ap: float = -1.0


def test_dataclasses_and_arrays_are_dicts_and_lists():
    value = Outer(Inner(np.array([[0.12345678, np.nan], [np.inf, -1.0]])))
    assert jsonable(value) == {
        "inner": {"values": [[0.123457, None], [None, None]], "kind": "loose box"},
        "delta_ap": -1.0,
        "ap": None,
    }


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.nan, None),
        (-math.inf, None),
        (-1.0, None),
        (np.float32(0.5), 0.5),
        (-1, -1),  # category ids may be negative
        (np.int64(-1), -1),
        (np.array([-1, 3]), [-1, 3]),
        (np.array([True, False]), [True, False]),
        (np.bool_(True), True),
        (True, True),
        (np.array(["a", "b"]), ["a", "b"]),
        (np.array([1.0, 2.5]), [1.0, 2.5]),
        (np.array(-1.0), None),
        (np.zeros((0, 4)), []),
        ((1, "a", None), [1, "a", None]),
        ({3, 1, 2}, [1, 2, 3]),
        (PurePosixPath("a/b"), "a/b"),
        ({(1, 2): "x", np.int64(5): "y", Kind.LOOSE: "z"}, {"1,2": "x", "5": "y", "loose box": "z"}),
        ({"AP change": {"a": np.array([-1.0])}}, {"AP change": {"a": [-1.0]}}),
        (-1e-9, 0.0),
        (np.array(["a", None, -1.0], object), ["a", None, None]),
    ],
)
def test_values(value, expected):
    found = jsonable(value)
    assert found == expected
    assert type(found) is type(expected)
    assert "-0.0" not in json.dumps(found, allow_nan=False)


def test_scores_of_an_evaluation():
    scores = Scores({"AP": -1.0, "AP50": 0.5}, [ClassScore("name", 1, 0, -1.0, -1.0)], 3, 0)
    found = jsonable(scores)
    assert found["metrics"] == {"AP": None, "AP50": 0.5}
    assert found["per_class"][0]["AP"] is None
    assert found["per_class"][0]["objects"] == 0


def test_other_values_are_refused():
    with pytest.raises(TypeError, match="object is no value of JSON"):
        jsonable({"a": [object()]})
