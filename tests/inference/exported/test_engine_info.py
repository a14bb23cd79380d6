"""What is said of an engine."""

from __future__ import annotations

from codetr_cli.inference.exported.engine_info import EngineInfo, first_line


def test_what_is_shown():
    info = EngineInfo("ONNX Runtime 1.32.0", "CUDAExecutionProvider", "fp16", elsewhere=3, nodes=900)
    assert str(info) == "ONNX Runtime 1.32.0, CUDAExecutionProvider, fp16, 3 of 900 nodes on the CPU"
    assert info.as_dict()["nodes_on_cpu"] == 3
    assert str(EngineInfo("OpenVINO 2026.4", "CPU", "fp32", 0, 900)) == "OpenVINO 2026.4, CPU, fp32"


def test_errors_of_libraries_are_one_line():
    text = (
        "Exception from src/inference/src/cpp/core.cpp:97:\nCheck 'a == b' failed at x.cpp:3:\nIncorrect weights\nmore"
    )
    assert first_line(RuntimeError(text)) == "Incorrect weights."
    assert first_line(RuntimeError("")) == "RuntimeError."
