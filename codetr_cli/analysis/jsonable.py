"""Values of analyses as values of JSON: what is undefined becomes null, numbers get a readable length."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np

DIGITS = 6
"""Of floating-point numbers, after the point."""
UNDEFINED = -1.0
"""COCO's number for an AP or AR where there is no object to find."""
DIFFERENCES = ("delta", "difference", "change")
"""In the names of values that may well be -1.0, and of what contains them."""


def jsonable(value: Any, *, keep_minus_one: bool = False) -> Any:
    """A value as dicts, lists, text, numbers, bools and None only.

    Dataclasses become dicts by the names of their fields, arrays become nested lists, keys become text (those of
    several parts with commas between them), sets are sorted. NaN and infinities become null, as does the floating-point
    number -1.0, by which COCO means that there is nothing to measure; integers and differences, under names such as
    `delta_ap`, may be -1.

    Args:
        value: of plain Python values, NumPy arrays and numbers, dataclasses, enums and paths.
        keep_minus_one: -1.0 is a number here.

    Raises:
        TypeError: the value is or contains something else.
    """
    if value is None or isinstance(value, (bool, str)):
        return value.value if isinstance(value, Enum) else value
    if isinstance(value, Enum):
        return jsonable(value.value, keep_minus_one=keep_minus_one)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return _number(float(value), keep_minus_one)
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, np.ndarray):
        return _array(value, keep_minus_one)
    if isinstance(value, PurePath):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return {
            _key(key): jsonable(entry, keep_minus_one=keep_minus_one or _differs(key)) for key, entry in value.items()
        }
    if isinstance(value, (set, frozenset)):
        value = sorted(value)
    if isinstance(value, (list, tuple, range)):
        return [jsonable(entry, keep_minus_one=keep_minus_one) for entry in value]
    raise TypeError(f"{type(value).__name__} is no value of JSON")


def _number(value: float, keep_minus_one: bool) -> float | None:
    if not math.isfinite(value) or (value == UNDEFINED and not keep_minus_one):
        return None
    return round(value, DIGITS) + 0.0  # no -0.0


def _array(values: np.ndarray, keep_minus_one: bool) -> Any:
    """Fast: curves of 1,203 classes are half a million numbers."""
    if values.dtype.kind != "f":
        return values.tolist() if values.dtype.kind in "biuU" else jsonable(values.tolist())
    undefined = ~np.isfinite(values)
    if not keep_minus_one:
        undefined |= values == UNDEFINED
    rounded = values.astype(np.float64).round(DIGITS) + 0.0
    entries = np.asarray(rounded, dtype=object)
    entries[undefined] = None
    return entries.tolist()


def _key(key: Any) -> str:
    """Numbers and text as they are, several of them with commas."""
    return ",".join(map(_key, key)) if isinstance(key, tuple) else str(jsonable(key))


def _differs(key: Any) -> bool:
    return isinstance(key, str) and any(word in key.lower() for word in DIFFERENCES)
