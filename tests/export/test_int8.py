"""What becomes int8, and files that lose too much."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from codetr_cli.errors import CheckpointError, ConfigError
from codetr_cli.export import int8
from codetr_cli.export.int8 import Int8Options, Int8Writer, float_nodes
from codetr_cli.export.job import export
from codetr_cli.export.options import ExportOptions
from tests.export.networks import write_random


def test_only_maps_become_int8():
    stays = [
        "model.decoder.layers.0.cross_attn.value_proj/node_MatMul_1",
        "model.proposals/node_MatMul_2",
        "model.encoder.layers.0.self_attn.sampling_offsets/node_MatMul_3",
        "model.encoder.layers.0.self_attn.attention_weights/node_MatMul_4",
        "model.encoder/node_Mul_5",
        "model/node_MatMul_6",
    ]
    becomes = [
        "model.backbone.conv1/node_Conv_1",
        "model.neck.convs.0.conv/node_Conv_2",
        "model.encoder.layers.0.self_attn.value_proj/node_MatMul_3",
        "model.encoder.layers.0.ffn.linear1/node_MatMul_4",
        "/node_Split_5",
    ]
    assert float_nodes([*stays, *becomes]) == stays


@pytest.fixture
def without_nncf(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Writes a stand-in for the file; AP before and after are those of the list."""
    points = [0.5, 0.494]
    monkeypatch.setattr(int8, "_import_nncf", lambda: None)
    monkeypatch.setattr(
        int8, "build_onnx", lambda request: SimpleNamespace(graph=SimpleNamespace(node=[]), metadata_props=[])
    )
    monkeypatch.setattr(int8, "read_onnx", lambda proto: None)
    monkeypatch.setattr(int8, "_quantise", lambda *words: words[2][0]())
    monkeypatch.setattr(
        int8, "save_openvino", lambda model, metadata, path: path.write_text(str(model["images"].shape))
    )
    monkeypatch.setattr(int8, "load_detector", lambda path, device: None)
    values = iter(points)

    def measure(*_: Any) -> Any:
        return SimpleNamespace(metrics={"AP": next(values)}, images=2)

    monkeypatch.setattr(int8, "average_precision", measure)
    return points


def quantise(folder: Path, data: Path, **options: Any) -> Int8Writer:
    checkpoint = write_random(folder / "network.safetensors")
    writer = Int8Writer(Int8Options(data=str(data), **options))
    wanted = ExportOptions(format="openvino", precision="int8", size=(96, 160))
    export(checkpoint, wanted, folder / "network.xml", writer=writer)
    return writer


def test_a_file_that_loses_little(without_nncf, tmp_path: Path, tiny_coco: Path):
    """It was calibrated with inputs of the file's size from training images."""
    writer = quantise(tmp_path, tiny_coco, max_drop=0.7)
    assert writer.result.calibration_images == 4
    assert "AP 49.40 instead of 50.00 on 2 images, calibrated with 4" in writer.result.sentence
    assert (tmp_path / "network.xml").read_text(encoding="utf-8") == "(1, 3, 96, 160)"


def test_a_file_that_loses_too_much_is_not_written(without_nncf, tmp_path: Path, tiny_coco: Path):
    with pytest.raises(CheckpointError, match=r"loses 0\.60 points .* 49\.40 instead of 50\.00, .* allows 0\.5\."):
        quantise(tmp_path, tiny_coco)
    assert not (tmp_path / "network.xml").exists()


def test_int8_is_of_openvino(tmp_path: Path, tiny_coco: Path):
    checkpoint = write_random(tmp_path / "network.safetensors")
    writer = Int8Writer(Int8Options(data=str(tiny_coco)))
    with pytest.raises(ConfigError, match="--format openvino"):
        export(checkpoint, ExportOptions(precision="int8"), tmp_path / "network.onnx", writer=writer)
    with pytest.raises(ConfigError, match="--calibration 0"):
        Int8Options(data="data", images=0)
