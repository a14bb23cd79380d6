"""The sections about a data set: what they show, without data, and with names that are markup."""

from __future__ import annotations

import pytest

from codetr_cli.analysis.data.advice import Advice, advise
from codetr_cli.analysis.data.image_copies import CopiedImages, Copy
from codetr_cli.analysis.data.input_size import NetworkLimits
from codetr_cli.analysis.data.split_differences import split_difference
from codetr_cli.analysis.data.statistics import data_statistics
from codetr_cli.config.schema import Settings
from codetr_cli.report.data_section import data_page, data_sections
from tests.analysis.data.fakes import annotations_of, repeated

MARKUP = '<script>alert("1")</script>'
LIMITS = NetworkLimits.of(Settings(name="test"))


def page(names: tuple[str, ...] = ("cat", "dog", "owl")) -> str:
    train = annotations_of(repeated([(0, 0, 9, 9, 40, 40), (0, 1, 99, 9, 40, 60)], 30), [(480, 640)] * 31, names=names)
    val = annotations_of([(0, 0, 9, 9, 40, 40), (1, 2, 9, 9, 4, 4)], [(480, 640)] * 2, names=names)
    statistics = [data_statistics(train, LIMITS), data_statistics(val, LIMITS, split="val")]
    differences = [found for found in [split_difference(train, val)] if found]
    copies = CopiedImages(33, 2, False, 0, 1, [Copy("val", names[0], "train", names[0])])
    advice = advise(statistics, LIMITS, differences=differences, copies=copies)
    sections = data_sections(statistics, advice=advice, differences=differences, copies=copies)
    return data_page("Data", {"Data": names[0]}, sections, statistics)


def test_every_section_is_there_with_its_numbers() -> None:
    text = page()
    for key in ("advice", "splits", "classes", "sizes", "crowding", "together", "compared", "copies"):
        assert f'<section id="data-{key}"' in text
    assert "<b>31</b>images of train" in text
    assert "1 of 62 objects are under 8 pixels" in text
    assert "1 class of val has no object in train" in text
    assert "Only names were compared" in text
    assert "2 images could not be read" in text
    assert "640x480 (31)" in text


def test_names_are_text_only() -> None:
    text = page((MARKUP, MARKUP + "2", MARKUP + "3"))
    assert text.count("<script>") == 1
    assert "alert(&#34;1&#34;)" in text


@pytest.mark.parametrize("sizes", [[], [(480, 640)]])
def test_data_without_objects_have_a_page(sizes: list[tuple[int, int]]) -> None:
    statistics = [data_statistics(annotations_of([], sizes), LIMITS)]
    sections = data_sections(statistics)
    assert "No advice" in data_page("Data", {}, sections, statistics)
    assert [each.key for each in sections][-1] == "data-together"


def test_advice_has_its_reasons() -> None:
    statistics = [data_statistics(annotations_of([(0, 0, 1, 1, 9, 9)], [(50, 50)]), LIMITS)]
    sections = data_sections(statistics, advice=[Advice("rule", "do this", "of 7 things", "a paper")])
    assert "of 7 things" in data_page("Data", {}, sections, statistics)


def test_a_thousand_classes() -> None:
    names = tuple(f"class {number}" for number in range(1203))
    objects = [(number % 40, number, 1.0, 1.0, 20.0, 20.0) for number in range(1203)]
    statistics = [data_statistics(annotations_of(objects, [(99, 99)] * 40, names=names), LIMITS)]
    text = data_page("Data", {}, data_sections(statistics), statistics)
    assert "class 1202" in text
    assert len(text) < 1_000_000
