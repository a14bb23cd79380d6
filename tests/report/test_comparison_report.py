from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from codetr_cli.analysis.differences import Difference
from codetr_cli.report.compared_inputs import pictured_paths
from codetr_cli.report.compared_runs import compare_results
from codetr_cli.report.comparison_report import between, comparison_page, conclusion, number, points
from codetr_cli.report.result_sources import find_source
from tests.analysis.run_samples import annotations, detections
from tests.report.evaluations import write_annotations, write_evaluation, write_images
from tests.report.report_samples import check_page

HOSTILE = ("<script>alert(1)</script>", "\u202e\x1b[31m[red]&amp;", "日本語 \u0627\u0644\u0639\u0631\u0628\u064a\u0629")


def page_of(
    folder: Path, runs: int = 2, *, classes: tuple[str, ...] = ("disc", "ring", "star"), images: int = 12
) -> str:
    truth = annotations(images, classes=classes, crowds=1)
    val = write_annotations(folder / "data/val.json", truth)
    write_images(folder / "data/images", truth)
    for number_, quality in enumerate((0.5, 0.9, 0.7)[:runs]):
        write_evaluation(folder / f"{number_}", truth, detections(truth, seed=number_, found=quality), val)
    sources = [find_source(str(folder / f"{number_}")) for number_ in range(runs)]
    compared = compare_results(sources, pictured_paths(val), chosen=False, samples=50)
    return comparison_page(compared, "codetr compare 0 1 --html page.html")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page_of(tmp_path_factory.mktemp("two"))


def test_the_page_has_the_verdict_and_all_sections(page):
    text = re.sub(r"<[^>]+>", " ", page)
    assert re.search(r"B is better than A by \d+\.\d AP, 95 % interval \d+\.\d to \d+\.\d, on 12 images\.", text)
    assert 'class="verdict good"' in page
    assert {"metrics", "classes", "errors", "images", "method"} <= set(check_page(page).ids)
    for part in ("loose box", "Of 3 classes", "12 images are few", "codetr compare 0 1", "missed", "Resamples: 50."):
        assert part in text


def test_what_was_done_differently_is_beside_the_verdict(tmp_path):
    truth = annotations(8)
    val = write_annotations(tmp_path / "val.json", truth)
    first = write_evaluation(tmp_path / "1", truth, detections(truth, seed=1), val)
    views = {"views": "<b>TTA</b>", "head": "decoder"}
    second = write_evaluation(tmp_path / "2", truth, detections(truth, seed=2), val, protocol_parts=views)
    sources = [find_source(str(folder)) for folder in (first, second)]
    page = comparison_page(compare_results(sources, pictured_paths(val), chosen=False, samples=50), "")
    head = page[: page.index("<nav")]
    assert "The detections were made differently" in head
    assert "single scale 800x1333 (A), &lt;b&gt;TTA&lt;/b&gt; (B)" in head


def test_images_are_drawn_twice_and_linked(page):
    links = check_page(page).links
    drawn = page.count('class="pair"')
    assert drawn >= 4
    assert len([link for link in links if link.startswith("data:image/webp")]) == drawn
    assert len([link for link in links if link.startswith("#image-B-") and not link.endswith("-pixels")]) == drawn
    assert "B has fewer errors" in page


def test_names_of_any_kind_are_only_text(tmp_path):
    page = page_of(tmp_path, classes=HOSTILE)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "\u202e" not in page
    assert "\x1b" not in page
    assert "日本語" in page
    check_page(page)


def test_several_runs_have_an_overview_and_a_section_each(tmp_path):
    page = page_of(tmp_path, runs=3)
    elements = check_page(page)
    assert {"overview", "pair-B", "pair-C", "method"} <= set(elements.ids)
    assert page.count('class="verdict') == 3 - 1
    assert "Comparison of A, B and C" in page


def test_without_images_there_are_tables_and_a_remark(tmp_path):
    truth = annotations(8)
    val = write_annotations(tmp_path / "val.json", truth)
    folders = [write_evaluation(tmp_path / f"{seed}", truth, detections(truth, seed=seed), val) for seed in (1, 2)]
    compared = compare_results([find_source(str(f)) for f in folders], pictured_paths(val), chosen=False, samples=50)
    page = comparison_page(compared, "")
    check_page(page)
    assert "Images that could not be read: " in page
    assert 'class="pair"' not in page
    assert "0000.jpg" in page or "0001.jpg" in page


def test_many_classes(tmp_path):
    truth = annotations(150, classes=[f"class {i}" for i in range(60)])
    val = write_annotations(tmp_path / "val.json", truth)
    tables = [detections(truth, seed=1), replace(detections(truth, seed=2), scores=detections(truth, seed=2).scores)]
    folders = [write_evaluation(tmp_path / f"{i}", truth, table, val) for i, table in enumerate(tables)]
    compared = compare_results([find_source(str(f)) for f in folders], pictured_paths(val), chosen=False, samples=50)
    page = comparison_page(compared, "")
    assert 'data-shown="20"' in page
    assert "AP of the classes that differ most clearly" in page


def test_texts_of_numbers():
    assert [points(value) for value in (0.412, -0.0001, math.nan)] == ["41.2", "0.0", "-"]
    assert [points(value, signed=True) for value in (0.01, -0.01, 0.0001)] == ["+1.0", "-1.0", "0.0"]
    assert number(12.34) == "12.3"
    assert between(Difference(0.1, 0.2, -0.012, 0.05)) == "-1.2 to 5.0"
    assert between(Difference(0.1, 0.2)) == "-"
    better = Difference(0.1, 0.2, 0.05, 0.15)
    assert (conclusion(better), conclusion(better, is_clear=False)) == ("better", "better?")
    assert conclusion(Difference(0.1, 0.2, -0.1, 0.3), is_clear=False) == "not clear"
    assert conclusion(Difference(0.1, 0.2)) == "too few"
    assert conclusion(Difference(0.1, 0.1)) == "equal"
    assert conclusion(Difference(math.nan, math.nan)) == ""
