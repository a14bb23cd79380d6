from __future__ import annotations

from pathlib import Path

import pytest
import torch

from codetr_cli.inference.exported import engine
from codetr_cli.inference.exported.engine import EngineInfo, is_exported, open_engine


@pytest.mark.parametrize(
    ("path", "answer"),
    [("a.onnx", True), (Path("b/c.xml"), True), ("d.engine", True), ("e.pt2", True), ("f.pth", False), ("onnx", False)],
)
def test_exported_files_are_recognised_by_their_suffix(path: str | Path, answer: bool):
    assert is_exported(path) == answer


def test_the_suffix_decides_which_library_runs_a_file(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(engine._OPENERS, ".onnx", lambda path, device: (path, device))
    assert open_engine(Path("a.onnx"), torch.device("cpu")) == (Path("a.onnx"), torch.device("cpu"))


def test_what_runs_where_in_words():
    info = EngineInfo("ONNX Runtime 1.32", "CUDAExecutionProvider", "fp16", elsewhere=3, nodes=700)
    assert str(info) == "ONNX Runtime 1.32, CUDAExecutionProvider, fp16, 3 of 700 nodes on the CPU"
    assert str(EngineInfo("OpenVINO 2026", "CPU", "fp32", elsewhere=0, nodes=7)) == "OpenVINO 2026, CPU, fp32"
