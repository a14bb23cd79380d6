"""The metadata of exported files, without the libraries that run them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="the optional package onnx writes the files")

from codetr_cli.errors import CheckpointError
from codetr_cli.inference.exported.read import read_metadata, settings_of_file
from tests.inference.exported import handmade


def test_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = handmade.write_onnx(tmp_path / "model.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert read_metadata(path) == handmade.metadata_of()
    settings = settings_of_file(path)
    assert settings is not None
    assert settings.test.fixed_size == (96, 160)


def test_openvino(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("openvino", reason="the optional package OpenVINO writes the file")
    path = handmade.write_openvino(tmp_path / "model.xml")
    monkeypatch.setitem(sys.modules, "openvino", None)
    found = read_metadata(path)
    assert found is not None
    assert found.class_names == handmade.CLASS_NAMES
    assert "openvino" in found.versions
    assert settings_of_file(path) is not None


def test_files_that_cannot_be_read(tmp_path: Path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(CheckpointError):
        read_metadata(path)
    assert settings_of_file(path) is None
    assert read_metadata(tmp_path / "model.engine") is None
