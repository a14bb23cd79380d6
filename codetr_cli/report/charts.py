"""Charts as inline SVG whose colours follow the page, light and dark; each has a text for those who do not see it.

No script, no style attribute: the policy of a page allows neither. Lines differ in colour and in dashes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from codetr_cli.escaping import visible
from codetr_cli.report.markup import element, joined

SERIES = 6
"""Colours of series; with the dashes, 24 lines differ."""
WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 24, 12, 44
ROW_NAMES = 204
"""Room for the names of rows, also in the larger letters of narrow screens."""
TICKS = 5
HEAT_LEAST = 0.005
"""Lower values of a heat map look like zero."""
HEAT_STRONGEST = 0.75
"""Opacity of 1 in a heat map: numbers over it stay readable."""
HEAT_TEXT_SIZE = 24
"""Cells of a heat map of this size have numbers."""


@dataclass(frozen=True)
class Series:
    """A line of a chart: points (x, y); those with a NaN interrupt it."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Axis:
    """An axis.

    Attributes:
        title: with its unit.
        low: value at its start; None: from the data.
        high: value at its end; None: from the data.
        is_share: whether values from 0 to 1 are shown in percent.
        is_log: whether it is logarithmic: all values must be positive.
    """

    title: str
    low: float | None = None
    high: float | None = None
    is_share: bool = False
    is_log: bool = False


@dataclass(frozen=True)
class Interval:
    """A value with its interval; a row of an `interval_chart`."""

    name: str
    value: float
    low: float
    high: float


def line_chart(title: str, series: Sequence[Series], x: Axis, y: Axis, *, mark: float | None = None) -> Markup:
    """Lines over a common axis, with a legend if there are several, and a dashed line at a value of x."""
    frame = _Frame.around([point for each in series for point in each.points], x, y)
    lines = [
        element("polyline", points=part, class_=f"line stroke{number % SERIES} dash{number // SERIES % 4}")
        for number, each in enumerate(series)
        for part in frame.polylines(each.points)
    ]
    marks = [] if mark is None else [frame.mark(mark)]
    content = [*frame.grid(), *marks, *lines]
    return _figure(title, frame.svg(title, content), [each.name for each in series])


def bar_chart(title: str, names: Sequence[str], values: Sequence[float], y: Axis) -> Markup:
    """Upright bars side by side, such as a histogram; the names are below."""
    frame = _Frame.around(
        [(0, 0), *((i, value) for i, value in enumerate(values))], Axis("", -0.5, len(names) - 0.5), y
    )
    step = max(1, math.ceil(len(names) / 8))
    bars = [
        element(
            "rect",
            element("title", f"{name}: {_text(value, y)}"),
            x=frame.x(i - 0.4),
            y=frame.y(value),
            width=max(frame.x(i + 0.4) - frame.x(i - 0.4), 0.5),
            height=max(frame.y(frame.bottom) - frame.y(value), 0.0),
            class_="fill0",
        )
        for i, (name, value) in enumerate(zip(names, values, strict=True))
    ]
    labels = [
        element("text", _shortened(name, 12), x=frame.x(i), y=HEIGHT - BOTTOM + 16, text_anchor="middle", class_="tick")
        for i, name in enumerate(names)
        if i % step == 0
    ]
    return _figure(title, frame.svg(title, [*frame.grid(vertical=False), *bars, *labels]))


def grouped_bar_chart(
    title: str, names: Sequence[str], series: Sequence[tuple[str, Sequence[float]]], y: Axis
) -> Markup:
    """Upright bars of several series side by side over each name, with a legend if there are several series."""
    points = [(0.0, 0.0), *((i, value) for _, values in series for i, value in enumerate(values))]
    frame = _Frame.around(points, Axis("", -0.5, len(names) - 0.5), y)
    step = max(1, math.ceil(len(names) / 12))
    wide = 0.8 / max(len(series), 1)
    bars = [
        element(
            "rect",
            element("title", f"{name}, {series_name}: {_text(value, y)}"),
            x=frame.x(i - 0.4 + wide * number),
            y=frame.y(value),
            width=max(frame.x(wide) - frame.x(0), 0.5),
            height=max(frame.y(frame.bottom) - frame.y(value), 0.0),
            class_=f"fill{number % SERIES}",
        )
        for number, (series_name, values) in enumerate(series)
        for i, (name, value) in enumerate(zip(names, values, strict=True))
    ]
    labels = []
    for i, name in enumerate(names):
        x, down = frame.x(i) + 6, HEIGHT - BOTTOM + 12
        turn = f"rotate(-25 {x:.1f} {down})"
        text = element("text", _shortened(name, 12), x=x, y=down, text_anchor="end", class_="tick", transform=turn)
        labels += [text] if i % step == 0 else []
    content = frame.svg(title, [*frame.grid(vertical=False), *bars, *labels])
    return _figure(title, content, [name for name, _ in series], filled=True)


def row_chart(title: str, names: Sequence[str], values: Sequence[float], axis: Axis) -> Markup:
    """Lying bars one below the other, with their names before and their values behind."""
    low, high = _range([0.0, *values], axis)
    rows = len(names)
    height = 22 * rows + 8

    def place(value: float) -> float:
        return ROW_NAMES + (value - low) / (high - low) * (WIDTH - ROW_NAMES - 60)

    content: list[Markup] = []
    for i, (name, value) in enumerate(zip(names, values, strict=True)):
        y = 22 * i + 6
        start, end = sorted((place(max(low, min(0.0, high))), place(value)))
        content += [
            element("text", element("title", name), _shortened(name, 25), x=ROW_NAMES - 6, y=y + 12, text_anchor="end"),
            element("rect", x=start, y=y, width=max(end - start, 1.0), height=15, class_="fill0"),
            element("text", _text(value, axis), x=end + 5, y=y + 12, class_="tick"),
        ]
    return _figure(title, _svg(title, content, height))


def interval_chart(title: str, rows: Sequence[Interval], axis: Axis) -> Markup:
    """Values with their intervals one below the other, and a line at zero where the axis contains it."""
    low, high = _range([value for row in rows for value in (row.low, row.value, row.high)], axis)
    height = 22 * len(rows) + 42

    def place(value: float) -> float:
        return ROW_NAMES + (value - low) / (high - low) * (WIDTH - ROW_NAMES - 20)

    content: list[Markup] = []
    for tick in _ticks(low, high):
        content += [
            element(
                "line", x1=place(tick), x2=place(tick), y1=2, y2=height - 36, class_="axis" if tick == 0 else "grid"
            ),
            element("text", _text(tick, axis), x=place(tick), y=height - 22, text_anchor="middle", class_="tick"),
        ]
    content.append(element("text", axis.title, x=WIDTH - 20, y=height - 4, text_anchor="end", class_="axis-title"))
    for i, row in enumerate(rows):
        y = 22 * i + 12
        kind = 2 if row.low > 0 else 1 if row.high < 0 else 5
        label = f"{row.name}: {_text(row.value, axis)} ({_text(row.low, axis)} to {_text(row.high, axis)})"
        content += [
            element(
                "text",
                element("title", row.name),
                _shortened(row.name, 20),
                x=ROW_NAMES - 6,
                y=y + 4,
                text_anchor="end",
            ),
            element("line", x1=place(row.low), x2=place(row.high), y1=y, y2=y, class_=f"line stroke{kind}"),
            element("circle", element("title", label), cx=place(row.value), cy=y, r=4, class_=f"fill{kind}"),
        ]
    return _figure(title, _svg(title, content, height))


def heat_map(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float]],
    *,
    rows_are: str,
    columns_are: str,
    links: Mapping[tuple[int, int], str] | None = None,
) -> Markup:
    """Values from 0 to 1 as shades, with their percentage where there is room; each has a text when pointed at.

    `links` has addresses within the page for some cells, by row and column.
    """
    left, top, links = 130, 104, links or {}
    size = max(min((WIDTH - left) / max(len(columns), 1), 34.0), 14.0)
    # The names of the columns lean to the right, the last one beyond its column.
    width, height = left + size * len(columns) + 60, top + size * len(rows) + 2
    content: list[Markup] = [element("text", f"{rows_are} ↓  {columns_are} →", x=4, y=14, class_="axis-title")]
    for j, name in enumerate(columns):
        x = left + size * (j + 0.5) + 4
        turn = f"rotate(-60 {x:.1f} {top - 6})"
        content.append(_label(name, 14, x=x, y=top - 6, class_="tick", transform=turn))
    for i, name in enumerate(rows):
        y = top + size * (i + 0.5) + 4
        content.append(_label(name, 18, x=left - 6, y=y, text_anchor="end", class_="tick"))
    for i, name in enumerate(rows):
        for j, other in enumerate(columns):
            hint = f"{name} → {other}: {100 * values[i][j]:.1f} %"
            place = (left + size * j, top + size * i)
            content += _heat_cell(values[i][j], hint, place, size, links.get((i, j)))
    far_x, far_y = left + size * len(columns), top + size * len(rows)
    grid = [f"M{left} {top + size * i:.1f}H{far_x:.1f}" for i in range(len(rows) + 1)]
    grid += [f"M{left + size * j:.1f} {top}V{far_y:.1f}" for j in range(len(columns) + 1)]
    content.insert(0, element("path", d="".join(grid), class_="heat-line"))
    role = "group" if links else "img"  # what is in an image cannot be reached by the keyboard
    svg = _svg(title, content, height, width, is_sized=True, role=role)
    return _figure(title, element("div", svg, class_="scroll", tabindex=0, role="region", aria_label=title))


def _heat_cell(value: float, hint: str, place: tuple[float, float], size: float, link: str | None) -> list[Markup]:
    x, y = place
    if value < HEAT_LEAST and link is None:
        return []
    kind = "heat" if link is None else "heat linked"
    opacity = f"{HEAT_STRONGEST * min(value, 1.0):.2f}"
    rect = element("rect", element("title", hint), x=x, y=y, width=size, height=size, class_=kind, fill_opacity=opacity)
    cell = [rect if link is None else element("a", rect, href=link, aria_label=hint)]
    if size >= HEAT_TEXT_SIZE:
        cell.append(element("text", f"{100 * value:.0f}", x=x + size / 2, y=y + size / 2 + 4, class_="heat-text"))
    return cell


def _label(name: str, limit: int, **attributes: Any) -> Markup:
    """A name, shortened; all of it is shown when it is pointed at."""
    return element("text", element("title", name), _shortened(name, limit), **attributes)


def curve_tile(
    name: str, text: str, precision: Sequence[float], f1: Sequence[float], threshold: float | None = None
) -> Markup:
    """An entry of a list of class "curves": precision over recall, and the F1-score over the threshold, side by side.

    Args:
        name: of the class.
        text: what is to be known of it, in a few words.
        precision: at recalls from 0 to 1, in equal steps.
        f1: at thresholds from 0 to 1, in equal steps.
        threshold: to be marked; None: none.
    """
    side, gap = 100, 14
    parts: list[Markup] = []
    for number, values in enumerate((precision, f1)):
        left = 1 + number * (side + gap)
        parts.append(element("rect", x=left, y=1, width=side, height=70, class_="frame"))
        steps = max(len(values) - 1, 1)
        points = [
            f"{left + side * i / steps:.0f},{71 - 70 * value:.1f}"
            for i, value in enumerate(values)
            if math.isfinite(value) and (i % 2 == 0 or i == steps)
        ]
        parts.append(element("polyline", points=" ".join(points), class_=f"line stroke{number}"))
        title = ("precision / recall", "F1 / threshold")[number]
        parts.append(element("text", title, x=left, y=84, class_="tick"))
    if threshold is not None:
        x = 1 + side + gap + side * threshold
        parts.append(element("line", x1=x, x2=x, y1=1, y2=71, class_="mark"))
    svg = element(
        "svg", joined(parts), viewBox=f"0 0 {2 * side + gap + 2} 88", role="img", aria_label=f"{name}: {text}"
    )
    return element(
        "li", element("p", element("b", element("bdi", _shortened(name, 60))), " ", text), svg, data_name=name
    )


def table_line(values: Sequence[float], *, high: float = 1.0) -> Markup:
    """A line without axes, for a cell of a table: values from 0 to `high` over equal steps."""
    steps = max(len(values) - 1, 1)
    points = " ".join(
        f"{60 * i / steps:.0f},{18 - 16 * min(v / high, 1):.1f}" for i, v in enumerate(values) if math.isfinite(v)
    )
    line = element("polyline", points=points, class_="line stroke0")
    return element("svg", line, viewBox="0 0 60 20", width=60, height=20, aria_hidden="true")


def table_bar(value: float | None, interval: tuple[float, float] | None = None) -> Markup | None:
    """A bar for a cell of a table: a value from 0 to 1 with its interval as a line; None where there is none."""
    if value is None:
        return None
    parts = [
        element("rect", x=0.5, y=3.5, width=43, height=11, class_="frame"),
        element("rect", x=0.5, y=3.5, width=max(43 * min(value, 1.0), 0.5), height=11, class_="fill0"),
    ]
    if interval is not None:
        start, end = (0.5 + 43 * limit for limit in interval)
        parts.append(element("line", x1=round(start, 1), y1=9, x2=round(end, 1), y2=9, class_="whisker"))
    return element("svg", joined(parts), viewBox="0 0 44 18", width=44, height=18, aria_hidden="true")


@dataclass(frozen=True)
class _Frame:
    """The area of a chart with its axes."""

    x_axis: Axis
    y_axis: Axis
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    @classmethod
    def around(cls, points: Sequence[tuple[float, float]], x: Axis, y: Axis) -> _Frame:
        return cls(x, y, _range([p[0] for p in points], x), _range([p[1] for p in points], y))

    @property
    def bottom(self) -> float:
        return self.y_range[0]

    def x(self, value: float) -> float:
        return LEFT + _part(value, self.x_range, self.x_axis) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - _part(value, self.y_range, self.y_axis) * (HEIGHT - TOP - BOTTOM)

    def polylines(self, points: Sequence[tuple[float, float]]) -> list[str]:
        lines: list[list[str]] = [[]]
        for x, y in points:
            if math.isnan(x) or math.isnan(y):
                lines.append([])
            else:
                lines[-1].append(f"{self.x(x):.1f},{self.y(y):.1f}")
        return [" ".join(line) for line in lines if line]

    def grid(self, *, vertical: bool = True) -> list[Markup]:
        content: list[Markup] = []
        for tick in _ticks(*self.y_range, is_log=self.y_axis.is_log):
            y = self.y(tick)
            content += [
                element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"),
                element("text", _text(tick, self.y_axis), x=LEFT - 6, y=y + 4, text_anchor="end", class_="tick"),
            ]
        if vertical:
            for tick in _ticks(*self.x_range, is_log=self.x_axis.is_log):
                x = self.x(tick)
                content += [
                    element("line", x1=x, x2=x, y1=TOP, y2=HEIGHT - BOTTOM, class_="grid"),
                    element(
                        "text",
                        _text(tick, self.x_axis),
                        x=x,
                        y=HEIGHT - BOTTOM + 16,
                        text_anchor="middle",
                        class_="tick",
                    ),
                ]
        middle = TOP + (HEIGHT - TOP - BOTTOM) / 2
        content += [
            element(
                "text",
                self.x_axis.title,
                x=LEFT + (WIDTH - LEFT - RIGHT) / 2,
                y=HEIGHT - 8,
                text_anchor="middle",
                class_="axis-title",
            ),
            element(
                "text",
                self.y_axis.title,
                x=12,
                y=middle,
                text_anchor="middle",
                class_="axis-title",
                transform=f"rotate(-90 12 {middle})",
            ),
        ]
        return content

    def mark(self, x: float) -> Markup:
        return element("line", x1=self.x(x), x2=self.x(x), y1=TOP, y2=HEIGHT - BOTTOM, class_="mark")

    def svg(self, title: str, content: Sequence[Markup]) -> Markup:
        return _svg(title, content, HEIGHT)


def _svg(
    title: str,
    content: Sequence[Markup],
    height: float,
    width: float = WIDTH,
    *,
    is_sized: bool = False,
    role: str = "img",
) -> Markup:
    box = f"0 0 {width:.0f} {height:.0f}"
    size = {"width": round(width), "height": round(height)} if is_sized else {}
    kind = "chart sized" if is_sized else "chart"
    return element("svg", joined(content), viewBox=box, role=role, aria_label=title, class_=kind, **size)


def _figure(title: str, svg: Markup, names: Sequence[str] = (), *, filled: bool = False) -> Markup:
    legend: Any = ""
    if len(names) > 1:
        keys = [
            element("rect", x=4, y=0, width=18, height=12, class_=f"fill{i % SERIES}")
            if filled
            else element("line", x1=0, x2=26, y1=6, y2=6, class_=f"line stroke{i % SERIES} dash{i // SERIES % 4}")
            for i in range(len(names))
        ]
        entries = [
            element("li", element("svg", key, viewBox="0 0 26 12", aria_hidden="true"), " ", element("bdi", name))
            for key, name in zip(keys, names, strict=True)
        ]
        legend = element("ul", joined(entries), class_="legend")
    return element("figure", element("figcaption", title), svg, legend)


def _part(value: float, limits: tuple[float, float], axis: Axis) -> float:
    low, high = limits
    if axis.is_log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low)


def _range(values: Sequence[float], axis: Axis) -> tuple[float, float]:
    known = [value for value in values if math.isfinite(value)]
    low = axis.low if axis.low is not None else min(known, default=1.0 if axis.is_log else 0.0)
    high = axis.high if axis.high is not None else max(known, default=1.0)
    return (low, high) if high > low else (low, low * 2 if axis.is_log else low + 1.0)


def _ticks(low: float, high: float, *, is_log: bool = False) -> list[float]:
    """Round values of an axis."""
    if is_log:
        return [10.0**power for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)] or [low]
    raw = (high - low) / TICKS
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw * 0.999)
    return [round(step * i, 10) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _text(value: float, axis: Axis) -> str:
    return f"{100 * value:.3g} %" if axis.is_share else f"{value:,.4g}"


def _shortened(text: str, limit: int) -> str:
    text = visible(text)  # as the page will have it: a control character becomes four
    return text if len(text) <= limit else text[: limit - 1] + "…"
