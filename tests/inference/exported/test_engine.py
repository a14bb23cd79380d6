"""Which library and device an exported file gets."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from codetr_cli.errors import CheckpointError, ConfigError
from codetr_cli.inference.exported import engine, onnx_runtime
from codetr_cli.inference.exported.engine import choose_for_file, is_exported, open_engine


def test_files_are_known_by_their_suffix():
    assert is_exported("a/model.onnx")
    assert is_exported(Path("model.xml"))
    assert not is_exported("model.safetensors")


@pytest.mark.parametrize(
    ("path", "device", "expected"),
    [
        ("model.safetensors", "auto", ("auto", [])),
        ("model.safetensors", "npu", ("npu", [])),
        ("model.xml", "auto", ("cpu", [])),
        ("model.xml", "npu", ("cpu", ["test.openvino_device=NPU"])),
        ("model.xml", "gpu.1", ("cpu", ["test.openvino_device=GPU.1"])),
        ("model.xml", "xpu", ("cpu", ["test.openvino_device=GPU"])),
        ("model.xml", "cuda", ("cuda", [])),
        ("model.onnx", "cuda:1", ("cuda:1", [])),
        ("model.pt2", "auto", ("cpu", [])),
        ("model.pt2", "cuda", ("cuda", [])),
    ],
)
def test_devices(path: str, device: str, expected: tuple[str, list[str]]):
    assert choose_for_file(path, device) == expected


@pytest.mark.parametrize(("has_provider", "expected"), [(False, "cpu"), (True, "auto")])
def test_auto_is_what_onnx_runtime_has(has_provider: bool, expected: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(onnx_runtime, "has_gpu_provider", lambda: has_provider)
    assert choose_for_file("model.onnx", "auto") == (expected, [])


def test_a_processor_is_of_openvino(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"does not run in OpenVINO"):
        open_engine(tmp_path / "model.onnx", torch.device("cpu"), "GPU")


def test_formats_without_a_library():
    with pytest.raises(CheckpointError, match=r"does not run \.safetensors files"):
        open_engine(Path("model.safetensors"), torch.device("cpu"))


def test_the_suffix_decides_which_library_runs_a_file(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(engine._OPENERS, ".onnx", lambda path, device: (path, device))
    assert open_engine(Path("a.onnx"), torch.device("cpu")) == (Path("a.onnx"), torch.device("cpu"))
