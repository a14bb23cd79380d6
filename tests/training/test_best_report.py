"""The report of a run: of its best evaluation, at the end, and never in the way of the training."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from codetr_cli.evaluation.evaluator import EvalResult
from codetr_cli.evaluation.protocol import Protocol
from codetr_cli.evaluation.scoring import score_detections
from codetr_cli.report.report_file import read_report
from codetr_cli.runs.folder import RunFolder
from codetr_cli.training.best_report import BestReport
from tests.report.report_samples import sample_inputs

PROTOCOL = Protocol(
    views="single scale 96x160",
    suppression="no NMS",
    max_detections=100,
    head="decoder",
    precision="fp32",
    split="val",
    images=12,
    metrics="COCO box",
    scorer="hotcoco",
    convention="AP at 100",
)


@pytest.fixture
def report(tmp_path: Path, tiny_settings) -> tuple[BestReport, EvalResult, RunFolder]:
    """A report, a result of 12 images, and a run folder without a checkpoint."""
    inputs = sample_inputs(tmp_path, ["a", "b"])
    scores = score_detections(inputs.ground_truth, inputs.detections, where="val.json")
    result = EvalResult(
        **vars(scores), detections=inputs.detections, protocol=PROTOCOL, image_ids=inputs.image_ids.tolist()
    )
    request = SimpleNamespace(
        settings=tiny_settings, ground_truth=inputs.ground_truth, annotations_path=inputs.paths.annotations_path
    )
    folder = RunFolder(tmp_path / "runs" / "1")
    folder.path.mkdir(parents=True)
    return BestReport(request, inputs.paths), result, folder


def test_the_report_is_of_the_best_evaluation(report, monkeypatch, caplog) -> None:
    best, result, folder = report
    caplog.set_level(logging.INFO, logger="codetr_cli")
    monkeypatch.setattr("codetr_cli.training.best_report.content_id", lambda path: "ab" * 32)
    best.add(result)
    best.keep()
    best.add(replace(result, metrics={**result.metrics, "AP": 0.0}))
    best.write(folder)
    stored = read_report(folder.path / "report.html")
    assert stored.metrics["AP"] == pytest.approx(result.metrics["AP"], abs=1e-6)
    assert stored.facts["weights"] == "ab" * 32
    assert stored.facts["command"] == f"codetr eval {folder.path} --report"
    best.write(folder)  # a run that was extended replaces it
    caplog.clear()
    BestReport(None, None).write(folder)  # and keeps it where no evaluation is better
    assert caplog.text == ""


def test_a_report_of_an_earlier_checkpoint_is_named(report, monkeypatch, caplog) -> None:
    best, result, folder = report
    monkeypatch.setattr("codetr_cli.training.best_report.content_id", lambda path: "ab" * 32)
    best.add(result)
    best.keep()
    best.write(folder)
    monkeypatch.setattr("codetr_cli.training.best_report.content_id", lambda path: "cd" * 32)  # of a killed start
    with caplog.at_level(logging.INFO, logger="codetr_cli"):
        BestReport(best._request, None).write(folder)
    assert "report.html is of another checkpoint" in caplog.text


def test_its_command_names_the_data(report, caplog) -> None:
    best, _, folder = report
    data = {"root": "my data", "extra_roots": ("more",), "format": "coco"}
    settings = best._request.settings.model_copy(update={"data": best._request.settings.data.model_copy(update=data)})
    best._request.settings = settings
    with caplog.at_level(logging.INFO, logger="codetr_cli"):
        best.write(folder)
    assert f"codetr eval {folder.path} --data 'my data' --data more --set data.format=coco --report" in caplog.text


def test_without_an_evaluation_in_this_process_it_says_how_to_make_one(report, caplog) -> None:
    best, _, folder = report
    with caplog.at_level(logging.INFO, logger="codetr_cli"):
        best.write(folder)
    assert f"codetr eval {folder.path} --report" in caplog.text
    assert not (folder.path / "report.html").exists()


def test_an_error_is_logged_and_a_page_of_the_user_is_kept(report, caplog, monkeypatch) -> None:
    best, result, folder = report
    monkeypatch.setattr("codetr_cli.training.best_report.content_id", lambda path: None)
    (folder.path / "report.html").write_text("mine")
    best.add(result)
    best.keep()
    best.write(folder)
    assert "the report could not be written" in caplog.text
    assert (folder.path / "report.html").read_text() == "mine"
