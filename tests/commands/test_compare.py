from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.analysis.run_samples import annotations, detections
from tests.inference.fakes import write_run
from tests.report.evaluations import write_annotations, write_evaluation

TRUTH = annotations(40)


@pytest.fixture
def val(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_annotations(tmp_path / "data/val.json", TRUTH)


@pytest.fixture
def sides(val: Path) -> tuple[Path, Path]:
    """Two folders of evaluations, the second better."""
    made = [(Path("a"), 1, 0.5), (Path("b"), 2, 0.9)]
    first, second = (
        write_evaluation(folder, TRUTH, detections(TRUTH, seed=seed, found=found), val) for folder, seed, found in made
    )
    return first, second


def test_the_verdict_comes_first_and_everything_else_after(codetr, sides):
    ran = codetr("compare", *sides, "--samples", 60)
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert lines[:2] == ["A: a", "B: b"]
    assert lines[3].startswith("B is better than A by ")
    assert lines[3].endswith(", on 40 images.")
    for part in (
        "AP small",
        "AP of classes, in points (all)",
        "ring",
        "Of 3 classes",
        "loose box",
        "Images that changed",
    ):
        assert part in ran.out
    assert "B has fewer errors in " in ran.out


def test_json_is_one_object(codetr, sides):
    found = codetr("compare", *sides, "--samples", 60, "--json").json
    assert found["comparisons"][0]["conclusion"] == "better"
    assert found["comparisons"][0]["verdict"].startswith("B is better than A")
    assert (found["images"], found["html"]) == (40, None)
    assert [run["kind"] for run in found["runs"]] == ["evaluation"] * 2


def test_the_other_order_is_the_other_sign(codetr, sides):
    found = codetr("compare", *sides[::-1], "--json").json["comparisons"][0]
    back = codetr("compare", *sides, "--json").json["comparisons"][0]
    assert found["conclusion"] == "worse"
    for name, each in found["metrics"].items():
        assert each["difference"] == pytest.approx(-back["metrics"][name]["difference"])
        low, high = back["metrics"][name]["interval"]
        assert each["interval"] == pytest.approx([-high, -low], abs=2e-6)


def test_a_copy_has_no_difference(codetr, sides):
    shutil.copytree("a", "copy")
    ran = codetr("compare", "a", "copy", "--samples", 50)
    assert "No difference: A and B have the same AP" in ran.out
    assert "Both have exactly the same detections." in ran.out
    assert "warning" not in ran.err


def test_three_results_have_an_overview(codetr, sides, val):
    write_evaluation(Path("c"), TRUTH, detections(TRUTH, seed=5, found=0.5), val)
    ran = codetr("compare", *sides, "c", "--samples", 50)
    assert ran.code == 0, ran.err
    assert "AP of all, in points" in ran.out
    assert "C beside A, in points" in ran.out
    assert ran.out.count("The interval is about the choice of the images.") == 1


def test_the_page_is_written_once_and_replaced_only_with_force(codetr, sides):
    page = Path("pages/compared.html")
    words = ("compare", *sides, "--samples", 50, "--html", page)
    ran = codetr(*words)
    assert ran.code == 0, ran.err
    assert f"Page: {page}" in ran.out
    text = page.read_text()
    assert "B is better than A" in text
    assert "codetr compare a b --samples 50 --html pages/compared.html" in text
    assert codetr(*words).code == 2
    assert codetr(*words, "--force").code == 0
    page.write_text("mine")
    ran = codetr(*words, "--force")
    assert (ran.code, page.read_text()) == (2, "mine")
    ran = codetr("compare", *sides, "--html", "page.txt")
    assert (ran.code, "ends with .html" in ran.err) == (2, True)


def test_a_page_that_cannot_be_written_does_not_cost_the_numbers(codetr, sides):
    Path("file").write_text("x")
    ran = codetr("compare", *sides, "--samples", 50, "--html", "file/page.html")
    assert ran.code == 5
    assert "file/page.html" in ran.err
    assert "B is better than A" in ran.out


def test_detections_of_any_tool_need_the_data(codetr, sides, val):
    Path("theirs.json").write_text(detections(TRUTH, seed=7).to_json())
    Path("others.json").write_text(detections(TRUTH, seed=8).to_json())
    ran = codetr("compare", "theirs.json", "others.json")
    assert (ran.code, "--data" in ran.err) == (3, True)
    assert codetr("compare", "theirs.json", "others.json", "--ann", val, "--samples", 50).code == 0
    # Beside an evaluation, its annotations are known.
    ran = codetr("compare", "a", "theirs.json", "--samples", 50, "--json")
    assert ran.code == 0
    assert ran.json["comparisons"][0]["protocol_differences"] == ["how the detections of B were made is not recorded"]
    assert "how the detections of B were made is not recorded" in ran.err


def test_reports_without_detections_are_compared_by_their_numbers(codetr, sides):
    for side in sides:
        ran = codetr(
            "eval", "--detections", side / "detections.json", "--ann", "data/val.json", "--report", side / "r.html"
        )
        assert ran.code == 0, ran.err
    words = ["compare", "a/r.html", "b/r.json"]
    expected = codetr("compare", *sides, "--json").json["comparisons"][0]
    for side in sides:
        (side / "detections.json").unlink()
    Path("data/val.json").unlink()
    ran = codetr(*words)
    assert ran.code == 0, ran.err
    assert "a/r.html is compared by the numbers of its report, as its detections are not there." in ran.out
    assert expected["verdict"] in ran.out
    assert "B has fewer errors in" in ran.out
    found = codetr(*words, "--json", "--html", "page.html").json
    assert found["comparisons"][0]["metrics"]["AP"] == expected["metrics"]["AP"]
    assert [run["detections"] for run in found["runs"]] == [None, None]
    assert [run["report"] for run in found["runs"]] == ["a/r.json", "b/r.json"]
    assert "Images are not drawn" in Path("page.html").read_text()


def test_annotations_of_the_command_replace_those_that_are_gone(codetr, sides, val):
    moved = val.rename("moved.json")
    ran = codetr("compare", *sides)
    assert (ran.code, "which is not there: give the data with --data or --ann" in ran.err) == (3, True)
    assert codetr("compare", *sides, "--ann", moved, "--samples", 50).code == 0


def test_wrong_usage(codetr, sides):
    ran = codetr("compare", "a")
    assert (ran.code, "give at least two results" in ran.err) == (2, True)
    ran = codetr("compare", "a", "a")
    assert (ran.code, "are the same results" in ran.err) == (2, True)
    ran = codetr("compare", "a", "a/detections.json")
    assert (ran.code, "are the same results" in ran.err) == (2, True)
    ran = codetr("compare", "a", "nowhere.json")
    assert (ran.code, "there is no file nowhere.json" in ran.err) == (2, True)
    assert codetr("compare", *sides, "--samples", 5).code == 2
    assert codetr("compare", *sides, "--ann", "x.json", "--data", "y").code == 2


def test_results_of_other_data_are_an_error(codetr, sides, tmp_path):
    other = annotations(40, seed=3)
    where = write_annotations(tmp_path / "other/val.json", other)
    write_evaluation(Path("c"), other, detections(other, seed=1), where)
    ran = codetr("compare", "a", "c", "--json")
    assert ran.code == 3
    assert "the annotations of A and B differ in" in ran.json["error"]


def test_names_cannot_command_the_terminal(codetr, val):
    truth = annotations(10, classes=("[red]x[/red]", "\x1b[31m", "<b>"))
    where = write_annotations(val.with_name("names.json"), truth)
    for name, seed in (("n\x1b[1m", 1), ("m", 2)):
        write_evaluation(Path(name), truth, detections(truth, seed=seed), where)
    ran = codetr("compare", "n\x1b[1m", "m", "--samples", 50, "--per-class")
    assert ran.code == 0, ran.err
    assert "\x1b" not in ran.out
    assert "[red]x[/red]" in ran.out
    assert "A: n\\x1b[1m" in ran.out


def test_checkpoints_that_are_not_evaluated_are_evaluated_once(codetr, tmp_path, tiny_settings, tiny_coco, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("1", "2"):
        write_run(tmp_path / "runs" / name, tiny_settings, "last")
    words = ("compare", "runs/1", "runs/2", "--data", tiny_coco, "--samples", 50, "--json")
    ran = codetr(*words)
    assert ran.code == 0, ran.err
    assert ran.err.count("evaluating it now") == 2
    made = Path("runs/1/eval/last/val/detections.json")
    assert ran.json["runs"][0]["detections"] == str(made)
    before = made.stat().st_mtime_ns
    again = codetr(*words)
    assert "evaluating" not in again.err
    assert made.stat().st_mtime_ns == before
    assert again.json["comparisons"] == ran.json["comparisons"]
    # Without --data, each stands for the evaluation that it has, and another is evaluated on the same data.
    write_run(tmp_path / "runs/3", tiny_settings, "last")
    ran = codetr("compare", "runs/1", "runs/3", "--samples", 50, "--json")
    assert ran.code == 0, ran.err
    assert Path("runs/3/eval/last/val/metrics.json").is_file()
    record = json.loads(Path("runs/3/eval/last/val/metrics.json").read_text())
    assert record["annotations"] == str(tiny_coco / "annotations/instances_val2017.json")
    assert ran.json["comparisons"][0]["protocol_differences"] == []


def test_the_default_data_set_of_a_file_does_not_replace_what_is_recorded(codetr, sides):
    Path("codetr.toml").write_text('data = "nowhere"\n')
    assert codetr("compare", *sides, "--samples", 50).code == 0
