"""Cells, sizes and durations as text."""

from __future__ import annotations

import pytest

from codetr_cli.number_text import bytes_text, cell_text, seconds_text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (True, "yes"),
        (1234567, "1,234,567"),
        (0.123456, "0.1235"),
        (float("nan"), "nan"),
        (98765.4, "98,765"),
        ("a", "a"),
    ],
)
def test_cells(value: object, text: str):
    assert cell_text(value) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 * 2**30, "3.0 GiB"), (2**41, "2.0 TiB")]
)
def test_bytes(count: int, text: str):
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.416, "0.42 s"), (42.4, "42 s"), (200, "3 min 20 s"), (59.99, "60 s"), (7500, "2 h 05 min")],
)
def test_seconds(seconds: float, text: str):
    assert seconds_text(seconds) == text
