"""OpenVINO files: NAME.xml with the graph, and NAME.bin beside it with the weights."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codetr_cli.errors import CheckpointError, ResourceError, is_out_of_memory
from codetr_cli.inference.exported.engine_info import EngineInfo, first_line
from codetr_cli.inference.exported.metadata import (
    METADATA_KEY,
    ExportMetadata,
    Precision,
    input_names,
    output_names,
    parse_metadata,
)
from codetr_cli.reading import check_regular, read_bytes

CPU = "CPU"
MAX_GRAPH = 256 * 2**20
"""Bytes of the .xml file; that of the largest network has a few millions."""

HINTS: dict[Precision, str] = {"fp32": "f32", "fp16": "f32", "bf16": "bf16", "int8": "f32"}
"""The arithmetic to ask for on a CPU: a file of fp16 has half precision in its weights only. Without a hint OpenVINO
computes in bfloat16 where the CPU has it, which moves boxes by many pixels."""
NAMES = {"f32": "fp32", "float32": "fp32", "f16": "fp16", "float16": "fp16", "bf16": "bf16", "bfloat16": "bf16"}


class OpenVinoEngine:
    """See `engine.Engine`."""

    def __init__(self, compiled: Any, metadata: ExportMetadata, info: EngineInfo) -> None:
        self.metadata, self.info, self.device = metadata, info, torch.device("cpu")
        self._request = compiled.create_infer_request()
        self._lock = threading.Lock()  # of the request

    @classmethod
    def open(cls, path: Path, device: torch.device, processor: str | None = None) -> OpenVinoEngine:
        """Loads a file.

        Args:
            path: of the graph.
            device: "cpu"; OpenVINO has no other of PyTorch's.
            processor: "CPU", "GPU", "GPU.1" or "NPU"; None: the CPU.

        Raises:
            CheckpointError: missing, damaged, or not written by `codetr export`.
            ResourceError: OpenVINO is not installed, or has no such processor here.
        """
        check_files(path)
        openvino = _import_openvino()
        core = openvino.Core()
        library = f"OpenVINO {openvino.__version__.partition('-')[0]}"
        processor = _choose(core, library, device, processor)
        model = read_model(core, path)
        metadata = parse_metadata(metadata_text(model), str(path))
        _check_names(model, metadata, path)
        try:
            compiled = core.compile_model(model, processor, _options(processor, metadata))
        except Exception as error:
            if is_out_of_memory(error):
                raise ResourceError(f"{path} does not fit into memory: {first_line(error)}") from error
            raise CheckpointError(f"{library} cannot compile {path} for {processor}: {first_line(error)}") from error
        return cls(compiled, metadata, _describe(compiled, library, metadata))

    def run(self, images: Tensor, image_sizes: Tensor) -> dict[str, Tensor]:
        """See `engine.Engine`."""
        names = input_names(self.metadata)
        inputs = dict(zip(names, (images.numpy(), image_sizes.numpy()), strict=True))
        try:
            with self._lock:
                outputs = self._request.infer(inputs, share_inputs=True, share_outputs=False)
                return {name: torch.from_numpy(outputs[name]) for name in output_names(self.metadata)}
        except Exception as error:
            text = first_line(error)
            if is_out_of_memory(error):
                raise MemoryError(f"OpenVINO has not enough memory: {text}") from error
            raise CheckpointError(f"OpenVINO cannot run the file: {text} Export it again.") from error


def read_model(core: Any, path: Path) -> Any:
    """The `openvino.Model` in a file that `check_files` has passed.

    Raises:
        CheckpointError: it is damaged, or no OpenVINO model.
    """
    try:
        return core.read_model(str(path))
    except Exception as error:  # OpenVINO's errors are RuntimeErrors
        raise CheckpointError(
            f"{path} cannot be read as an OpenVINO model ({first_line(error).rstrip('.')}): it or {path.stem}.bin is "
            "truncated, damaged, or of another type. Copy both again, or export again."
        ) from error


def metadata_text(model: Any) -> str | None:
    """The text of codetr's metadata in a model; None if there is none."""
    return str(model.get_rt_info([METADATA_KEY]).value) if model.has_rt_info([METADATA_KEY]) else None


def check_files(path: Path) -> bytes:
    """The content of the graph's file, which has no entities, and whose weights are beside it.

    Raises:
        CheckpointError: it is missing, too large, or no OpenVINO model.
    """
    weights = path.with_suffix(".bin")
    try:
        content = read_bytes(path, MAX_GRAPH)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}. Check the path.") from error
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise CheckpointError(
            f"{path} has XML entities, which OpenVINO does not write: it is not a model. Do not use it."
        )
    if not content.startswith(b"<?xml") or b"<net" not in content[:4096] or not _is_utf8(content):
        raise CheckpointError(
            f"{path} is not an OpenVINO model: give the .xml file that `codetr export --format openvino` wrote."
        )
    try:
        check_regular(weights)
    except OSError as error:
        raise CheckpointError(
            f"{path} has its weights in {weights}, which cannot be read: {error.strerror or error}. Copy both files."
        ) from error
    return content


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _choose(core: Any, library: str, device: torch.device, processor: str | None) -> str:
    available = list(core.available_devices)
    if device.type != "cpu":
        raise ResourceError(
            f"{library} does not run on the device {device}: use --device cpu"
            + (
                ", or one of its own: " + ", ".join(sorted(name.lower() for name in available if name != CPU))
                if available != [CPU]
                else ""
            )
            + "."
        )
    chosen = processor or CPU
    if chosen not in available and not any(name.startswith(f"{chosen}.") for name in available):
        raise ResourceError(
            f"{library} finds no {chosen} here, only {', '.join(available)}: install its driver, or use --device cpu."
        )
    return chosen


def _options(processor: str, metadata: ExportMetadata) -> dict[str, Any]:
    options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if processor == CPU:
        options["INFERENCE_PRECISION_HINT"] = HINTS[metadata.precision]
        options["INFERENCE_NUM_THREADS"] = torch.get_num_threads()
        # Threads bound to cores wait for those that read images, and for other processes bound to the same cores.
        options["ENABLE_CPU_PINNING"] = False
    elif metadata.precision in ("fp32", "fp16"):
        options["INFERENCE_PRECISION_HINT"] = "f32" if metadata.precision == "fp32" else "f16"
    return options


def _check_names(model: Any, metadata: ExportMetadata, path: Path) -> None:
    inputs = {name for port in model.inputs for name in port.names}
    outputs = {name for port in model.outputs for name in port.names}
    wanted_inputs, wanted_outputs = input_names(metadata), output_names(metadata)
    if (
        len(model.inputs) != len(wanted_inputs)
        or not inputs.issuperset(wanted_inputs)
        or not outputs.issuperset(wanted_outputs)
    ):
        raise CheckpointError(
            f"{path} has the inputs {sorted(inputs)} and outputs {sorted(outputs)}, and by its metadata they are "
            f"{wanted_inputs} and {wanted_outputs}: it was changed after the export. Export it again."
        )


def _describe(compiled: Any, library: str, metadata: ExportMetadata) -> EngineInfo:
    found = compiled.get_property("INFERENCE_PRECISION_HINT")
    name = str(found.get_type_name() if hasattr(found, "get_type_name") else found)
    precision = NAMES.get(name, name)
    devices = compiled.get_property("EXECUTION_DEVICES")
    provider = ", ".join(map(str, devices)) if isinstance(devices, list | tuple) else str(devices)
    stored = metadata.precision if metadata.precision in ("fp16", "int8") and metadata.precision != precision else ""
    nodes = len(compiled.get_runtime_model().get_ops())
    return EngineInfo(library, provider, f"{precision} with {stored} weights" if stored else precision, 0, nodes)


def _import_openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise ResourceError(
            "OpenVINO files need OpenVINO, which is not installed: pip install 'codetr-cli[openvino]'"
        ) from error
    return openvino
