"""Measures an exported file: the network in its library, and the post-processing in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from codetr_cli.benchmark.model import BenchmarkSpec, InferenceWorkload
from codetr_cli.config.schema import Settings
from codetr_cli.inference.exported.engine import Engine
from codetr_cli.inference.exported.network import ExportedNetwork
from codetr_cli.inference.pipeline import inference
from codetr_cli.models.postprocess import PostProcess
from codetr_cli.runtime.timing import Stopwatch, seconds_of


class ExportedWorkload(InferenceWorkload):
    """Inference of an exported file on one batch of synthetic images.

    Args:
        network: the file.
        postprocess: as built from the settings.
        settings: mean and std of the input.
        spec: what to measure.
    """

    STAGES = ("network", "post-processing")

    def __init__(
        self, network: ExportedNetwork, postprocess: PostProcess, settings: Settings, spec: BenchmarkSpec
    ) -> None:
        super().__init__(network, postprocess, settings, spec)
        if network.takes_pixels:
            self.images = self.batch.images

    def split(self) -> dict[str, float]:
        """Seconds of each stage of one run."""
        assert isinstance(self.model, ExportedNetwork)
        timed = _TimedEngine(self.model.engine)
        with inference(self.model, self.spec.device, self.spec.precision):
            network = ExportedNetwork(timed, self.model.path)
            total = seconds_of(lambda: self._detect(network, self.postprocess), self.spec.device)
        seconds = sum(timed.stopwatch.seconds)
        return {"network": seconds, "post-processing": max(0.0, total - seconds)}


class _TimedEngine:
    """An engine that measures its runs."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.metadata, self.info, self.device = engine.metadata, engine.info, engine.device
        self.stopwatch = Stopwatch()

    def run(self, images: Tensor, image_sizes: Tensor) -> dict[str, Tensor]:
        with self.stopwatch.measure(torch.device(self.device)):
            return self._engine.run(images, image_sizes)
