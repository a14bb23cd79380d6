"""Half precision of exported programs: what is cast, what stays float32, and what comes out."""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.export import ExportedProgram

from codetr_cli.errors import ConfigError
from codetr_cli.export.graph import DetectionGraph, trace
from codetr_cli.export.job import describe
from codetr_cli.export.options import ExportOptions
from codetr_cli.export.precision import HALF_PARTS, cast_network, input_dtype, keep_softmax_in_float32
from codetr_cli.models.codetr import CoDETR
from tests.export import networks
from tests.export.tiny_graph import SIZE, tiny_network


def images(batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    sizes = torch.tensor([SIZE, (50, 90), (64, 60)])[:batch]
    pixels = torch.randn(batch, 3, *SIZE, generator=generator)
    for image, (height, width) in zip(pixels, sizes.tolist(), strict=True):
        image[:, height:], image[:, :, width:] = 0, 0
    return pixels, sizes


def run_graph(precision: Any, family: str = "co_dino") -> list[Tensor]:
    loaded = tiny_network(family)
    assert isinstance(loaded.model, CoDETR)
    metadata = describe(loaded, ExportOptions(format="torch", size=SIZE, precision=precision))
    with torch.no_grad():
        return list(DetectionGraph(cast_network(loaded.model, precision), metadata)(*images()))


def test_float32_is_the_network_itself() -> None:
    model = tiny_network().model
    assert cast_network(model, "fp32") is model
    assert input_dtype(model) == torch.float32


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize("family", ["co_dino", "co_deformable"])
def test_large_parts_are_cast_and_heads_and_query_selection_are_not(precision, dtype, family) -> None:
    model = tiny_network(family).model
    cast = cast_network(model, precision)
    found = {(name.split(".")[0] in HALF_PARTS, value.dtype) for name, value in cast.named_parameters()}
    assert found == {(True, dtype), (False, torch.float32)}
    assert input_dtype(cast) == dtype
    assert {value.dtype for value in model.parameters()} == {torch.float32}, "the network itself was changed"
    rest = {name for name, _ in model.named_children() if name not in HALF_PARTS}
    assert {"class_heads", "box_heads", "proposals"} <= rest


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 0.02), ("bf16", 0.1)])
@pytest.mark.parametrize("family", ["co_dino", "co_deformable"])
def test_outputs_are_float32_and_close(precision, tolerance, family) -> None:
    (logits, boxes), (half_logits, half_boxes) = run_graph("fp32", family), run_graph(precision, family)
    assert half_logits.dtype == half_boxes.dtype == torch.float32
    # Queries of nearly equal score swap their ranks: each is compared with the nearest of the other run.
    distance = torch.cdist(half_boxes, boxes)
    nearest = distance.argmin(-1)
    matched = logits.gather(1, nearest[..., None].expand(-1, -1, logits.shape[2]))
    assert distance.amin(-1).median() < tolerance / 4
    assert (half_logits.sigmoid() - matched.sigmoid()).abs().median() < tolerance / 4
    assert half_logits.isfinite().all()
    assert half_boxes.isfinite().all()


@pytest.mark.parametrize("format", ["onnx", "openvino", "tensorrt"])
def test_bfloat16_is_no_type_of_convolutions_in_onnx(format) -> None:
    with pytest.raises(ConfigError, match="Use --precision fp16, or --format torch"):
        ExportOptions(format=format, precision="bf16")
    ExportOptions(format="torch", precision="bf16")


# ---------------------------------------------------------------------------------------------------------- the program


@functools.cache
def program() -> ExportedProgram:
    loaded = tiny_network()
    assert isinstance(loaded.model, CoDETR)
    metadata = describe(loaded, ExportOptions(size=SIZE, precision="fp16"))
    return trace(loaded.model, metadata)


def nodes() -> list[torch.fx.Node]:
    """Those of the program and of its parts without mixed precision."""
    graphs = [module for module in program().graph_module.modules() if isinstance(module, torch.fx.GraphModule)]
    return [node for module in graphs for node in module.graph.nodes]


def input_dtypes(operator: str, *, module: str = "") -> Counter[torch.dtype]:
    """Dtypes of the first input of the nodes of an operator, of those in a module."""
    found: Counter[torch.dtype] = Counter()
    for node in nodes():
        modules = " ".join(path for path, _ in node.meta.get("nn_module_stack", {}).values())
        if node.op == "call_function" and str(node.target).startswith(f"aten.{operator}.") and module in modules:
            first = node.args[0][0] if isinstance(node.args[0], list | tuple) else node.args[0]
            found[first.meta["val"].dtype] += 1
    return found


@pytest.mark.parametrize(
    ("operator", "purpose"),
    [
        ("topk", "selection of queries"),
        ("sigmoid", "boxes"),
        ("log", "proposals and inverse sigmoid"),
        ("sin", "sine encodings"),
        ("cos", "sine encodings"),
        ("softmax", "sampling weights"),
        ("grid_sampler", "sampling"),
    ],
)
def test_what_stays_float32(operator, purpose) -> None:
    found = input_dtypes(operator)
    assert set(found) == {torch.float32}, f"{purpose}: {found}"


@pytest.mark.parametrize(
    ("operator", "module"),
    [("conv2d", "backbone"), ("layer_norm", "encoder"), ("layer_norm", "decoder"), ("group_norm", "neck")],
)
def test_what_is_in_half_precision(operator, module) -> None:
    assert set(input_dtypes(operator, module=module)) == {torch.float16}


@pytest.mark.parametrize("module", ["encoder", "decoder.layers"])
def test_matrix_products_are_in_half_precision(module) -> None:
    found = input_dtypes("linear", module=module)
    assert found[torch.float16] >= 6


def test_inputs_and_outputs_are_float32() -> None:
    graph = list(program().graph.nodes)
    given = [node for node in graph if node.op == "placeholder" and node.name == "images"]
    outputs = graph[-1].args[0]
    assert [node.meta["val"].dtype for node in (*given, *outputs)] == [torch.float32] * 3


# ---------------------------------------------------------------------------------------------------------------- ONNX


def softmax_model(kind: int) -> Any:
    onnx = pytest.importorskip("onnx", reason="ONNX graphs are changed with onnx")
    helper = onnx.helper
    names = ("given", "result")
    values = [helper.make_tensor_value_info(name, kind, [2, 3]) for name in (*names, "between")]
    nodes = [
        helper.make_node("Softmax", ["given"], ["between"], axis=-1, name="first"),
        helper.make_node("Add", ["between", "between"], ["result"]),
    ]
    graph = helper.make_graph(nodes, "graph", values[:1], values[1:2], value_info=values[2:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def test_a_softmax_in_half_precision_is_computed_in_float32() -> None:
    onnx = pytest.importorskip("onnx", reason="ONNX graphs are changed with onnx")
    model = softmax_model(onnx.TensorProto.FLOAT16)
    keep_softmax_in_float32(model)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Cast", "Softmax", "Cast", "Add"]
    given = np.array([[1, 2, 3], [60000, -60000, 0]], np.float16)
    reference = pytest.importorskip("onnx.reference", reason="ONNX graphs are evaluated by onnx")
    (result,) = reference.ReferenceEvaluator(model).run(None, {"given": given})
    assert result.dtype == np.float16
    np.testing.assert_allclose(result[1], [2, 0, 0])


def test_a_softmax_in_float32_stays_one_node() -> None:
    onnx = pytest.importorskip("onnx", reason="ONNX graphs are changed with onnx")
    model = softmax_model(onnx.TensorProto.FLOAT)
    before = model.SerializeToString()
    keep_softmax_in_float32(model)
    assert model.SerializeToString() == before


@pytest.mark.slow
def test_a_file_in_half_precision(tmp_path) -> None:
    onnx = pytest.importorskip("onnx", reason="ONNX files are written by onnx")
    pytest.importorskip("onnxruntime", reason="ONNX files are run by ONNX Runtime")
    exported = networks.export(tmp_path, size=SIZE, precision="fp16", attention="gather")
    graph = onnx.load(str(exported.path)).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    found: dict[str, set[int]] = {}
    for node in graph.node:
        found.setdefault(node.op_type, set()).add(types.get(node.input[0] if node.input else "", 0))
    float32, float16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
    for operator in ("TopK", "Softmax", "Log", "Sin", "Cos", "Sigmoid", "IsInf"):
        assert found[operator] <= {float32, 0}, operator  # 0: between two casts that this test's graph added no type to
    assert found["Conv"] == {float16}
    assert float16 in found["MatMul"]
    assert float16 in found["LayerNormalization"]
    assert not {"GridSample", "ScatterND", "NonZero"} & set(found)
    images, sizes = images_of(exported)
    outputs = exported.engine.run(images, sizes)
    model = exported.loaded.model
    assert isinstance(model, CoDETR)
    with torch.inference_mode():
        _, boxes = DetectionGraph(model, exported.metadata).eval()(images, sizes)
    assert outputs["boxes"].dtype == outputs["logits"].dtype == torch.float32
    assert torch.cdist(outputs["boxes"], boxes).amin(-1).median() < 0.005


def images_of(exported: networks.Exported) -> tuple[Tensor, Tensor]:
    """Two images of noise and their valid sizes."""
    return networks.make_input(exported.metadata, SIZE, 2)
