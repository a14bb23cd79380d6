"""ONNX files of unknown origin: what they hold is known before a library opens them."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="the optional package onnx writes the files")

import onnx
from onnx import TensorProto, helper

from codetr_cli.errors import CheckpointError
from codetr_cli.inference.exported import onnx_check
from codetr_cli.inference.exported.metadata import parse_metadata
from codetr_cli.inference.exported.onnx_check import check_onnx
from tests.inference.exported import handmade


def with_external_data(path: Path, location: str, *, where: str = "initializer") -> Path:
    model = handmade.build_model(handmade.metadata_of())
    tensor = model.graph.initializer[0]
    if where == "attribute":
        tensor = helper.make_tensor("value", TensorProto.FLOAT, [1], [0.0])
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    if where == "attribute":
        inner = helper.make_graph([helper.make_node("Constant", [], ["c"], value=tensor)], "inner", [], [])
        node = helper.make_node("If", ["condition"], ["result"])
        node.attribute.append(helper.make_attribute("then_branch", inner))
        model.graph.node.append(node)
    path.write_bytes(model.SerializeToString())
    return path


def test_metadata_is_read_without_the_weights(tmp_path: Path):
    path = handmade.write_onnx(tmp_path / "model.onnx")
    found = check_onnx(path)
    assert found.data_files == ()
    assert parse_metadata(found.metadata, str(path)) == handmade.metadata_of()


def test_a_file_of_others_has_none(tmp_path: Path):
    path = tmp_path / "model.onnx"
    onnx.save_model(handmade.build_model(None), str(path))
    assert check_onnx(path).metadata is None


@pytest.mark.parametrize("where", ["initializer", "attribute"])
@pytest.mark.parametrize(
    "location", ["/etc/passwd", "../secret.bin", "folder/weights.bin", "..\\secret.bin", "C:\\secret.bin", "..", ""]
)
def test_weights_elsewhere_are_refused(tmp_path: Path, location: str, where: str):
    (tmp_path / "secret.bin").write_bytes(bytes(100_000))
    path = with_external_data(tmp_path / "model.onnx", location, where=where)
    with pytest.raises(CheckpointError, match="in another folder"):
        check_onnx(path)


def test_weights_behind_a_link_are_refused(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(100_000))
    (tmp_path / "folder" / "weights.bin").symlink_to(tmp_path / "secret.bin")
    path = with_external_data(tmp_path / "folder" / "model.onnx", "weights.bin")
    with pytest.raises(CheckpointError, match="is a link"):
        check_onnx(path)


def test_weights_beside_the_file_are_found(tmp_path: Path):
    path = with_external_data(tmp_path / "model.onnx", "model.onnx.data")
    with pytest.raises(CheckpointError, match="Copy both files"):
        check_onnx(path)
    (tmp_path / "model.onnx.data").write_bytes(bytes(100_000))
    assert check_onnx(path).data_files == ("model.onnx.data",)


@pytest.mark.parametrize("dims", [[1 << 20, 1 << 20], [1 << 40], [1 << 62, 1 << 62], [-1, -1]])
def test_weights_that_are_declared_only(tmp_path: Path, dims: list[int]):
    model = handmade.build_model(handmade.metadata_of())
    model.graph.initializer.append(TensorProto(name="huge", dims=dims, data_type=TensorProto.FLOAT))
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match=r"declares weights of|impossible size"):
        check_onnx(path)


def test_graphs_within_graphs_end(tmp_path: Path):
    graph = helper.make_graph([], "innermost", [], [])
    for _ in range(onnx_check.MAX_DEPTH + 2):
        node = helper.make_node("If", ["condition"], ["result"])
        node.attribute.append(helper.make_attribute("then_branch", graph))
        graph = helper.make_graph([node], "outer", [], [])
    path = tmp_path / "model.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(CheckpointError, match="nested too deeply"):
        check_onnx(path)


def test_more_fields_than_any_network_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = handmade.write_onnx(tmp_path / "model.onnx")
    monkeypatch.setattr(onnx_check, "MAX_FIELDS", 100)
    with pytest.raises(CheckpointError, match="more than 100 fields"):
        check_onnx(path)


@pytest.mark.parametrize("content", [b"", b"\x00", b"not a model", b"\xff" * 100, b"PK\x03\x04" + bytes(50)])
def test_other_files(tmp_path: Path, content: bytes):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.onnx"):
        check_onnx(path)


def test_no_file(tmp_path: Path):
    with pytest.raises(CheckpointError, match="No such file"):
        check_onnx(tmp_path / "model.onnx")
    with pytest.raises(CheckpointError, match="Is a directory"):
        check_onnx(tmp_path)
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(CheckpointError, match="a named pipe"):
        check_onnx(tmp_path / "pipe.onnx")


def test_damaged_files_are_checkpoint_errors(tmp_path: Path):
    content = handmade.write_onnx(tmp_path / "good.onnx").read_bytes()
    generator, path, refused = random.Random(0), tmp_path / "model.onnx", 0
    for _ in range(200):
        damaged = bytearray(content[: generator.randrange(len(content))])
        for _ in range(generator.choice([0, 1, 20])):
            damaged[generator.randrange(max(1, len(damaged)))] = generator.randrange(256)
        path.write_bytes(damaged)
        try:
            check_onnx(path)
        except CheckpointError:
            refused += 1
    assert refused > 100
