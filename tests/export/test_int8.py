"""What becomes int8, and files that lose too much."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from codetr_cli.errors import CheckpointError, ConfigError
from codetr_cli.export import int8
from codetr_cli.export.int8 import Int8Options, Int8Writer, float_nodes
from codetr_cli.export.job import export
from codetr_cli.export.options import ExportOptions
from codetr_cli.inference.exported.network import ExportedNetwork
from codetr_cli.inference.loading import load_detector
from codetr_cli.models.build import build_model
from codetr_cli.weights.checkpoint import save_checkpoint
from tests.export.faults import verified
from tests.export.networks import CATEGORY_IDS, CLASS_NAMES, settings_of, write_random


def test_only_maps_become_int8():
    stays = [
        "model.decoder.layers.0.cross_attn.value_proj/node_MatMul_1",
        "model.proposals/node_MatMul_2",
        "model.encoder.layers.0.self_attn.sampling_offsets/node_MatMul_3",
        "model.encoder.layers.0.self_attn.attention_weights/node_MatMul_4",
        "model.encoder/node_Mul_5",
        "model/node_MatMul_6",
        "/node_MatMul_7",
        "node_Split_8",
    ]
    becomes = [
        "model.backbone.conv1/node_Conv_1",
        "model.neck.convs.0.conv/node_Conv_2",
        "model.encoder.layers.0.self_attn.value_proj/node_MatMul_3",
        "model.encoder.layers.0.ffn.linear1/node_MatMul_4",
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


def eight_bit_operators(file: Path) -> list[str]:
    """The names of the operators of an OpenVINO file whose weights are int8."""
    import openvino

    found = []
    for node in openvino.Core().read_model(file).get_ops():
        if node.get_type_name() == "Constant" and node.get_element_type() == openvino.Type.i8:
            while node.get_type_name() in ("Constant", "Convert", "Subtract", "Multiply", "Reshape"):
                (user,) = node.output(0).get_target_inputs()
                node = user.get_node()
            found.append(node.get_friendly_name())
    return found


def write_steady(path: Path) -> Path:
    """The checkpoint of a network whose detections do not depend on nearly equal scores, which eight bits reorder.

    All tokens are queries, all queries are detections, and the weights are those that a training starts with, but for
    scores around a half and boxes that depend on the image.
    """
    settings = settings_of("model.finest_stride=8", "model.num_queries=321", "test.max_detections=963", "test.nms=none")
    torch.manual_seed(0)
    model = build_model(settings.model)
    for class_head, box_head in zip(model.class_heads, model.box_heads, strict=True):
        torch.nn.init.zeros_(class_head.bias)
        torch.nn.init.normal_(box_head.layers[-1].weight, std=0.05)
    save_checkpoint(path, model.state_dict(), settings=settings, class_names=CLASS_NAMES, category_ids=CATEGORY_IDS)
    return path


@pytest.mark.slow
def test_a_file_by_nncf(tmp_path: Path, tiny_coco: Path):
    """Only maps are quantised, the file runs, and it detects what the network does as far as int8 can."""
    pytest.importorskip("nncf", reason="the optional package NNCF quantises")
    pytest.importorskip("openvino", reason="the optional package OpenVINO runs the file")
    steps: list[str] = []
    checkpoint = write_steady(tmp_path / "network.safetensors")
    file = tmp_path / "network.xml"
    writer = Int8Writer(Int8Options(data=str(tiny_coco)))
    export(checkpoint, ExportOptions(format="openvino", precision="int8", size=(96, 160)), file,
           writer=writer, step=steps.append)  # fmt: skip
    assert writer.result.int8_ap == pytest.approx(writer.result.float_ap, abs=0.5)
    assert any(step.startswith("calibrating int8: 1 of 4") for step in steps)
    eight_bit = eight_bit_operators(file)
    assert {"model.backbone", "model.neck"} < {name[: name.index(".", 6)] for name in eight_bit}
    assert any(name.startswith("model.encoder.layers.0.ffn") for name in eight_bit)
    assert not float_nodes(eight_bit)
    exported = load_detector(file, torch.device("cpu"))
    loaded = load_detector(checkpoint, torch.device("cpu"))
    assert isinstance(exported.model, ExportedNetwork)
    assert exported.model.engine.info.precision == "fp32 with int8 weights"
    report = verified(loaded, exported.model.engine)
    assert report.precision == "int8"
    assert report.passed, report.sentence
    assert sum(case.detections for case in report.cases) > 5_000
