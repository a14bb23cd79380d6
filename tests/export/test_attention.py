"""Deformable attention in ONNX: which nodes there are, and what they compute."""

from __future__ import annotations

import contextlib
import functools
import io
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

pytest.importorskip("onnx", reason="ONNX files are written and evaluated by onnx")
pytest.importorskip("onnxscript", reason="ONNX files are written by onnxscript")
pytest.importorskip("onnxruntime", reason="ONNX files are run by ONNX Runtime")

import onnx
import onnxruntime
from onnx import reference

from codetr_cli.errors import CheckpointError, ConfigError
from codetr_cli.export.attention import PLUGIN_DOMAIN, onnx_translations
from codetr_cli.export.options import ExportOptions
from codetr_cli.inference.exported.metadata import METADATA_KEY
from codetr_cli.inference.exported.onnx_runtime import OnnxRuntimeEngine
from codetr_cli.ops.deform_attn import fused_multi_scale_deformable_attention
from codetr_cli.ops.deform_attn_export import PLUGIN_NAME, use_formulation
from tests.inference.exported.handmade import metadata_of

HEADS, CHANNELS, QUERIES, POINTS = 2, 8, 6, 4


class Attention(nn.Module):
    """Two maps, boxes, offsets and logits to the attended values."""

    def forward(self, fine: Tensor, coarse: Tensor, boxes: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        shapes = [(level.shape[2], level.shape[3]) for level in (fine, coarse)]
        tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in (fine, coarse)], 1)
        value = tokens.unflatten(-1, (HEADS, CHANNELS))
        return fused_multi_scale_deformable_attention(value, shapes, boxes, offsets, logits)


def inputs(batch: int, height: int, width: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(height)
    sizes = [(height, width), (-(-height // 2), -(-width // 2))]
    maps = [torch.randn(batch, HEADS * CHANNELS, *size, generator=generator) for size in sizes]
    boxes = 1.4 * torch.rand(batch, QUERIES, 2, 4, generator=generator) - 0.2
    offsets = 6 * torch.randn(batch, QUERIES, HEADS, 2, POINTS, 2, generator=generator)
    return *maps, boxes, offsets, torch.randn(batch, QUERIES, HEADS, 2, POINTS, generator=generator)


@functools.cache
def exported(formulation: str, any_size: bool = False) -> Any:
    """The ONNX model, for any number of images, of one size or any."""
    batch = Dim("batch", min=1, max=128)
    size = {2: Dim.DYNAMIC, 3: Dim.DYNAMIC} if any_size else {}
    shapes = [{0: batch, **size}, {0: batch, **size}, *[{0: batch}] * 3]
    with torch.no_grad(), use_formulation(formulation):
        program = torch.export.export(Attention(), inputs(2, 6, 8), dynamic_shapes=shapes, strict=False)
    with contextlib.redirect_stdout(io.StringIO()):
        written = torch.onnx.export(
            program, (), dynamo=True, opset_version=18, custom_translation_table=onnx_translations(), verbose=False
        )
    assert written is not None
    onnx.checker.check_model(written.model_proto, full_check=True)
    return written.model_proto


def operators(model: Any) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def run(model: Any, arguments: tuple[Tensor, ...]) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {given.name: array.numpy() for given, array in zip(session.get_inputs(), arguments, strict=True)}
    return session.run(None, feeds)[0]


def test_gridsample_has_one_node_of_four_axes_for_each_level() -> None:
    model = exported("gridsample")
    assert operators(model)["GridSample"] == 2
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in model.graph.value_info}
    samplers = [node for node in model.graph.node if node.op_type == "GridSample"]
    assert {ranks[node.output[0]] for node in samplers} == {4}


@pytest.mark.parametrize("any_size", [False, True])
def test_gather_has_no_node_that_tensorrt_gets_wrong_or_whose_shape_follows_values(any_size: bool) -> None:
    found = operators(exported("gather", any_size))
    assert found["Gather"] >= 2
    forbidden = ("GridSample", "ScatterND", "ScatterElements", "NonZero", "GatherND", "Loop", "If", "CumSum")
    assert not [name for name in forbidden if name in found]


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_gather_equals_gridsample_in_onnx_runtime(batch: int) -> None:
    arguments = inputs(batch, 6, 8)
    ours, expected = (run(exported(name), arguments) for name in ("gather", "gridsample"))
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    np.testing.assert_allclose(ours, Attention()(*arguments).numpy(), atol=1e-5)


@pytest.mark.parametrize("size", [(6, 8), (8, 6), (4, 4), (13, 32)])
def test_gather_takes_maps_of_any_size(size: tuple[int, int]) -> None:
    arguments = inputs(3, *size)
    np.testing.assert_allclose(run(exported("gather", True), arguments), Attention()(*arguments).numpy(), atol=1e-5)


# --------------------------------------------------------------------------------------------------------------- plugin


def plugin_node(model: Any) -> Any:
    (node,) = (node for node in model.graph.node if node.domain == PLUGIN_DOMAIN)
    return node


def test_the_plugin_is_one_node_as_tensorrt_looks_it_up() -> None:
    model = exported("plugin")
    node = plugin_node(model)
    assert node.op_type == "MultiscaleDeformableAttnPlugin_TRT"
    attributes = {attribute.name: attribute.s for attribute in node.attribute}
    assert attributes == {"plugin_version": b"2", "plugin_namespace": b""}
    assert (PLUGIN_DOMAIN, 1) in [(each.domain, each.version) for each in model.opset_import]
    assert not {"GridSample", "Gather"} & set(operators(model))


def test_the_plugin_gets_its_inputs_with_the_shapes_and_types_that_it_wants() -> None:
    model = exported("plugin")
    node = plugin_node(model)
    known = {value.name: value.type.tensor_type for value in model.graph.value_info}
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    value, shapes, starts, locations, weights = node.input
    for name, rank in ((value, 4), (locations, 6), (weights, 5)):
        assert known[name].elem_type == onnx.TensorProto.FLOAT
        assert len(known[name].shape.dim) == rank
    assert constants[shapes].dtype == constants[starts].dtype == np.int32
    assert constants[shapes].tolist() == [[6, 8], [3, 4]]  # (h, w)
    assert constants[starts].tolist() == [0, 48]


class MultiscaleDeformableAttnPlugin_TRT(reference.op_run.OpRun):  # type: ignore[name-defined, misc]  # noqa: N801
    """The plugin by its definition, sample by sample."""

    op_domain = PLUGIN_DOMAIN

    def _run(self, value, shapes, starts, locations, weights, plugin_version=None, plugin_namespace=None):
        batch, _, heads, channels = value.shape
        output = np.zeros((batch, locations.shape[1], heads, channels), value.dtype)
        for b, q, n, level, p in np.ndindex(weights.shape):
            height, width = shapes[level]
            x, y = locations[b, q, n, level, p] * (width, height) - 0.5
            left, top = int(np.floor(x)), int(np.floor(y))
            for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
                if 0 <= row < height and 0 <= column < width:
                    share = (1 - abs(x - column)) * (1 - abs(y - row)) * weights[b, q, n, level, p]
                    output[b, q, n] += share * value[b, starts[level] + row * width + column, n]
        return (output,)


@pytest.mark.parametrize(("any_size", "size"), [(False, (6, 8)), (True, (8, 6)), (True, (5, 3))])
def test_the_definition_of_the_plugin_on_the_inputs_of_the_node_gives_the_attention(any_size, size) -> None:
    assert MultiscaleDeformableAttnPlugin_TRT.__name__ == PLUGIN_NAME
    model, arguments = exported("plugin", any_size), inputs(2, *size)
    evaluator = reference.ReferenceEvaluator(model, new_ops=[MultiscaleDeformableAttnPlugin_TRT])
    feeds = {given.name: array.numpy() for given, array in zip(model.graph.input, arguments, strict=True)}
    np.testing.assert_allclose(evaluator.run(None, feeds)[0], Attention()(*arguments).numpy(), atol=1e-5)


def test_onnx_runtime_without_the_plugin_says_what_to_do(tmp_path) -> None:
    path = tmp_path / "plugin.onnx"
    model = exported("plugin")
    onnx.helper.set_model_props(model, {METADATA_KEY: metadata_of().to_json()})
    onnx.save_model(model, str(path))
    with pytest.raises(CheckpointError, match="--attention gridsample") as found:
        OnnxRuntimeEngine.open(path, torch.device("cpu"))
    assert "TensorRT" in str(found.value)


@pytest.mark.parametrize(("format", "is_possible"), [("openvino", False), ("onnx", True), ("torch", True)])
def test_formats_without_plugin_refuse_it(format, is_possible) -> None:
    if is_possible:
        ExportOptions(format=format, attention="plugin")
        return
    with pytest.raises(ConfigError, match="--attention gridsample or gather"):
        ExportOptions(format=format, attention="plugin")
