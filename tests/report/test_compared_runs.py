from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from codetr_cli.errors import DatasetError
from codetr_cli.report.compared_inputs import pictured_paths
from codetr_cli.report.compared_runs import ComparedRuns, compare_results, comparison_table, letters, steps
from codetr_cli.report.result_sources import find_source
from tests.analysis.run_samples import annotations, detections
from tests.report.evaluations import write_annotations, write_evaluation

TRUTH = annotations(40)


def compared(folders: list[Path], val: Path, **how: object) -> ComparedRuns:
    sources = [find_source(str(folder)) for folder in folders]
    return compare_results(sources, pictured_paths(val), **{"chosen": False, "samples": 60, **how})


@pytest.fixture
def val(tmp_path: Path) -> Path:
    return write_annotations(tmp_path / "val.json", TRUTH)


@pytest.fixture
def folders(tmp_path: Path, val: Path) -> list[Path]:
    return [
        write_evaluation(tmp_path / name, TRUTH, detections(TRUTH, seed=seed, found=found), val)
        for name, seed, found in (("a", 1, 0.6), ("b", 2, 0.9), ("c", 3, 0.6))
    ]


def test_all_are_compared_with_the_first(folders, val):
    done: list[int] = []
    found = compared(folders, val, done=lambda: done.append(1))
    assert len(done) == steps(3)
    assert found.names == ["A", "B", "C"]
    assert found.pairs[0].verdict[0].startswith("B is better than A by ")
    assert found.pairs[1].metrics["AP"].first == found.pairs[0].metrics["AP"].first
    assert (found.images, found.annotations) == (40, str(val))
    assert (found.notes, found.warnings, found.protocol) == ([], [], [[], []])


def test_the_table_is_json_with_every_number(folders, val):
    table = comparison_table(compared(folders, val))
    assert json.loads(json.dumps(table, allow_nan=False)) == table
    assert [run["name"] for run in table["runs"]] == ["A", "B", "C"]
    assert (table["images"], table["objects"], table["samples"]) == (40, len(TRUTH.labels), 60)
    first = table["comparisons"][0]
    assert (first["first"], first["second"], first["conclusion"]) == ("A", "B", "better")
    ap = first["metrics"]["AP"]
    assert ap["difference"] == pytest.approx(ap["second"] - ap["first"], abs=2e-6)
    assert ap["interval"][0] <= ap["difference"] <= ap["interval"][1]
    assert {each["name"] for each in first["per_class"]} == set(TRUTH.class_names)
    assert len(first["errors"]) == 6
    assert set(first["changed_images"][0]) == {"image_id", "file_name", "first", "second"}
    assert "Of 3 classes" in first["cautions"][-1]
    for pair in table["comparisons"]:  # differences that are zero or missing are no sentinels
        for each in pair["per_class"]:
            assert isinstance(each["difference"], float)


def test_protocols_that_differ_are_named(folders, val):
    record = json.loads((folders[1] / "metrics.json").read_text())
    record["protocol_parts"]["precision"] = "bf16"
    (folders[1] / "metrics.json").write_text(json.dumps(record))
    (folders[2] / "metrics.json").unlink()
    found = compared(folders, val)
    assert found.protocol == [
        ["precision: fp32 (A), bf16 (B)"],
        ["how the detections of C were made is not recorded"],
    ]
    assert comparison_table(found)["comparisons"][0]["protocol_differences"] == found.protocol[0]


def test_files_that_changed_since_the_evaluation_are_reported(folders, val):
    record = json.loads((folders[1] / "metrics.json").read_text())
    (folders[1] / "metrics.json").write_text(json.dumps({**record, "AP": record["AP"] + 0.01}))
    found = compared(folders, val)
    assert len(found.warnings) == 1
    assert found.warnings[0].startswith("B: its evaluation recorded AP 0.")
    assert "one of the files has changed" in found.warnings[0]
    # On other annotations than those of the evaluation, another AP is no surprise.
    other = write_annotations(val.with_name("other.json"), replace(TRUTH, area=TRUTH.area))
    assert compared(folders, other, chosen=True).warnings == []


def test_runs_on_other_images_are_compared_on_the_common_ones(folders, val):
    record = json.loads((folders[1] / "metrics.json").read_text())
    (folders[1] / "metrics.json").write_text(json.dumps({**record, "images": 30}))
    found = compared(folders, val)
    assert found.images == 30
    assert found.notes == [
        "Not all were evaluated on the same images (A 40, B 30, C 40): compared are the 30 common ones."
    ]


def test_runs_on_other_data_are_not_compared(tmp_path, folders, val):
    other_truth = annotations(40, seed=9)
    other = write_annotations(tmp_path / "other.json", other_truth)
    folder = write_evaluation(tmp_path / "d", other_truth, detections(other_truth, seed=1), other)
    with pytest.raises(DatasetError, match="the annotations of A and B differ in 4"):
        compared([folders[0], folder], val)


def test_names_are_letters():
    assert letters(3) == ["A", "B", "C"]
    assert letters(28)[-2:] == ["AA", "AB"]
