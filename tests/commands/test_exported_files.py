"""Exported files in the place of a checkpoint, by every command that takes one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="the optional package onnx writes the files")
pytest.importorskip("onnxruntime", reason="the optional package ONNX Runtime runs the files")

from codetr_cli.distributed.part_files import request_digest
from codetr_cli.evaluation.data_choice import _trained_on
from tests.inference.exported import handmade


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    return handmade.write_onnx(Path("models/model.onnx"))


def test_predict_prints_once_what_runs_where(codetr, model: Path, tiny_coco: Path):
    ran = codetr("predict", tiny_coco / "train2017", "--checkpoint", model, "--score", 0.05, "--json")
    assert ran.code == 0, ran.err
    assert ran.err.count("ONNX Runtime 1.") == 1
    runtime = ran.json["summary"]["runtime"]
    assert (runtime["provider"], runtime["precision"]) == ("CPUExecutionProvider", "fp32")
    assert runtime == json.loads(Path("predictions/summary.json").read_text())["runtime"]
    assert len(ran.json["detections"]) == 80


def test_results_continue_with_the_same_content_only(model: Path):
    weights = model.with_suffix(".bin")
    graph = model.with_suffix(".xml")
    for path in (weights, graph, model.with_name("model.onnx.data")):
        path.write_bytes(b"some bytes")
    before = [request_digest(weights=path) for path in (model, graph)]
    assert before == [request_digest(weights=path) for path in (model, graph)]
    os.utime(weights, ns=(1, 1))
    os.utime(model.with_name("model.onnx.data"), ns=(1, 1))
    after = [request_digest(weights=path) for path in (model, graph)]
    assert all(one != other for one, other in zip(before, after, strict=True))


def test_label(codetr, model: Path, tiny_coco: Path):
    ran = codetr("label", tiny_coco / "train2017", "--checkpoint", model, "--out", "labels", "--score", 0.1)
    assert ran.code == 0, ran.err
    assert "model.onnx" in Path("labels/README.md").read_text()


def test_eval_has_the_runtime_in_its_protocol(codetr, model: Path, tiny_coco: Path):
    ran = codetr("eval", model, "--data", tiny_coco, "--json")
    assert ran.code == 0, ran.err
    found = ran.json
    assert found["runtime"]["library"].startswith("ONNX Runtime 1.")
    assert "CPUExecutionProvider, fp32" in found["protocol"]
    assert found["protocol_parts"]["precision"] == "fp32"
    assert json.loads(Path("models/eval/val/metrics.json").read_text())["runtime"] == found["runtime"]


def test_openvino(codetr, model: Path, tiny_coco: Path):
    pytest.importorskip("openvino", reason="the optional package OpenVINO runs the file")
    path = handmade.write_openvino(Path("models/model.xml"))
    found = codetr("predict", tiny_coco / "train2017", "--checkpoint", path, "--json", "--no-draw").json
    assert found["summary"]["runtime"]["library"].startswith("OpenVINO 20")
    ran = codetr("eval", path, "--data", tiny_coco, "--device", "npu")
    assert (ran.code, "finds no NPU here" in ran.err) == (5, True), ran.err


def test_bench(codetr, model: Path):
    ran = codetr("bench", "infer", "--checkpoint", model, "--iterations", 2, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["inference"]["runtime"]["provider"] == "CPUExecutionProvider"
    assert "CPUExecutionProvider" in ran.err


def test_bench_end_to_end(codetr, model: Path):
    words = ("--checkpoint", model, "--images", 3, "--no-draw", "--json")
    ran = codetr("bench", "infer", "--end-to-end", *words)
    assert ran.code == 0, ran.err
    assert ran.json["end_to_end"]["runtime"]["provider"] == "CPUExecutionProvider"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("bench", "train", "--checkpoint", "models/model.onnx", "--iterations", "1"), 4, "is an exported file"),
        (("convert", "models/model.onnx", "new.safetensors"), 4, "is an exported file"),
        (("export", "models/model.onnx", "--out", "again.onnx"), 4, "is an exported file"),
        (
            (
                "train",
                "--preset",
                "co_dino_tiny",
                "--data",
                "coco",
                "--weights",
                "models/model.onnx",
                "--device",
                "cpu",
            ),
            4,
            "is an exported file",
        ),
        (("eval", "models/model.onnx", "--data", "coco", "--precision", "bf16"), 2, "has fp32"),
        (("eval", "models/model.onnx", "--data", "coco", "--head", "roi"), 2, "the roi head is not part of"),
        (("eval", "models/model.onnx", "--data", "coco", "--tta"), 2, "more than the input of the exported file"),
        (("predict", "coco/val2017", "--checkpoint", "models/model.onnx", "--precision", "fp16"), 2, "has fp32"),
        (("predict", "coco/val2017", "--checkpoint", "models/none.onnx"), 4, "`codetr export` writes such files"),
        (("predict", "coco/val2017", "--checkpoint", "models/model.onnx", "--tta"), 2, "--set test.tta_scales=[1.0]"),
        (("predict", "coco/val2017", "--checkpoint", "models/bad.onnx"), 4, "is not an ONNX file"),
        (("predict", "coco/val2017", "--checkpoint", "models/bad.xml"), 4, "is not an OpenVINO model"),
    ],
)
def test_errors(codetr, model: Path, tiny_coco: Path, words: tuple[str, ...], code: int, message: str):
    for name in ("bad.onnx", "bad.xml"):
        model.with_name(name).write_bytes(b"<html>not found</html>")
    ran = codetr(*words)
    assert ran.code == code, ran.err
    assert message in " ".join(ran.err.split())
    assert "Traceback" not in ran.err


def test_the_data_of_the_training_is_known(model: Path):
    config = _trained_on(str(model))
    assert config is not None
    assert config.pad_divisor == 32
