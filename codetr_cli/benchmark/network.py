"""The network of a preset or checkpoint, ready to be measured, as the program uses it and without optimizations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from codetr_cli.benchmark.compare import compare
from codetr_cli.benchmark.exported import ExportedWorkload
from codetr_cli.benchmark.model import (
    TRAINING_OBJECTS,
    BenchmarkSpec,
    InferenceWorkload,
    TrainingWorkload,
    Workload,
    measure,
)
from codetr_cli.errors import ConfigError
from codetr_cli.inference.exported.network import ExportedNetwork, check_precision, parameter_count, runtime_facts
from codetr_cli.inference.loading import LoadedModel, load_detector
from codetr_cli.models.inference_mode import disable_optimizations
from codetr_cli.runtime.synthetic import randomize_weights
from codetr_cli.runtime.timing import Tick


class BenchmarkedNetwork:
    """Loads a network and measures it.

    Args:
        target: checkpoint or preset.
        overrides: of the settings.
        device: where it runs.
        training: measure training steps instead of inference.
        random_weights: of a preset, use random weights instead of those that are published for it.
    """

    def __init__(
        self, target: str, overrides: Sequence[str], device: torch.device, *, training: bool, random_weights: bool
    ) -> None:
        self.target, self.overrides, self.device = target, overrides, device
        self.training, self.random_weights = training, random_weights
        loaded = self._load(overrides, optimize=True)
        self.settings = loaded.settings
        self.parameters = parameter_count(loaded.model)
        self.runtime = runtime_facts(loaded.model)
        self._loaded: LoadedModel | None = loaded

    def spec(
        self,
        *,
        runs: tuple[int, int, int],
        size: tuple[int, int] | None = None,
        batch: int | None = None,
        precision: str = "auto",
        objects: int | None = None,
    ) -> BenchmarkSpec:
        """What to measure; `runs` are warm-up runs, measured runs, and runs for the split into stages.

        None stands for the settings' input size, one image or in training the settings' micro batch, and
        `TRAINING_OBJECTS`.
        """
        if self._loaded is not None:
            check_precision(self._loaded.model, precision)
        warmup, iterations, split_iterations = runs
        return BenchmarkSpec(
            size=size or self.settings.test.input_size,
            batch=batch or (self.settings.train.micro_batch if self.training else 1),
            device=self.device,
            precision=precision,
            warmup=warmup,
            iterations=iterations,
            split_iterations=split_iterations,
            objects=objects or TRAINING_OBJECTS,
        )

    def measure(self, spec: BenchmarkSpec, tick: Tick = lambda: None) -> dict[str, Any]:
        """Measures the network; `tick` is called `spec.ticks` times."""
        workload = self._optimized(spec)
        timing = measure(workload, tick)
        return {**self._summary(spec), **_graphs(workload), **asdict(timing)}

    def scale(self, spec: BenchmarkSpec, tick: Tick = lambda: None) -> dict[str, Any] | None:
        """Measures one process and all processes of the group, which call it together; `tick`: `2 * spec.ticks` times.

        None in processes other than that of rank 0.
        """
        # FSDP's imports take a second, which one process does not need.
        from codetr_cli.benchmark.scaling import measure_scaling

        workload = self._optimized(spec)
        found = measure_scaling(workload, tick)
        if found is None:
            return None
        # Latency, stages and memory are those of a process while all work.
        numbers = asdict(found)
        together = numbers.pop("together")
        images = {"images_per_step": spec.batch * found.processes}
        return {**self._summary(spec), **_graphs(workload), **together, **numbers, **images}

    def compare(self, spec: BenchmarkSpec, tick: Tick = lambda: None) -> dict[str, Any]:
        """Measures the network with and without optimizations, in turn; `tick`: `spec.comparison_ticks` times."""
        found = compare(lambda: self._optimized(spec), lambda: self._plain(spec), spec, tick)
        return {**self._summary(spec), **asdict(found)}

    def _optimized(self, spec: BenchmarkSpec) -> Workload:
        """The network as every other verb uses it; the caller owns it alone."""
        loaded, self._loaded = self._loaded or self._load(self.overrides, optimize=True), None
        return self._workload(loaded, spec)

    def _plain(self, spec: BenchmarkSpec) -> Workload:
        """The network without optimizations, except for the operator: `compare` chooses its backend."""
        # A backend named in the settings would override the choice of `compare`.
        loaded = self._load([*self.overrides, "model.attention_backend=auto"], optimize=False)
        if isinstance(loaded.model, ExportedNetwork):
            raise ConfigError(
                f"--compare measures the optimizations of a network in PyTorch, and {self.target} is an exported file: "
                "measure it, and the checkpoint that it was made from, by two commands"
            )
        disable_optimizations(loaded.model)
        return self._workload(loaded, spec)

    def _load(self, overrides: Sequence[str], *, optimize: bool) -> LoadedModel:
        """The network; a preset's random weights are the same every time."""
        torch.manual_seed(0)
        loaded = load_detector(
            self.target,
            self.device,
            overrides,
            training=self.training,
            optimize=optimize,
            random_weights=self.random_weights,
        )
        if loaded.path is None:
            randomize_weights(loaded.model)
        return loaded

    def _workload(self, loaded: LoadedModel, spec: BenchmarkSpec) -> Workload:
        if isinstance(loaded.model, ExportedNetwork):
            return ExportedWorkload(loaded.model, loaded.postprocess, loaded.settings, spec)
        if self.training:
            return TrainingWorkload(loaded.model, loaded.settings, spec)
        return InferenceWorkload(loaded.model, loaded.postprocess, loaded.settings, spec)

    def _summary(self, spec: BenchmarkSpec) -> dict[str, Any]:
        return {
            "name": self.settings.name,
            "size": list(spec.size),
            "batch": spec.batch,
            "precision": self.runtime.get("runtime", {}).get("precision")
            or spec.resolved_precision(training=self.training),
            "warmup": spec.warmup,
            "iterations": spec.iterations,
            "split_iterations": spec.split_iterations,
            **({"objects": spec.objects} if self.training else {}),
            "parameters": self.parameters,
            **self.runtime,
        }


def _graphs(workload: Workload) -> dict[str, int]:
    """The number of CUDA graphs that an inference replays."""
    return {"cuda_graphs": workload.cuda_graphs} if isinstance(workload, InferenceWorkload) else {}
