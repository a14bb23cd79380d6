"""Bars and small plots made of characters."""

from __future__ import annotations

import io
import sys

import pytest

from codetr_cli import console
from codetr_cli.commands._text_plots import bar_text, curve, spark_text


@pytest.mark.parametrize(
    ("share", "bar"), [(0.0, ""), (1.0, "████"), (0.5, "██"), (0.53, "██▏"), (1e-9, "▏"), (7.0, "████"), (-1.0, "")]
)
def test_bars_are_eighths_of_characters(share: float, bar: str):
    assert bar_text(share, 4) == bar


def test_small_plots_have_a_character_for_each_value():
    assert spark_text([0, 1, 4, 8]) == " ▁▄█"
    assert spark_text([0.001, 100]) == "▁█"
    assert spark_text([0, 0]) == "  "
    assert spark_text([]) == ""


def test_bars_and_plots_without_block_characters(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert bar_text(0.5, 4) == "##"
    assert bar_text(1e-9, 4) == "#"
    assert bar_text(0.0, 4) == ""
    assert spark_text([0, 1, 9]) == ".+#"


def test_curves():
    assert curve([], 10) == ""
    assert curve([1.0], 10) == ""
    assert curve([1.0, 1.0], 10) == "▁▁"
    assert curve([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], 20) == "▁▂▃▄▅▆▇█"
    assert curve([0.0, 0.0, 7.0, 7.0, 0.0, 0.0], 3) == "▁█▁"
    straight, logarithmic = ([10.0**-n for n in range(8)], 8), "█▇▆▅▄▃▂▁"
    assert curve(*straight) == "█▂▁▁▁▁▁▁"
    assert curve(*straight, logarithmic=True) == logarithmic
    assert curve([0.0, 100.0], 2, logarithmic=True) == "▁█"


def test_curves_where_characters_are_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(console, "can_show", lambda text: text.isascii())
    assert curve([0.0, 7.0], 2) == "_#"
