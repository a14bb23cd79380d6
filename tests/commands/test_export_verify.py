"""`codetr export --verify` and `--verify-only`: what is printed and written, and how the command ends."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from codetr_cli.export import job
from codetr_cli.export import verify as module
from codetr_cli.export.tolerances import TOLERANCES
from codetr_cli.export.verify import AccuracyPair, CaseResult, VerifyReport
from tests.conftest import REPOSITORY
from tests.document_blocks import blocks
from tests.inference.fakes import write_checkpoint, write_run

CASE = CaseResult(
    shape="landscape",
    input_size=(96, 160),
    batch=1,
    images=3,
    detections=40,
    score_max=2e-6,
    score_mean=1e-7,
    box_max=0.001,
    box_mean=0.0001,
    mask_iou=None,
    missing=0,
    extra=1,
    outliers=0,
    near_ties=0,
    passed=True,
)
EQUAL = VerifyReport(
    verdict="equal",
    findings=[],
    checkpoint="network.safetensors",
    file="network.onnx",
    engine={"library": "ONNX Runtime 1", "provider": "CPU", "precision": "fp32", "elsewhere": 2, "nodes": 9},
    precision="fp32",
    tolerance=TOLERANCES["fp32"],
    cases=[CASE],
    latency_ms={"checkpoint": 20.0, "file": 10.0},
    accuracy=AccuracyPair(5, 40.0, 39.95, 0.1),
    images=[],
)


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_settings, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(job.WRITERS, "onnx", lambda request: request.path.write_bytes(b"graph"))
    return write_checkpoint(tmp_path / "network.safetensors", tiny_settings)


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What was verified, and the report to give back under "report"."""
    taken: dict[str, Any] = {"report": EQUAL}

    def verify(source: str, file: Path, **how: Any) -> VerifyReport:
        taken.update(source=source, file=file, **how)
        report: VerifyReport = taken["report"]
        return report

    monkeypatch.setattr(module, "verify", verify)
    return taken


def test_an_export_that_is_equal(codetr, checkpoint, verified):
    ran = codetr("export", checkpoint, "--verify", "--device", "cpu", "--set", "test.nms=none")
    assert ran.code == 0, ran.err
    assert ["landscape", "96x160", "1", "40"] in [line.split()[:4] for line in ran.out.splitlines()]
    assert "Mean differences are at most 1e-07 of score and 1e-04 pixels" in ran.out
    assert "10.0 ms an image by the file (ONNX Runtime 1, CPU, fp32, 2 of 9 nodes on the CPU), 20.0 ms" in ran.out
    assert "AP on 5 images: 39.95 by the file, 40.00 by the checkpoint (-0.05)" in ran.out
    assert "Equal for fp32: 40 detections" in ran.out
    assert verified["file"] == checkpoint.with_suffix(".onnx")
    assert verified["overrides"] == ["test.nms=none"]
    figures = json.loads(checkpoint.with_suffix(".verify.json").read_text(encoding="utf-8"))
    assert (figures["verdict"], figures["passed"], figures["cases"][0]["extra"]) == ("equal", True, 1)
    assert figures["accuracy"]["difference"] == pytest.approx(-0.05)


def test_a_file_that_differs_is_a_bad_checkpoint(codetr, checkpoint, verified):
    verified["report"] = replace(EQUAL, verdict="different", findings=["Classes differ."])
    ran = codetr("export", checkpoint, "--verify", "--json")
    assert ran.code == 4
    assert "Classes differ." in ran.err
    found = json.loads(ran.out)
    assert (found["verify"]["verdict"], found["exit_code"]) == ("different", 4)
    assert found["report"] == str(checkpoint.with_suffix(".verify.json"))
    assert checkpoint.with_suffix(".onnx").exists()


def test_nothing_compared_is_no_success(codetr, checkpoint, verified):
    verified["report"] = replace(EQUAL, verdict="nothing compared", cases=[])
    ran = codetr("export", checkpoint, "--verify")
    assert ran.code == 4
    assert "Nothing was compared" in ran.err
    assert "Equal" not in ran.out


def test_a_file_that_is_there(codetr, checkpoint, verified, tiny_coco):
    file = checkpoint.with_name("other.onnx")
    file.write_bytes(b"graph")
    words = ["--verify-only", file, "--data", tiny_coco, "--split", "train", "--max-images", "3"]
    assert codetr("export", checkpoint, *words).code == 0
    assert codetr("export", checkpoint, *words).code == 0  # its own report is replaced
    assert verified["file"] == file
    assert (verified["data"].split, verified["data"].max_images) == ("train", 3)
    assert not checkpoint.with_suffix(".onnx").exists()
    assert file.read_bytes() == b"graph"


def test_openvino_runs_on_its_own_devices(codetr, checkpoint, verified, monkeypatch):
    """Its files are verified on the CPU where PyTorch has a GPU, and on another device of OpenVINO if one is given."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    file = checkpoint.with_name("other.xml")
    file.write_text("<net/>", encoding="utf-8")
    for words, settings in (((), []), (("--device", "npu"), ["test.openvino_device=NPU"])):
        ran = codetr("export", checkpoint, "--verify-only", file, *words)
        assert ran.code == 0, ran.err
        assert (verified["device"].type, verified["file_settings"]) == ("cpu", settings)


def test_what_is_checked_before_any_work(codetr, checkpoint, verified):
    report = checkpoint.with_suffix(".verify.json")
    report.write_text("of somebody else", encoding="utf-8")
    ran = codetr("export", checkpoint, "--verify", "--force")
    assert ran.code == 2
    assert not checkpoint.with_suffix(".onnx").exists()
    ran = codetr("export", checkpoint, "--verify-only", checkpoint.with_name("absent.onnx"))
    assert ran.code == 4
    assert "absent.onnx" in ran.err
    assert report.read_text(encoding="utf-8") == "of somebody else"


def test_the_commands_of_the_page(codetr, checkpoint, verified, tmp_path, tiny_settings, tiny_coco, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs/co_dino_r50/1", tiny_settings, "last")
    Path("data").mkdir()
    Path("data/coco").symlink_to(tiny_coco)
    lines = (REPOSITORY / "docs/export.md").read_text(encoding="utf-8").splitlines()
    start, end = lines.index("## Proof"), lines.index("## Half precision and TensorRT")
    shown = [block.text for block in blocks("docs/export.md") if start < block.line < end and block.language == "bash"]
    commands = "".join(shown).splitlines()
    assert len(commands) == 3
    for command in commands:
        ran = codetr(*shlex.split(command)[1:])
        assert ran.code == 0, (command, ran.err)
    assert verified["file"] == Path("r50.onnx")
