"""Half precision as a graph of explicit types: TensorRT has no flag for it, and other runtimes need none.

Weights and arithmetic of `HALF_PARTS` are cast, and everything else stays float32. The network itself keeps its
geometry in float32, as it does in mixed precision: sizes, sine encodings, reference boxes, sampling locations and
weights, the scores that select queries, and the heads of classes, boxes and masks. Norms are one node in half
precision, whose statistics ONNX defines in float32. Inputs and outputs stay float32.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from codetr_cli.inference.exported.metadata import Precision
from codetr_cli.models.codetr import CoDETR

DTYPES: dict[Precision, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16}
"""What half precisions cast to; others leave the network in float32."""

HALF_PARTS = ("backbone", "neck", "encoder", "decoder", "query_embed")
"""Attributes of `CoDETR`; the others select queries, encode boxes, or turn states into classes, boxes and masks."""


def cast_network(model: CoDETR, precision: Precision) -> CoDETR:
    """The network in a precision: itself in float32, or a copy whose large parts are cast."""
    dtype = DTYPES.get(precision)
    if dtype is None:
        return model
    cast = copy.deepcopy(model)
    for part in HALF_PARTS:
        getattr(cast, part).to(dtype)
    return cast


def input_dtype(model: CoDETR) -> torch.dtype:
    """The dtype of the images that the backbone of a network takes."""
    return next(model.backbone.parameters()).dtype


def keep_softmax_in_float32(model: Any) -> None:
    """Computes every softmax of an ONNX graph in float32, in place: casts before and after those in half precision.

    Args:
        model: an `onnx.ModelProto` with the types of its values, as torch.onnx writes it.
    """
    from onnx import TensorProto, helper

    halves = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    nodes = []
    for node in model.graph.node:
        kind = types.get(node.output[0])
        if node.op_type != "Softmax" or kind not in halves:
            nodes.append(node)
            continue
        source, result = node.input[0], node.output[0]
        wide_source, wide_result = f"{result}_float32_input", f"{result}_float32"
        node.input[0], node.output[0] = wide_source, wide_result
        nodes += [
            helper.make_node("Cast", [source], [wide_source], name=f"{node.name}_to_float32", to=TensorProto.FLOAT),
            node,
            helper.make_node("Cast", [wide_result], [result], name=f"{node.name}_to_half", to=kind),
        ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
