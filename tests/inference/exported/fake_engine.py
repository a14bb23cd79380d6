"""An exported file without a library: its metadata, and the network in PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from codetr_cli.export.graph import DetectionGraph
from codetr_cli.inference.exported.engine_info import EngineInfo
from codetr_cli.inference.exported.metadata import ExportMetadata, output_names
from codetr_cli.inference.loading import LoadedModel


class FakeEngine:
    """See `engine.Engine`; keeps the shapes of its inputs."""

    def __init__(self, loaded: LoadedModel, metadata: ExportMetadata) -> None:
        self.metadata, self.device = metadata, torch.device("cpu")
        self.info = EngineInfo("PyTorch", "cpu", "fp32")
        self.shapes: list[tuple[int, ...]] = []
        self._graph: Any = DetectionGraph(loaded.model, metadata).eval()

    def run(self, images: Tensor, image_sizes: Tensor) -> dict[str, Tensor]:
        assert images.is_contiguous()
        assert image_sizes.dtype == torch.int64
        self.shapes.append(tuple(images.shape))
        with torch.inference_mode():
            return dict(zip(output_names(self.metadata), self._graph(images, image_sizes), strict=True))
