"""Pages: what is escaped, what the policy allows, how values are shown."""

from __future__ import annotations

import base64
import hashlib
import re
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from codetr_cli.report.charts import (
    HEAT_STRONGEST,
    Axis,
    Interval,
    Series,
    bar_chart,
    curve_tile,
    grouped_bar_chart,
    heat_map,
    interval_chart,
    line_chart,
    row_chart,
)
from codetr_cli.report.markup import element
from codetr_cli.report.page import Cell, Column, Section, Table, render_page
from codetr_cli.report.pictures import DrawnBox, gallery, legend, picture, picture_pair
from codetr_cli.report.thumbnails import Thumbnails

MARKUP = '<script>alert("1")</script>&\'"'


def page_of(*parts) -> str:
    return render_page(MARKUP, facts={MARKUP: MARKUP}, summary=MARKUP, sections=[Section("all", MARKUP, MARKUP, parts)])


def everything() -> str:
    """A page with every kind of part, all of whose texts are markup."""
    axis = Axis(MARKUP)
    image = np.zeros((40, 60, 3), np.uint8)
    return page_of(
        Table(MARKUP, [Column(MARKUP, hint=MARKUP), Column("AP", "score")], [[MARKUP, 0.5], [MARKUP, None]]),
        line_chart(MARKUP, [Series(MARKUP, [(0, 1), (1, 2)]), Series(MARKUP, [(0, 3), (1, float("nan"))])], axis, axis),
        bar_chart(MARKUP, [MARKUP], [1.0], axis),
        grouped_bar_chart(MARKUP, [MARKUP], [(MARKUP, [1.0]), (MARKUP, [2.0])], axis),
        row_chart(MARKUP, [MARKUP], [1.0], axis),
        interval_chart(MARKUP, [Interval(MARKUP, 0.1, -1.0, 1.0)], axis),
        heat_map(MARKUP, [MARKUP], [MARKUP], [[0.5]], rows_are=MARKUP, columns_are=MARKUP),
        gallery([picture(image, [DrawnBox((1, 1, 9, 9), "hit", MARKUP)], MARKUP)]),
        picture_pair(image, (MARKUP, [DrawnBox((1, 1, 9, 9), "hit", MARKUP)]), (MARKUP, []), MARKUP, key="two"),
        legend(["hit"]),
        element("ul", curve_tile(MARKUP, MARKUP, [1.0, 0.5], [0.1, 0.2], 0.3), class_="curves"),
    )


def test_texts_of_others_are_escaped_everywhere() -> None:
    text = everything()
    assert text.count("<script>") == 1  # the page's own
    assert "alert(&#34;1&#34;)" in text
    assert 'alert("1")' not in text


def test_the_policy_allows_the_own_style_and_script_alone() -> None:
    text = everything()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy
    for name in ("style", "script"):
        content = re.search(f"<{name}>(.*?)</{name}>", text, re.DOTALL)
        assert content
        digest = base64.b64encode(hashlib.sha256(content[1].encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy[1]
    assert "default-src 'none'" in policy[1]
    assert not re.search(r"\s(style|on\w+)=", re.sub(r"<(style|script)>.*?</\1>", "", text, flags=re.DOTALL))


def test_nothing_leads_out_of_the_page() -> None:
    assert set(re.findall(r'(?:href|src)="(.[^"]{0,10})', everything())) == {
        "#content",
        "#all",
        "#two-pixels",
        "data:image/",
    }


@pytest.mark.parametrize(
    ("kind", "value", "shown"),
    [("score", 0.12345, "0.123"), ("share", 0.5, "50.0 %"), ("number", 12345, "12,345"), ("score", None, "-")],
)
def test_values_are_shown_by_their_kind(kind: str, value: float | None, shown: str) -> None:
    text = page_of(Table("rows", [Column("name"), Column("value", kind)], [["a", value]]))
    key = "" if value is None else value
    assert f'<td class="{kind}" data-key="{key}">{shown}</td>' in text


def test_elements() -> None:
    assert (
        element("a", "<", class_="x", aria_label=None, stroke_width=1.23456)
        == '<a class="x" stroke-width="1.23">&lt;</a>'
    )


def test_a_crop_shows_the_box_with_its_surroundings() -> None:
    image = np.zeros((400, 600, 3), np.uint8)
    text = picture(image, [DrawnBox((100, 100, 200, 150), "miss", "a cup")], "cup", crop=(100, 100, 200, 150))
    assert 'viewBox="0 0 220 170"' in text
    assert '<rect class="box miss" x="60" y="60" width="100" height="50">' in text


def test_a_cell_is_sorted_by_its_key() -> None:
    text = page_of(Table("rows", [Column("name")], [[Cell(element("a", "second", href="#all"), "b")]]))
    assert '<th scope="row" class="text" data-key="b"><bdi><a href="#all">second</a></bdi></th>' in text


def test_a_long_name_is_whole_in_a_tooltip() -> None:
    """What the style does not show of it can be read nevertheless, searched and printed."""
    name = '"<b>' + "x" * 700
    table = Table("t", [Column("class", "text name"), Column("image", "text name"), Column("why")], [[name, "a", name]])
    text = page_of(table)
    shown = name.replace('"', "&#34;").replace("<", "&lt;").replace(">", "&gt;")
    assert text.count(f'<bdi title="{shown}">{shown}</bdi>') == 1
    assert "<bdi>a</bdi>" in text
    assert f"<bdi>{shown}</bdi>" in text


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\x00b\x1b[31m", "a\\x00b\\x1b[31m"),
        ("left\u202eright", "left\\u202eright"),
        ("odd\udcff", "odd\\xff"),
        ("\ufdd0\uffff\U0010ffff", "\ufffd\ufffd\ufffd"),
        ("قطة 猫 👩‍🚀", "قطة 猫 👩‍🚀"),
        ("two\nlines", "two\nlines"),
    ],
)
def test_names_of_any_script_are_shown_and_controls_as_their_codes(name: str, shown: str) -> None:
    text = page_of(Table(name, [Column("class")], [[name]]), line_chart(name, [], Axis(name), Axis(name)))
    assert f"<bdi>{shown}</bdi>" in text
    assert f"<figcaption>{shown}</figcaption>" in text
    text.encode()


def test_names_beside_a_chart_are_as_short_as_they_are_shown() -> None:
    chart = interval_chart("T", [Interval("\x1b[31mred\x1b]0;own\x07", 1.0, 0.5, 2.0)], Axis("v"))
    assert ">\\x1b[31mred\\x1b]0;o…<" in chart


def test_a_heat_map_is_as_large_as_its_cells_and_leads_to_examples() -> None:
    text = heat_map(
        "map", ["a", "b"], ["a", "b"], [[1, 0.3], [0, 0.001]], rows_are="x", columns_are="y", links={(0, 1): "#ab"}
    )
    assert 'class="chart sized" width="258" height="174"' in text
    assert '<a href="#ab" aria-label="a → b: 30.0 %">' in text
    assert 'role="group"' in text
    assert text.count('class="heat') - text.count("heat-text") - text.count("heat-line") == 2  # none for almost zero


def test_a_pair_of_pictures_has_its_pixels_once() -> None:
    text = picture_pair(np.zeros((40, 60, 3), np.uint8), ("left", []), ("right", []), "cup", key="k")
    assert text.count("data:image/webp") == 1
    assert '<use href="#k-pixels">' in text


def test_thumbnails_stop_at_their_budget_and_do_without_images(tmp_path) -> None:
    inputs = SimpleNamespace(
        image_path=lambda image: tmp_path / f"{image}.png",
        file_name=lambda image: f"{image}.png",
        may_read=lambda image: True,
    )
    cv2.imwrite(str(tmp_path / "0.png"), np.zeros((40, 60, 3), np.uint8))
    thumbnails = Thumbnails(inputs, budget=200)
    assert thumbnails.crop(1, (0, 0, 9, 9), [], "absent") is None
    assert thumbnails.crop(0, (0, 0, 9, 9), [], "there") is not None
    assert thumbnails.pair(0, ("a", []), ("b", []), "there", key="k") is None
    assert thumbnails.unreadable == ["1.png"]
    assert thumbnails.skipped == 1
    assert "Images that could not be read: 1, e.g. 1.png" in thumbnails.remark()


def _luminance(colour: tuple[float, ...]) -> float:
    """Relative luminance of WCAG 2."""
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _colours(block: str) -> dict[str, tuple[float, ...]]:
    """The colours of a block of the style, by name, each channel from 0 to 1."""
    found = {}
    for name, value in re.findall(r"--([\w-]+): ([^;]+);", block):
        numbers = [int(value[i : i + 2], 16) for i in (1, 3, 5)] if value[0] == "#" else map(int, value.split())
        found[name] = tuple(number / 255 for number in numbers)
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_can_be_read_in_both_schemes(scheme: str) -> None:
    css = re.search("<style>(.*?)</style>", page_of(), re.DOTALL)[1]
    light, dark = (_colours(block) for block in re.findall(r":root \{\s*(?:color-scheme[^;]*;)?([^}]*)\}", css)[:2])
    colours = light if scheme == "light" else {**light, **dark}
    assert colours.keys() == light.keys()
    for ground in ("ground", "raised"):
        for name in ("ink", "faint", "link", "good", "bad", "missed", *(f"s{number}" for number in range(6))):
            assert _contrast(colours[name], colours[ground]) >= 4.5, (scheme, name, ground)
    strongest = tuple(
        HEAT_STRONGEST * heat + (1 - HEAT_STRONGEST) * ground
        for heat, ground in zip(colours["heat"], colours["ground"], strict=True)
    )
    for part in (0.0, 0.5, 1.0):
        shade = tuple(part * a + (1 - part) * b for a, b in zip(strongest, colours["ground"], strict=True))
        assert _contrast(colours["ink"], shade) >= 4.5, (scheme, part)


def test_everything_can_be_reached_by_the_keyboard_and_is_printed() -> None:
    """What scrolls has the focus, titles are sorted by buttons, and what is closed on the screen is on paper."""
    text = everything()
    name = "&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt;&amp;&#39;&#34;"
    assert set(re.findall(r'<div class="scroll"([^>]*)>', text)) == {
        f' tabindex="0" role="region" aria-label="{what}"' for what in (name, f"Table: {name}")
    }
    assert 'class="skip" href="#content"' in text
    assert "focus-visible" in text
    for rule in ("tr.more", "details::details-content", "beforeprint"):
        assert rule in text[text.index("@media print") :]
    assert all("aria-label=" in svg or "aria-hidden=" in svg for svg in re.findall(r"<svg[^>]*>", text))
