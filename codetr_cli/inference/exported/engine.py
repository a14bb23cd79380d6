"""The one interface to the libraries that run exported files, and which library a file needs."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from codetr_cli.errors import CheckpointError, ConfigError
from codetr_cli.files import EXPORTED_SUFFIXES
from codetr_cli.inference.exported.metadata import ExportMetadata


@dataclass(frozen=True)
class EngineInfo:
    """What runs where.

    Attributes:
        library: with its version, e.g. "ONNX Runtime 1.32.0".
        provider: what computes, e.g. "CPUExecutionProvider" or "GPU.0".
        precision: that really runs, e.g. "fp32".
        elsewhere: nodes of the graph that run on the CPU although the provider is another; None: not known.
        nodes: of the graph; None: not known.
    """

    library: str
    provider: str
    precision: str
    elsewhere: int | None = None
    nodes: int | None = None

    def __str__(self) -> str:
        rest = f", {self.elsewhere} of {self.nodes} nodes on the CPU" if self.elsewhere else ""
        return f"{self.library}, {self.provider}, {self.precision}{rest}"

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "library": self.library,
            "provider": self.provider,
            "precision": self.precision,
            "nodes": self.nodes,
            "nodes_on_cpu": self.elsewhere,
        }


class Engine(Protocol):
    """A file that is loaded and ready to run.

    Attributes:
        metadata: of the file.
        info: what runs where.
        device: where inputs and outputs are.
    """

    metadata: ExportMetadata
    info: EngineInfo
    device: torch.device

    def run(self, images: Tensor, image_sizes: Tensor) -> dict[str, Tensor]:
        """The outputs by name; any thread may call it, several at once too.

        Args:
            images: see `metadata.InputRule`; its size and batch are those of the file where they are fixed.
            image_sizes: (B, 2) int64.

        Raises:
            CheckpointError: the library cannot run the file.
            MemoryError: the device has not enough memory.
        """


def is_exported(path: str | Path) -> bool:
    """Whether a path is that of an exported file, by its suffix."""
    return Path(path).suffix in EXPORTED_SUFFIXES


def open_engine(path: Path, device: torch.device, processor: str | None = None) -> Engine:
    """Loads an exported file.

    Args:
        path: with one of `EXPORTED_SUFFIXES`.
        device: where it runs.
        processor: what OpenVINO runs on, e.g. "NPU"; None: its CPU.

    Raises:
        CheckpointError: missing, damaged, or not written by `codetr export`.
        ConfigError: a processor of another library.
        ResourceError: its library is not installed, or cannot use the device.
    """
    if path.suffix == ".xml":
        from codetr_cli.inference.exported.openvino import OpenVinoEngine

        return OpenVinoEngine.open(path, device, processor)
    if processor is not None:
        raise ConfigError(f"test.openvino_device={processor}: {path} does not run in OpenVINO, use --device instead")
    opener = _OPENERS.get(path.suffix)
    if opener is None:
        raise CheckpointError(f"{path}: this release of codetr does not run {path.suffix} files")
    return opener(path, device)


def choose_for_file(path: str | Path, device: str) -> tuple[str, list[str]]:
    """Which device to choose for a checkpoint or exported file, and the settings that go with it.

    Args:
        path: of a checkpoint of any kind; only exported files make a difference.
        device: as the user gives it: those of `runtime.devices.choose_device`, and for OpenVINO "gpu", "gpu.1", "npu".

    Returns:
        the device for `choose_device`, and overrides as `key=value`. "auto" is the CPU where the library of the file
        has nothing for the GPU that PyTorch may have.
    """
    suffix = Path(path).suffix
    if suffix == ".xml":
        name = "gpu" if device == "xpu" else device
        if re.fullmatch(r"(gpu|npu)(\.\d+)?", name, re.IGNORECASE):
            return "cpu", [f"test.openvino_device={name.upper()}"]
        if device == "auto":
            return "cpu", []
    if suffix == ".onnx" and device == "auto":
        from codetr_cli.inference.exported.onnx_runtime import has_gpu_provider

        return ("auto" if has_gpu_provider() else "cpu"), []
    return device, []


def first_line(error: Exception) -> str:
    """The first sentence of a library's error that says something, with a full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not re.match(r"Exception from \S+:\d+:?$|Check '.*' failed at", line)]
    text = (told or lines or [type(error).__name__])[0]
    return text[:500].rstrip(".:") + "."


def _open_onnx(path: Path, device: torch.device) -> Engine:
    from codetr_cli.inference.exported.onnx_runtime import OnnxRuntimeEngine

    return OnnxRuntimeEngine.open(path, device)


def _open_tensorrt(path: Path, device: torch.device) -> Engine:
    from codetr_cli.inference.exported.tensorrt import TensorRTEngine

    return TensorRTEngine.open(path, device)


_OPENERS: dict[str, Callable[[Path, torch.device], Engine]] = {".onnx": _open_onnx, ".engine": _open_tensorrt}
