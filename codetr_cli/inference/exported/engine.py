"""The one interface to the libraries that run exported files, and which library a file needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from codetr_cli.inference.exported.metadata import ExportMetadata

EXPORTED_SUFFIXES = (".onnx", ".xml", ".engine", ".pt2")
"""Suffixes of exported files: of ONNX, OpenVINO, TensorRT and PyTorch."""


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
        """The outputs by name.

        Args:
            images: see `metadata.InputRule`; its size and batch are those of the file where they are fixed.
            image_sizes: (B, 2) int64.

        Raises:
            ResourceError: the device has not enough memory.
        """


def is_exported(path: str | Path) -> bool:
    """Whether a path is that of an exported file, by its suffix."""
    return Path(path).suffix in EXPORTED_SUFFIXES


def open_engine(path: Path, device: torch.device) -> Engine:
    """Loads an exported file.

    Args:
        path: with one of `EXPORTED_SUFFIXES`.
        device: where it runs.

    Raises:
        CheckpointError: missing, damaged, or not written by `codetr export`.
        ResourceError: its library is not installed, or cannot use the device.
    """
    return _OPENERS[path.suffix](path, device)


def _open_onnx(path: Path, device: torch.device) -> Engine:
    from codetr_cli.inference.exported.onnx_runtime import OnnxRuntimeEngine

    return OnnxRuntimeEngine.open(path, device)


def _open_tensorrt(path: Path, device: torch.device) -> Engine:
    from codetr_cli.inference.exported.tensorrt import TensorRTEngine

    return TensorRTEngine.open(path, device)


_OPENERS: dict[str, Callable[[Path, torch.device], Engine]] = {".onnx": _open_onnx, ".engine": _open_tensorrt}
