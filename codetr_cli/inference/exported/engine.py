"""The one interface to the libraries that run exported files, and which library a file needs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from codetr_cli.errors import CheckpointError, ConfigError
from codetr_cli.files import EXPORTED_SUFFIXES
from codetr_cli.inference.exported.engine_info import EngineInfo
from codetr_cli.inference.exported.metadata import ExportMetadata


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
        has nothing for the GPU that PyTorch may have, and for packages that are compiled for a CPU.
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
    if suffix == ".pt2" and device == "auto":
        from codetr_cli.inference.exported.torch_package import is_for_gpu

        return ("auto" if is_for_gpu(Path(path)) else "cpu"), []
    return device, []


def _open_onnx(path: Path, device: torch.device) -> Engine:
    from codetr_cli.inference.exported.onnx_runtime import OnnxRuntimeEngine

    return OnnxRuntimeEngine.open(path, device)


def _open_tensorrt(path: Path, device: torch.device) -> Engine:
    from codetr_cli.inference.exported.tensorrt import TensorRTEngine

    return TensorRTEngine.open(path, device)


def _open_torch_package(path: Path, device: torch.device) -> Engine:
    from codetr_cli.inference.exported.torch_package import TorchPackageEngine

    return TorchPackageEngine.open(path, device)


_OPENERS: dict[str, Callable[[Path, torch.device], Engine]] = {
    ".onnx": _open_onnx,
    ".engine": _open_tensorrt,
    ".pt2": _open_torch_package,
}
