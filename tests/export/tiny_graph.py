"""A network for tests that export none, and an ONNX file with the inputs and outputs of one, made in no time."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

from codetr_cli.export.job import describe
from codetr_cli.export.options import ExportOptions
from codetr_cli.inference.exported.metadata import METADATA_KEY, ExportMetadata
from codetr_cli.inference.loading import LoadedModel
from tests.export.networks import DEFORMABLE, load_random

SIZE = (64, 96)


@functools.cache
def tiny_network(family: str = "co_dino") -> LoadedModel:
    """A narrow network with random weights; nobody changes it."""
    torch.manual_seed(0)
    return load_random(*(DEFORMABLE if family == "co_deformable" else ()))


def tiny_metadata(**options: Any) -> ExportMetadata:
    """Metadata of the network's file."""
    return describe(tiny_network(), ExportOptions(**{"size": SIZE, **options}))


def write_tiny_graph(path: Path, metadata: ExportMetadata) -> None:
    """Writes an ONNX file whose one query is the mean of each image, as a logit, and its valid size, as a box."""
    import onnx
    from onnx import TensorProto, helper

    float32, int64 = TensorProto.FLOAT, TensorProto.INT64
    batch = metadata.input.batch or "batch"
    height, width = metadata.input.height, metadata.input.width
    given = [
        helper.make_tensor_value_info("images", float32, [batch, 3, height, width]),
        helper.make_tensor_value_info("image_sizes", int64, [batch, 2]),
    ]
    results = [
        helper.make_tensor_value_info(name, float32, [batch, 1, size]) for name, size in (("logits", 3), ("boxes", 4))
    ]
    nodes = [
        helper.make_node("ReduceMean", ["images", "space"], ["mean"], keepdims=0),  # (B, 3)
        helper.make_node("Unsqueeze", ["mean", "one"], ["logits"]),
        helper.make_node("Cast", ["image_sizes"], ["sizes"], to=float32),
        helper.make_node("Concat", ["sizes", "sizes"], ["four"], axis=1),
        helper.make_node("Unsqueeze", ["four", "one"], ["large"]),
        helper.make_node("Div", ["large", "thousand"], ["boxes"]),
    ]
    constants = [
        helper.make_tensor("space", int64, [2], [2, 3]),
        helper.make_tensor("one", int64, [1], [1]),
        helper.make_tensor("thousand", float32, [], [1000.0]),
    ]
    kind = TensorProto.FLOAT16 if metadata.precision == "fp16" else float32
    between = [helper.make_tensor_value_info("something", kind, [1])]
    graph = helper.make_graph(nodes, "tiny", given, results, constants, value_info=between)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    model.metadata_props.append(onnx.StringStringEntryProto(key=METADATA_KEY, value=metadata.to_json()))
    onnx.save_model(model, str(path))
