"""The network as an OpenVINO model: NAME.xml with the graph, and NAME.bin with the weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from codetr_cli.errors import ConfigError, ResourceError
from codetr_cli.export.onnx_file import MAX_INLINE_BYTES, build_onnx
from codetr_cli.export.request import WriteRequest
from codetr_cli.inference.exported.engine_info import first_line
from codetr_cli.inference.exported.metadata import METADATA_KEY, ExportMetadata


def write_openvino(request: WriteRequest) -> None:
    """Writes the two files.

    Raises:
        ResourceError: OpenVINO, or onnx and onnxscript, are not installed.
        ConfigError: options that the format does not have.
    """
    save_openvino(build_openvino(request), request.metadata, request.path)


def build_openvino(request: WriteRequest) -> Any:
    """The `openvino.Model`, in float32, without metadata.

    The precision of the file does not change the graph: "fp16" is that of the stored weights.

    Raises:
        ResourceError: a package is not installed.
        ConfigError: options that the format does not have.
    """
    _import_openvino()  # before minutes of work
    plain = request.metadata.model_copy(update={"precision": "fp32"})
    proto = build_onnx(dataclasses.replace(request, metadata=plain))
    del proto.metadata_props[:]  # OpenVINO would keep them a second time
    request.step("converting it to OpenVINO")
    return read_onnx(proto)


def read_onnx(proto: Any) -> Any:
    """The `openvino.Model` of an `onnx.ModelProto`.

    Raises:
        ConfigError: it is too large for one.
    """
    openvino = _import_openvino()
    if proto.ByteSize() >= MAX_INLINE_BYTES:
        raise ConfigError("the network has 2 GiB of weights or more, which this conversion to OpenVINO cannot take")
    return openvino.Core().read_model(model=proto.SerializeToString())


def save_openvino(model: Any, metadata: ExportMetadata, path: Path) -> None:
    """Writes a model.

    Args:
        model: an `openvino.Model` with the inputs and outputs of the metadata.
        metadata: becomes part of the file; with "fp16" the weights are stored in half precision.
        path: of the graph; the weights are beside it.

    Raises:
        ResourceError: the files cannot be written.
    """
    openvino = _import_openvino()
    versions = {**metadata.versions, "openvino": openvino.__version__.partition("-")[0]}
    model.set_rt_info(metadata.model_copy(update={"versions": versions}).to_json(), [METADATA_KEY])
    try:
        openvino.save_model(model, str(path), compress_to_fp16=metadata.precision == "fp16")
    except RuntimeError as error:  # "iostream error", whatever the system has said
        raise ResourceError(
            f"OpenVINO cannot write {path.name} ({first_line(error).rstrip('.')}): often the disk is full, or the file "
            "would be larger than a file may be (`ulimit -f`). Free some space or choose another folder, then run the "
            "command again."
        ) from error


def _import_openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise ResourceError(
            "OpenVINO files are written by OpenVINO, which is not installed: pip install 'codetr-cli[openvino]'"
        ) from error
    return openvino
