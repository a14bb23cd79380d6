"""`codetr eval --report`: its file, from a checkpoint and from detections, and what is never replaced."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from codetr_cli.commands._options import use_shown_spelling
from codetr_cli.errors import ResourceError
from codetr_cli.report.report_file import read_report
from tests.forked import run_forked
from tests.inference.fakes import write_run
from tests.report.report_samples import check_page


@pytest.fixture
def run(tmp_path: Path, tiny_settings, monkeypatch) -> Path:
    """A run folder in the current directory."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs/tiny/1", tiny_settings, "last")
    return Path("runs/tiny/1")


def perfect(data: Path, path: Path) -> Path:
    annotations = json.loads((data / "annotations/instances_val2017.json").read_text())["annotations"]
    keys = ("image_id", "category_id", "bbox")
    path.write_text(json.dumps([{**{key: each[key] for key in keys}, "score": 0.9} for each in annotations]))
    return path


def test_an_evaluation_has_its_report_beside_the_metrics(codetr, run, tiny_coco):
    ran = codetr("eval", run, "--report", "--data", tiny_coco, "--json")
    assert ran.code == 0, ran.err
    folder = run / "eval/last/val"
    assert ran.json["report"] == {"html": str(folder / "report.html"), "json": str(folder / "report.json")}
    check_page((folder / "report.html").read_text())
    stored = read_report(folder / "report.html")
    assert stored.metrics["AP"] == ran.json["AP"]
    assert stored.facts["weights"] == ran.json["weights"]
    assert stored.detections_path == folder / "detections.json"
    assert stored.facts["command"] == f"codetr eval {run} --report --data {tiny_coco} --json"
    assert stored.facts["speed"]["analysis_seconds"] > 0
    again = codetr("eval", run, "--report", "--data", tiny_coco, "--json", "--force")
    assert again.json["report"] == ran.json["report"]


def test_a_file_of_detections_has_a_report_under_a_given_name(codetr, tiny_coco, tmp_path):
    found = perfect(tiny_coco, tmp_path / "found.json")
    words = ("eval", "--detections", found, "--data", tiny_coco, "--json", "--report")
    page = tmp_path / "new" / "mine.html"
    ran = codetr(*words, page)
    assert ran.code == 0, ran.err
    assert ran.json["report"] == {"html": str(page), "json": str(page.with_suffix(".json"))}
    assert read_report(page).detections_path == found
    taken = codetr(*words, page)
    assert (taken.code, "--force" in taken.err + taken.out) == (2, True)
    assert codetr(*words, page, "--force").code == 0
    beside = codetr(*words)
    assert beside.json["report"]["html"] == str(tmp_path / "report.html")
    assert codetr(*words).json["report"]["html"] == str(tmp_path / "report_2.html")
    elsewhere = codetr(*words, "--out", tmp_path / "elsewhere")
    assert elsewhere.json["report"]["html"] == str(tmp_path / "elsewhere" / "report.html")
    assert read_report(tmp_path / "elsewhere" / "report.html").detections_path == found


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--out", "there"], "--out there is for a report"),
        (["--out", "there", "--report", "mine.html"], "--out there is for a report"),
        (["--report", "mine.txt"], "names of reports end with .html"),
        *((words, f"{words[0]} is for a checkpoint") for words in (["--tta"], ["--batch", "2"], ["--head", "roi"])),
    ],
)
def test_options_that_a_file_of_detections_would_ignore_are_refused(codetr, tiny_coco, tmp_path, words, reason):
    found = perfect(tiny_coco, tmp_path / "found.json")
    ran = codetr("eval", "--detections", found, "--data", tiny_coco, *words)
    assert (ran.code, reason in ran.err) == (2, True), ran.err


def test_a_page_of_the_user_is_found_before_the_evaluation(codetr, run, tiny_coco, tmp_path):
    (tmp_path / "mine.html").write_text("mine")
    ran = codetr("eval", run, "--report", "mine.html", "--data", tiny_coco, "--force")
    assert ran.code == 2
    assert "never replaced" in ran.err
    assert not (run / "eval").exists()
    assert (tmp_path / "mine.html").read_text() == "mine"


def test_the_evaluation_is_kept_where_its_report_cannot_be_written(codetr, run, tiny_coco, monkeypatch):
    def fail(*args: object, **more: object) -> None:
        raise ResourceError("no space left")

    monkeypatch.setattr("codetr_cli.report.job.write_report", fail)
    ran = codetr("eval", run, "--report", "--data", tiny_coco, "--json")
    assert ran.code == 5
    assert (ran.json["report"], ran.json["exit_code"]) == (None, 5)
    assert "no space left" in ran.json["error"]
    assert (run / "eval/last/val/metrics.json").is_file()


def test_several_processes_write_one_report(run, tiny_coco):
    words = ("eval", run, "--report", "--data", tiny_coco, "--json", "--procs", "2", "--device", "cpu")
    ran = run_forked("-m", "codetr_cli", *words)
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert read_report(Path(result["report"]["html"])).metrics["AP"] == result["AP"]


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["eval", "--report", "runs/x"], ["eval", "--report=", "runs/x"]),
        (["eval", "runs/x", "--report"], ["eval", "runs/x", "--report="]),
        (["eval", "--report", "a.HTML", "runs/x"], ["eval", "--report", "a.HTML", "runs/x"]),
        (["eval", "--report=a.html"], ["eval", "--report=a.html"]),
        (["train", "--report", "x"], ["train", "--report", "x"]),
    ],
)
def test_the_name_of_a_report_may_be_missing(words, shown):
    assert use_shown_spelling(words) == shown
