"""Small plots made of characters, for a cell or a line of the terminal; plain characters where it has no blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from codetr_cli import console

EIGHTHS = ("", *"▏▎▍▌▋▊▉█")
LEVELS, PLAIN_LEVELS = "▁▂▃▄▅▆▇█", "_.-:=+*#"
LOG_SCALE_FROM = 20.0
"""Curves of losses are logarithmic where the largest value is so many times the smallest."""


def bar_text(share: float, width: int = 20) -> str:
    """A bar for a cell of a table: a share from 0 to 1 of `width` characters, in eighths of them.

    Full characters only, `#`, where the stream cannot hold blocks; a share above 0 shows at least something.
    """
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    if not console.can_show(EIGHTHS[8] + LEVELS):
        return "#" * (max(round(eighths / 8), 1) if share > 0 else 0)
    full, part = divmod(max(eighths, 1) if share > 0 else 0, 8)
    return EIGHTHS[8] * full + EIGHTHS[part]


def spark_text(values: Sequence[float]) -> str:
    """A small plot of values from 0 on: a character each, the largest value full; `.`, `+` and `#` without blocks."""
    largest = max(values, default=0.0)
    steps = f" {LEVELS}" if console.can_show(LEVELS) else ".+#"
    if largest <= 0:
        return steps[0] * len(values)
    return "".join(
        steps[0] if value <= 0 else steps[max(round(value / largest * (len(steps) - 1)), 1)] for value in values
    )


def curve(values: Sequence[float], width: int, *, logarithmic: bool = False) -> str:
    """Values as a line of bars, the lowest value at the bottom: means over equal parts where they are many."""
    if len(values) < 2 or width < 2:
        return ""
    levels = LEVELS if console.can_show(LEVELS) else PLAIN_LEVELS
    parts = min(len(values), width)
    edges = [len(values) * i // parts for i in range(parts + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    if logarithmic and min(means) > 0 and max(means) > LOG_SCALE_FROM * min(means):
        means = [math.log(value) for value in means]
    low, high = min(means), max(means)
    scale = (len(levels) - 1) / (high - low) if high > low else 0.0
    return "".join(levels[round((value - low) * scale)] for value in means)
