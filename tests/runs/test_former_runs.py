"""A run folder and a checkpoint of version 0.1.0 are continued and evaluated with the same numbers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.conftest import REPOSITORY, Ran
from tests.runs.weight_sums import machine, weight_sums

SAMPLE = REPOSITORY / "tests" / "samples" / "run_0_1_0"
TOLERANCE = 2e-3  # of sums, losses and scores after 12 steps on another CPU or with another PyTorch
SAME_MACHINE = 1e-6  # of losses there; ten times as much of sums: AdamW turns rounding of zero gradients into steps
"""Later versions add in another order. Their random numbers are the same, else losses differ by 1e-3."""


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    table: dict[str, Any] = json.loads((SAMPLE / "expected.json").read_text())
    return table


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return shutil.copytree(SAMPLE / "coco", tmp_path / "moved")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return shutil.copytree(SAMPLE / "run", tmp_path / "run")


def continued(codetr: Callable[..., Ran], run: Path, data: Path) -> Ran:
    return codetr("train", "--preset", run / "settings.toml", "--data", data, "--device", "cpu", "--run", run)


def test_a_former_run_ends_with_the_same_weights(
    codetr: Callable[..., Ran], run: Path, coco: Path, expected: dict[str, Any]
):
    ran = continued(codetr, run, coco)
    assert ran.code == 0, ran.err
    text = " ".join((ran.out + ran.err).split())
    assert "its data has moved from /tmp/oldrun/coco/annotations/instances_train2017.json" in text
    assert f"to {coco}/annotations/instances_train2017.json" in text
    assert json.loads((run / "origin.json").read_text())["train_annotations"].startswith(str(coco))
    weights = load_file(run / "checkpoints" / "last" / "model.safetensors")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = {str(line["step"]): line["loss"] for line in lines if line["kind"] == "train"}
    at_home = machine() == expected["machine"]
    assert losses == pytest.approx(expected["losses"], rel=SAME_MACHINE if at_home else TOLERANCE)
    tolerance = 10 * SAME_MACHINE if at_home else TOLERANCE
    sums = weight_sums(weights)
    assert sums.keys() == expected["weight_sums"].keys()
    for name, (total, magnitude) in expected["weight_sums"].items():
        assert sums[name] == pytest.approx([total, magnitude], abs=tolerance * max(magnitude, 1.0)), name


def test_a_former_checkpoint_is_evaluated_alike(
    codetr: Callable[..., Ran], run: Path, coco: Path, expected: dict[str, Any]
):
    checkpoint = run / "checkpoints" / "last" / "model.safetensors"
    ran = codetr("eval", checkpoint, "--data", coco, "--device", "cpu", "--json")
    assert ran.code == 0, ran.err
    assert {name: ran.json[name] for name in expected["eval"]} == pytest.approx(expected["eval"], abs=TOLERANCE)
    detections = json.loads((run / "eval" / "last" / "val" / "detections.json").read_text())
    if machine() == expected["machine"]:  # elsewhere, detections of almost equal scores may change places
        for found, former in zip(detections, expected["detections"], strict=True):
            assert found.keys() == former.keys()
            assert (found["image_id"], found["category_id"]) == (former["image_id"], former["category_id"])
            assert found["bbox"] == pytest.approx(former["bbox"], rel=0, abs=1.5e-4)  # the last digit written
    scores, expected_scores = ([found["score"] for found in table] for table in (detections, expected["detections"]))
    assert scores == pytest.approx(expected_scores, abs=TOLERANCE)


def test_a_former_run_refuses_other_data(codetr: Callable[..., Ran], run: Path, coco: Path):
    path = coco / "annotations" / "instances_train2017.json"
    table = json.loads(path.read_text())
    table["annotations"][0]["bbox"][0] += 1
    path.write_text(json.dumps(table))
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    ran = continued(codetr, run, coco)
    assert ran.code == 2, ran.err
    text = " ".join(ran.err.split())
    assert f"train_annotations: /tmp/oldrun/coco/annotations/instances_train2017.json there, {path} now" in text
    assert f"the content of train_annotations ({path}) has changed" in text
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before
