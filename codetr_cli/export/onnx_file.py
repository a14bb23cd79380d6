"""The program as an ONNX file.

Opset 18 at most: TensorRT's parser turns the GridSample of opset 20 into nearest without a word, and ONNX Runtime has
no CUDA kernel for it. LayerNormalization is one node from opset 17 on, which half precision needs.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from codetr_cli.errors import ResourceError
from codetr_cli.inference.exported.metadata import METADATA_KEY, ExportMetadata, input_names, output_names

OPSET = 18
MAX_INLINE_BYTES = 2**31 - 2**24
"""A file that would be larger keeps its weights in a second file, as protobuf holds less than 2 GiB."""


def write_onnx(program: ExportedProgram, metadata: ExportMetadata, path: Path) -> None:
    """Writes the file.

    Args:
        program: of `graph.trace`.
        metadata: becomes part of the file.
        path: to write; weights of more than 2 GiB are written to `path` + ".data".

    Raises:
        ResourceError: the packages onnx and onnxscript are not installed.
    """
    onnx = _import_onnx()
    exported = _convert(program, metadata)
    model = exported.model_proto
    model.metadata_props.append(onnx.StringStringEntryProto(key=METADATA_KEY, value=metadata.to_json()))
    model.producer_name, model.producer_version = "codetr", metadata.versions.get("codetr", "")
    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, str(path))


def _convert(program: ExportedProgram, metadata: ExportMetadata) -> Any:
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.onnx.export(
                program,
                (),
                dynamo=True,
                opset_version=OPSET,
                input_names=input_names(metadata),
                output_names=output_names(metadata),
                external_data=False,
                verbose=False,
            )
    finally:
        logger.setLevel(before)


def _import_onnx() -> Any:
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ResourceError(
            "ONNX files are written by the packages onnx and onnxscript, which are not installed: "
            "pip install 'codetr-cli[onnx]'"
        ) from error
    return onnx
