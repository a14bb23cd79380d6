"""`codetr card`: where it is written, what it is made from, and what is never replaced."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from codetr_cli.config.schema import Settings
from codetr_cli.inference.hub.findings import REPORT_KIND
from codetr_cli.runs.folder import RunFolder, RunInputs
from codetr_cli.runs.process_record import write_process
from codetr_cli.weights.checkpoint import content_id
from tests.conftest import Ran
from tests.inference.fakes import write_checkpoint, write_run


@pytest.fixture
def run(tmp_path: Path, tiny_settings: Settings) -> Path:
    write_run(tmp_path / "runs/cells/1", tiny_settings, "best")
    return tmp_path / "runs/cells/1"


def evaluated(run: Path) -> None:
    """Adds what `codetr eval --report` writes."""
    weights = content_id(run / "checkpoints/best/model.safetensors")
    folder = run / "eval/best/val"
    folder.mkdir(parents=True)
    metrics = {"AP": 0.4213, "AP50": 0.61}
    (folder / "metrics.json").write_text(json.dumps({**metrics, "images": 60, "weights": weights}))
    analysis: dict[str, Any] = {
        "ap_interval": [0.391, 0.448],
        "threshold": 0.35,
        "errors": {"delta_ap": {"missed": 0.12, "wrong class": 0.03}},
    }
    table = {"kind": REPORT_KIND, "facts": {"weights": weights}, "metrics": metrics, "analysis": analysis}
    (folder / "report.json").write_text(json.dumps(table))


def test_the_card_of_a_run(codetr: Callable[..., Ran], run: Path):
    evaluated(run)
    line = {"kind": "train", "step": 1, "epoch": 0, "images_per_s": 0.001, "energy_j": 7.2e6}
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    write_process(run, processes=8, device="NVIDIA H200")
    ran = codetr("card", run, "--license", "MIT")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == f"model card: {run / 'README.md'}\n"
    text = (run / "README.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert (head["license"], head["model-index"][0]["name"]) == ("mit", "cells/1")
    assert "# cells/1" in text
    assert "| AP | IoU 0.50:0.95 | 42.1 |" in text
    assert "95 % interval of the box AP: 39.1 to 44.8" in text
    assert "missed objects (12.0), wrong classes (3.0)" in text
    assert "0.35 had the best F1-score" in text
    assert "The training took about 33 minutes on 8 x NVIDIA H200, without interruptions." in text
    assert "Its GPUs used 2 kWh" in text


def test_what_is_not_known_is_named(codetr: Callable[..., Ran], run: Path):
    ran = codetr("card", run)
    assert ran.code == 0
    assert "no metrics" in ran.err
    assert "--license" in ran.err
    text = (run / "README.md").read_text()
    assert "No evaluation of these weights is known." in text
    assert "How long the training took is not recorded." in text
    assert "Weights: unknown" in text


def test_the_same_command_renews_its_card_but_no_other_file(codetr: Callable[..., Ran], run: Path):
    path = run / "README.md"
    assert codetr("card", run).code == 0
    before = path.read_text()
    assert codetr("card", run, "--name", "Cells").code == 0
    assert path.read_text() != before
    edited = path.read_text() + "\nEdited.\n"
    path.write_text(edited)
    for words in ((), ("--force",)):
        ran = codetr("card", run, *words)
        assert ran.code == 2
        assert "never replaced" in ran.err
    assert path.read_text() == edited


@pytest.mark.parametrize("words", [("--out", "-"), ()])
def test_a_card_is_printed(codetr: Callable[..., Ran], tmp_path: Path, tiny_settings: Settings, words: tuple[str, ...]):
    """A checkpoint that is in no run has no place of its own for it."""
    path = write_checkpoint(tmp_path / "cells.safetensors", tiny_settings)
    ran = codetr("card", path, *words)
    assert ran.code == 0
    assert ran.out.startswith("---\n")
    assert "# cells.safetensors" in ran.out
    assert [file.name for file in tmp_path.iterdir()] == ["cells.safetensors"]


def test_json_and_a_file_elsewhere(codetr: Callable[..., Ran], run: Path, tmp_path: Path):
    evaluated(run)
    ran = codetr("card", run, "--out", tmp_path / "card.md", "--license", "MIT", "--json")
    assert ran.code == 0
    assert ran.json["path"] == str(tmp_path / "card.md")
    assert ran.json["card"] == (tmp_path / "card.md").read_text()
    assert ran.json["ap_interval"] == [0.391, 0.448]
    assert ran.json["metrics"]["AP"] == 0.4213
    assert not (run / "README.md").exists()


def test_what_has_no_card(codetr: Callable[..., Ran], tmp_path: Path):
    assert codetr("card", tmp_path / "none.safetensors").code == 4
    assert codetr("card", "--out", "x.md").code == 2


def test_a_card_does_not_make_a_run_foreign(codetr: Callable[..., Ran], run: Path, tiny_settings: Settings):
    folder = RunFolder(run)
    folder.open(tiny_settings, RunInputs(train_annotations="train.json"))
    assert codetr("card", run).code == 0
    assert folder.status() == "interrupted"
