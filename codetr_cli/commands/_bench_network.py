"""What `codetr bench` measures of the whole network, and with what."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from codetr_cli import console

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from codetr_cli.benchmark.model import Plan, Run
    from codetr_cli.inference.loading import LoadedModel


class Network:
    """The whole network: what is measured of it, and with what.

    Args:
        kind: "inference" or "training".
        target: checkpoint or preset.
        overrides: settings.
        device: where it runs.
        random_weights: time a preset without the weights that are published for it.
    """

    def __init__(
        self, kind: str, target: str, overrides: Sequence[str], device: torch.device, *, random_weights: bool
    ) -> None:
        self.training, self.target, self.overrides, self.device = kind == "training", target, overrides, device
        self.random_weights = random_weights
        loaded = self._load(self.overrides, lean=True)
        self.settings = loaded.settings
        self.parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
        self.loaded: LoadedModel | None = loaded

    def plan(
        self,
        *,
        size: tuple[int, int] | None,
        batch: int | None,
        precision: str,
        objects: int | None,
        runs: tuple[int, int, int],
    ) -> Plan:
        """What to measure with; what is not given is the settings'."""
        from codetr_cli.benchmark.model import TRAINING_OBJECTS, Plan

        settings = self.settings
        return Plan(
            size=size or settings.test.input_size,
            batch=batch or (settings.train.micro_batch if self.training else 1),
            device=self.device,
            precision=precision,
            warmup=runs[0],
            iterations=runs[1],
            split_iterations=runs[2],
            objects=objects or TRAINING_OBJECTS,
        )

    def measure(self, plan: Plan) -> dict[str, Any]:
        """Times the network."""
        from codetr_cli.benchmark.model import measure

        with console.progress(f"timing {'training' if self.training else 'inference'}", plan.ticks) as advance:
            timing = measure(self._ours(plan), plan, advance)
        return {**self._facts(plan), **asdict(timing)}

    def compare(self, plan: Plan) -> dict[str, Any]:
        """Times the network with all savings and without, in turn."""
        from codetr_cli.benchmark.compare import compare, compare_ticks

        with console.progress("timing ours and plain in turn", compare_ticks(plan)) as advance:
            found = compare(lambda: self._ours(plan), lambda: self._plain(plan), plan, advance)
        return {**self._facts(plan), **asdict(found)}

    def _ours(self, plan: Plan) -> Run:
        """The network as every other verb uses it; kept by nobody else."""
        loaded, self.loaded = self.loaded or self._load(self.overrides, lean=True), None
        return self._run(loaded, plan)

    def _plain(self, plan: Plan) -> Run:
        """The network without what makes it fast, apart from the operator, which is chosen around its runs."""
        from codetr_cli.models.inference_mode import disable_optimizations

        # A backend that the settings name would stand above the plain way's.
        overrides = [*self.overrides, "model.attention_backend=auto"]
        loaded = self._load(overrides, lean=False)
        disable_optimizations(loaded.model)
        return self._run(loaded, plan)

    def _load(self, overrides: Sequence[str], *, lean: bool) -> LoadedModel:
        """The network; a preset's random weights are the same every time."""
        import torch

        from codetr_cli.inference.loading import load_detector
        from codetr_cli.runtime.synthetic import randomize_weights

        torch.manual_seed(0)
        loaded = load_detector(
            self.target,
            self.device,
            overrides,
            training=self.training,
            optimize=lean,
            random_weights=self.random_weights,
        )
        if loaded.path is None:
            randomize_weights(loaded.model)
        return loaded

    def _run(self, loaded: LoadedModel, plan: Plan) -> Run:
        from codetr_cli.benchmark.model import DetectionRun, TrainingRun

        if self.training:
            return TrainingRun(loaded.model, loaded.settings, plan)
        return DetectionRun(loaded.model, loaded.postprocess, loaded.settings, plan)

    def _facts(self, plan: Plan) -> dict[str, Any]:
        return {
            "name": self.settings.name,
            "size": list(plan.size),
            "batch": plan.batch,
            "precision": plan.resolved_precision(training=self.training),
            "warmup": plan.warmup,
            "iterations": plan.iterations,
            "split_iterations": plan.split_iterations,
            **({"objects": plan.objects} if self.training else {}),
            "parameters": self.parameters,
        }
