"""OpenVINO files of a network; `inference/exported/test_openvino.py` looks at how they run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch

pytest.importorskip("onnx", reason="the optional package onnx is on the way to OpenVINO")
pytest.importorskip("openvino", reason="the optional package OpenVINO writes the files")

from codetr_cli.errors import ConfigError, ResourceError
from codetr_cli.export import openvino_model
from codetr_cli.export.job import WRITERS
from codetr_cli.export.request import WriteRequest
from codetr_cli.inference.exported.engine import open_engine
from codetr_cli.inference.exported.metadata import METADATA_KEY
from tests.inference.exported import handmade


@pytest.fixture
def request_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Makes requests whose ONNX graph is made by hand."""
    steps: list[str] = []

    def build(request: WriteRequest) -> Any:
        assert request.metadata.precision == "fp32", "the graph is the same for every precision"
        return handmade.build_model(request.metadata)

    def make(**options: Any) -> WriteRequest:
        metadata = handmade.metadata_of(format="openvino", **options)
        return WriteRequest(cast("Any", None), metadata, tmp_path / "model.xml", steps.append)

    monkeypatch.setattr(openvino_model, "build_onnx", build)
    return make


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_file(request_of: Any, precision: str):
    request = request_of(precision=precision)
    WRITERS["openvino"](request)
    assert sorted(path.name for path in request.path.parent.iterdir()) == ["model.bin", "model.xml"]
    engine = open_engine(request.path, torch.device("cpu"))
    assert engine.metadata.precision == precision
    assert engine.metadata.export_format == "openvino"
    assert "openvino" in engine.metadata.versions
    assert request.path.read_text(encoding="utf-8").count(f"<{METADATA_KEY} ") == 1


def test_a_full_disk_is_no_bug(request_of: Any, monkeypatch: pytest.MonkeyPatch):
    """OpenVINO's error has lost the reason of the system."""

    def fail(*arguments: Any, **named: Any) -> None:
        raise RuntimeError("basic_ios::clear: iostream error")

    monkeypatch.setattr("openvino.save_model", fail)
    with pytest.raises(
        ResourceError, match=r"OpenVINO cannot write model\.xml \(.*iostream error\): often the disk is full"
    ):
        WRITERS["openvino"](request_of())


def test_openvino_is_not_installed(request_of: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(openvino_model, "build_onnx", lambda request: pytest.fail("minutes of work before the error"))
    with pytest.raises(ResourceError, match=r"pip install 'codetr-cli\[openvino\]'"):
        WRITERS["openvino"](request_of())


def test_a_network_that_is_too_large(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(openvino_model, "MAX_INLINE_BYTES", 1000)
    with pytest.raises(ConfigError, match="2 GiB of weights or more"):
        openvino_model.read_onnx(handmade.build_model(None))
