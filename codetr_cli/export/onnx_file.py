"""The program as an ONNX file.

Opset 18 at most: TensorRT's parser turns the GridSample of opset 20 into nearest without a word, and ONNX Runtime has
no CUDA kernel for it. LayerNormalization is one node from opset 17 on, which half precision needs.
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
from typing import Any

import torch
from torch.export import ExportedProgram

from codetr_cli.errors import ResourceError
from codetr_cli.export.attention import onnx_translations
from codetr_cli.export.fake_shapes import quick_shapes
from codetr_cli.export.graph import trace
from codetr_cli.export.precision import DTYPES, keep_softmax_in_float32
from codetr_cli.export.quiet import without_warnings
from codetr_cli.export.request import WriteRequest
from codetr_cli.inference.exported.metadata import METADATA_KEY, ExportMetadata, input_names, output_names

OPSET = 18
SCOPES = "pkg.torch.onnx.name_scopes"
"""Key of a node's metadata: the modules that it was exported from, outermost first, as a Python list."""
MAX_INLINE_BYTES = 2**31 - 2**24
"""A file that would be larger keeps its weights in a second file, as protobuf holds less than 2 GiB."""


MIN_ONNXSCRIPT = (0, 7)
"""The oldest that was tested: 0.5 accepts the newest onnx_ir, with which it fails on graphs of torch 2.7."""
MAX_SHARED = 1 << 20
"""Numbers of a constant that is kept once where it is used several times: more than the tokens of an image."""
FLOAT = 1
"""float32 among the types of ONNX."""
DATA_SUFFIX = ".data"


def write_onnx(request: WriteRequest) -> None:
    """Writes an ONNX file, and one of weights beside it if they are larger than `MAX_INLINE_BYTES`.

    Raises:
        ResourceError: the packages onnx and onnxscript are not installed, or too old.
    """
    onnx = _import_onnx()
    model = build_onnx(request)
    if _weight_bytes(model) <= MAX_INLINE_BYTES:
        onnx.save_model(model, str(request.path))
        return
    data = f"{request.path.name}{DATA_SUFFIX}"
    onnx.save_model(model, str(request.path), save_as_external_data=True, location=data)
    onnx.checker.check_model(str(request.path), full_check=True)


def build_onnx(request: WriteRequest) -> Any:
    """The graph with its metadata, an `onnx.ModelProto`; formats that are made from ONNX start from it.

    Raises:
        ResourceError: the packages onnx and onnxscript are not installed, or too old.
    """
    onnx = _import_onnx()
    metadata = request.metadata
    request.step("tracing the network")
    program = trace(request.model, metadata)
    request.step("converting it to ONNX")
    model = _convert(program, metadata)
    if metadata.precision in DTYPES:
        keep_softmax_in_float32(model)
    model.metadata_props.append(onnx.StringStringEntryProto(key=METADATA_KEY, value=metadata.to_json()))
    model.producer_name, model.producer_version = "codetr", metadata.versions.get("codetr", "")
    request.step("checking the graph")
    if _weight_bytes(model) <= MAX_INLINE_BYTES:  # else it cannot be checked before it is written
        onnx.checker.check_model(model, full_check=True)
    return model


def _weight_bytes(model: Any) -> int:
    return sum(len(initializer.raw_data) for initializer in model.graph.initializer)


def _convert(program: ExportedProgram, metadata: ExportMetadata) -> Any:
    """The program as an `onnx.ModelProto` without stack traces and file names of this machine."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass, DeduplicateInitializersPass

    with contextlib.ExitStack() as stack:
        stack.enter_context(without_warnings("torch.onnx", "onnxscript", "onnx_ir"))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(quick_shapes())
        exported = torch.onnx.export(
            program,
            (),
            dynamo=True,
            opset_version=OPSET,
            input_names=input_names(metadata),
            output_names=output_names(metadata),
            custom_translation_table={**onnx_translations(), torch.ops.aten.group_norm.default: _group_norm},
            external_data=False,
            verbose=False,
        )
        assert exported is not None
        for node in exported.model.graph:  # int8 asks which module a node belongs to
            node.name = f"{_module(node.metadata_props.get(SCOPES))}/{node.name}"
        ClearMetadataAndDocStringPass()(exported.model)
        DeduplicateInitializersPass(size_limit=MAX_SHARED)(exported.model)  # torch.onnx stops at 1,024 numbers
        exported.model.metadata_props.clear()
        exported.model.graph.metadata_props.clear()
        return exported.model_proto


def _group_norm(
    input: Any, num_groups: int, weight: Any, bias: Any, eps: float = 1e-5, cudnn_enabled: bool = True
) -> Any:
    """Nodes for the group normalization of (B, C, H, W): means over rows, then over the rest, in float32.

    torch.onnx writes InstanceNormalization, which ONNX Runtime adds up in one go: of the 240,000 numbers in a group of
    the finest level, the result is wrong by 1e-4, a hundred times the error of PyTorch.

    The parameters have the names of the operator's own: torch 2.7 passes over a function with others.
    """
    from onnxscript import opset18

    op: Any = opset18
    shape = op.Shape(input)
    rows = op.Concat(op.Constant(value_ints=[0, num_groups, -1]), op.Gather(shape, op.Constant(value_ints=[3])), axis=0)
    grouped = op.Reshape(op.Cast(input, to=FLOAT), rows)  # (B, groups, C / groups * H, W)

    def mean(values: Any) -> Any:
        over_rows = op.ReduceMean(values, op.Constant(value_ints=[3]))
        return op.ReduceMean(over_rows, op.Constant(value_ints=[2]))

    centred = op.Sub(grouped, mean(grouped))
    deviation = op.Sqrt(op.Add(mean(op.Mul(centred, centred)), op.Constant(value_float=eps)))
    normed = op.Reshape(op.Div(centred, deviation), shape)
    spatial = op.Constant(value_ints=[1, 2])
    scale, shift = (op.Unsqueeze(op.Cast(each, to=FLOAT), spatial) for each in (weight, bias))
    return op.CastLike(op.Add(op.Mul(normed, scale), shift), input)


def _module(scopes: str | None) -> str:
    """The module that a node was exported from; empty for nodes of the conversion itself."""
    names = [] if scopes is None else ast.literal_eval(scopes)
    return str(names[-2]) if len(names) > 1 else ""


def _import_onnx() -> Any:
    try:
        import onnx
        import onnxscript
    except ImportError as error:
        raise ResourceError(
            "ONNX files are written by the packages onnx and onnxscript, which are not installed: "
            "pip install 'codetr-cli[onnx]'"
        ) from error
    if tuple(map(int, re.findall(r"\d+", onnxscript.__version__)[:2])) < MIN_ONNXSCRIPT:  # 0.8rc1, too
        raise ResourceError(
            f"ONNX files are written by onnxscript {'.'.join(map(str, MIN_ONNXSCRIPT))} or newer, and "
            f"{onnxscript.__version__} is installed: pip install --upgrade 'codetr-cli[onnx]'"
        )
    return onnx
