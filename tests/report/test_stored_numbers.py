"""Reports without their detections are compared by what they keep, as if the detections were there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codetr_cli.errors import DatasetError
from codetr_cli.report.compared_inputs import pictured_paths
from codetr_cli.report.compared_runs import ComparedRuns, compare_results, comparison_table
from codetr_cli.report.comparison_report import comparison_page
from codetr_cli.report.facts import data_digest
from codetr_cli.report.report_file import StoredReport, read_report
from codetr_cli.report.result_sources import find_source
from codetr_cli.report.stored_numbers import numbers_of_report, report_table
from tests.analysis.run_samples import annotations, detections, inputs
from tests.report.evaluations import write_annotations, write_evaluation
from tests.report.report_samples import analysed, check_page

TRUTH = annotations(30, crowds=1)


def write_run(folder: Path, val: Path, *, seed: int, found: float, truth: Any = TRUTH) -> Path:
    """The folder of an evaluation with its report."""
    table = detections(truth, seed=seed, found=found)
    write_evaluation(folder, truth, table, val)
    analysis, facts = analysed(inputs(truth, table))
    facts = replace(facts, annotations=str(val), data=data_digest(val), detections="detections.json", checkpoint=None)
    stored = json.dumps(report_table(analysis, facts), separators=(",", ":"))
    (folder / "report.json").write_text(stored)
    return folder


@pytest.fixture(scope="module")
def val(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_annotations(tmp_path_factory.mktemp("data") / "val.json", TRUTH)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, val: Path) -> list[Path]:
    """Runs with detections and reports."""
    folder = tmp_path_factory.mktemp("runs")
    return [write_run(folder / str(seed), val, seed=seed, found=found) for seed, found in ((1, 0.6), (2, 0.9))]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, folders: list[Path]) -> list[Path]:
    """The reports without anything else."""
    found = []
    for number, folder in enumerate(folders):
        found.append(tmp_path_factory.mktemp("alone") / f"{number}.json")
        found[-1].write_text((folder / "report.json").read_text())
    return found


def compared(words: list[Path], val: Path | None, **how: Any) -> ComparedRuns:
    sources = [find_source(str(word)) for word in words]
    return compare_results(sources, val and pictured_paths(val), **{"chosen": False, **how})


@pytest.fixture(scope="module")
def expected(folders: list[Path], val: Path) -> dict[str, Any]:
    return comparison_table(compared(folders, val))


def differences(table: dict[str, Any]) -> dict[str, list[float]]:
    """Every difference of two runs with its interval, by its name."""
    pair = table["comparisons"][0]
    named = {
        **pair["metrics"],
        **{f"class {each['name']}": each for each in pair["per_class"]},
        **{f"errors {each['name']}": each["per_100_images"] for each in pair["errors"]},
    }
    return {name: [each["first"], each["second"], *each["interval"]] for name, each in named.items()}


def changed_images(table: dict[str, Any]) -> list[Any]:
    pair = table["comparisons"][0]
    return [pair["better_images"], pair["worse_images"], pair["changed_images"]]


def test_reports_alone_have_the_differences_and_intervals_of_their_detections(alone, expected):
    found = comparison_table(compared(alone, None))
    names, left, right = expected, differences(expected), differences(found)
    assert left.keys() == right.keys()
    for name, values in left.items():
        assert right[name] == pytest.approx(values, abs=2e-4 if name.startswith("class") else 2e-6), name
    assert changed_images(found) == changed_images(expected)
    for key in ("fingerprint", "images", "annotations", "samples"):
        assert found[key] == names[key]
    pair, other = found["comparisons"][0], expected["comparisons"][0]
    assert pair["verdict"] == other["verdict"]
    # What errors cost has no resamples in a report.
    assert [each["AP50_cost"]["difference"] for each in pair["errors"]] == pytest.approx(
        [each["AP50_cost"]["difference"] for each in other["errors"]], abs=2e-6
    )
    assert {each["AP50_cost"]["paired"] for each in pair["errors"]} == {False}


@pytest.mark.parametrize("number", [0, 1])
def test_a_report_alone_is_compared_with_detections(folders, alone, val, expected, number: int):
    words = [alone[0], folders[1]] if number else [folders[0], alone[1]]
    found = comparison_table(compared(words, val))
    for name, values in differences(expected).items():
        assert differences(found)[name] == pytest.approx(values, abs=2e-4)
    assert changed_images(found) == changed_images(expected)


def test_fewer_resamples_are_the_first_ones(folders, alone, val):
    found = [differences(comparison_table(compared(words, val, samples=60))) for words in (folders, alone)]
    for name, values in found[0].items():
        assert found[1][name] == pytest.approx(values, abs=3e-4), name


def test_more_resamples_than_the_report_has_are_reported(folders, alone, val):
    found = compared([folders[0], alone[1]], val, samples=400)
    assert comparison_table(found)["samples"] == 300
    assert "Resamples: 300, as many as the reports have." in found.notes


def test_the_page_has_the_images_that_changed_without_pictures(alone):
    page = comparison_page(compared(alone, None), "codetr compare 0.json 1.json")
    check_page(page)
    assert "B has fewer errors in" in page
    assert "Images are not drawn" in page
    assert "is compared by the numbers of its report" in page


def test_reports_of_earlier_versions_have_no_interval(alone, tmp_path):
    words = []
    for number, path in enumerate(alone):
        table = json.loads(path.read_text())
        table.pop("resamples")
        words.append(tmp_path / f"{number}.json")
        words[-1].write_text(json.dumps(table, separators=(",", ":")))
    found = compared(words, None)
    pair = found.pairs[0]
    assert pair.verdict[0].endswith(", on 30 images; without the detections there is no interval of the difference.")
    assert "The 95 % intervals of the two APs themselves are " in pair.cautions[0]
    own = json.loads(alone[0].read_text())["analysis"]["ap_interval"]
    assert f"{100 * own[0]:.1f} to {100 * own[1]:.1f} (A)" in pair.cautions[0]
    table = comparison_table(found)
    assert table["comparisons"][0]["metrics"]["AP"]["interval"] == [None, None]
    assert {each["conclusion"] for each in table["comparisons"][0]["per_class"]} == {"unclear"}
    page = comparison_page(found, "")
    check_page(page)
    assert "Errors per 100 images" not in page
    for part in ("no interval", "AP50 that errors cost", "The images that changed most are found from the detections"):
        assert part in page


def stored(path: Path, **changes: Any) -> Path:
    """A report with other values of its parts, by "part.name"."""
    table = json.loads(path.read_text())
    for name, value in changes.items():
        part, _, key = name.partition("__")
        table[part][key] = value
    changed = path.with_name("changed.json")
    changed.write_text(json.dumps(table, separators=(",", ":")))
    return changed


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"resamples__fingerprint": "0" * 64}, "they were measured on other images or annotated objects"),
        ({"analysis__is_lvis": True}, "one was scored by the rules of LVIS"),
        ({"facts__images": 29, "resamples": {}}, "they are of 30 and 29 images"),
    ],
)
def test_other_data_are_refused_with_the_reason(alone, folders, val, changes: dict[str, Any], reason: str):
    if "resamples" in changes:
        path = stored(alone[1], **{name: value for name, value in changes.items() if name != "resamples"})
        table = json.loads(path.read_text())
        table["resamples"] = {}
        path.write_text(json.dumps(table, separators=(",", ":")))
    else:
        path = stored(alone[1], **changes)
    for first in (alone[0], folders[0]):
        with pytest.raises(DatasetError, match=f"A and B cannot be compared: {reason}"):
            compared([first, path], val)


def test_other_classes_and_other_files_are_refused(alone, tmp_path):
    table = json.loads(alone[1].read_text())
    table["per_class"][0]["name"] = "square"
    path = tmp_path / "classes.json"
    path.write_text(json.dumps(table, separators=(",", ":")))
    with pytest.raises(DatasetError, match=r"their classes differ \(disc, square\)"):
        compared([alone[0], path], None)
    table = json.loads(alone[1].read_text())
    table["facts"]["data"] = "0" * 16
    table["resamples"] = {}
    path.write_text(json.dumps(table, separators=(",", ":")))
    with pytest.raises(DatasetError, match="they were measured on other annotation files"):
        compared([alone[0], path], None)


@pytest.mark.parametrize(
    "damage",
    [
        lambda table: table["resamples"]["metrics"].pop("AP"),
        lambda table: table["resamples"]["metrics"]["APs"].pop(),
        lambda table: table["resamples"]["classes"].pop(),
        lambda table: table["resamples"]["images"]["missed"].pop(),
        lambda table: table["resamples"]["images"].update(found=["x"] * 30),
        lambda table: table["resamples"].update(metrics=[1]),
        lambda table: table["per_class"][0].pop("AP"),
        lambda table: table["metrics"].pop("AP"),
        lambda table: table["facts"].update(images=None),
        lambda table: table["analysis"].update(ap_interval=[0.1]),
        lambda table: table["metrics"].update(AP50=10**400),
        lambda table: table["metrics"].update(AP=float("inf")),
        lambda table: table["resamples"]["metrics"].update(AP=[7.0] * 300),
        lambda table: table["resamples"].update(metrics={"AP": []}, classes=[[]] * len(table["per_class"])),
        lambda table: table["resamples"].pop("fingerprint"),
    ],
)
def test_damaged_numbers_are_an_error(alone, damage):
    report = read_report(alone[0])
    table = json.loads(alone[0].read_text())
    damage(table)
    broken = StoredReport(
        report.path, table["facts"], table["metrics"], table["per_class"], table["analysis"], table["resamples"]
    )
    with pytest.raises(DatasetError, match=r"the numbers of the report .* are damaged"):
        numbers_of_report(broken)


def test_what_is_stored_is_what_is_read(alone, folders):
    numbers = numbers_of_report(read_report(alone[0]))
    assert numbers.images is not None
    assert numbers.images.file_names == TRUTH.file_names
    assert np.array_equal(numbers.images.image_ids, TRUTH.image_ids)
    assert numbers.class_samples is not None
    assert numbers.class_samples.shape == (300, 3)
    assert set(numbers.samples) == {"AP", "AP50", "APs", "APm", "APl"}
