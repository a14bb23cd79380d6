"""Metrics of a training between two log lines: mean losses, speed, share of waiting for data, memory, ETA."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from codetr_cli.config.schema import Settings
from codetr_cli.runtime.energy import GpuEnergy
from codetr_cli.runtime.memory import main_memory_left
from codetr_cli.runtime.timing import peak_memory


class StepMetrics:
    """Collects the metrics of a window of steps without synchronizing with the GPU.

    Args:
        group_losses: sums losses by group.
        reduce_mean: averages a tensor over all processes; called once per line, in every process.
        world_size: number of processes.
        device: the peak memory of which is reported.
        rank: of this process.
        energy: joules that this process's GPU has used since the last call; None where they are not counted. None: of
            the device.
    """

    def __init__(
        self,
        *,
        group_losses: Callable[[dict[str, Tensor]], Mapping[str, Tensor | float]],
        reduce_mean: Callable[[Tensor], Tensor],
        world_size: int,
        device: torch.device,
        rank: int = 0,
        energy: Callable[[], float | None] | None = None,
    ) -> None:
        self.group_losses, self.reduce_mean = group_losses, reduce_mean
        self.world_size, self.device, self.rank = world_size, device, rank
        self._joules = energy or GpuEnergy(device).joules
        self.seconds_per_step = 0.0
        self.restart()

    def restart(self) -> None:
        """Starts a window; also after other work than training, so that its time does not count."""
        self._names: list[str] = []
        self._sums: Tensor | None = None
        self._new: list[Tensor] = []  # losses of micro batches of an unfinished step
        self._micro_batches = self._images = self._steps = 0
        self._waited = 0.0
        self._started = time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside the context as waiting for data."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    def add(self, losses: Mapping[str, Tensor], images: int) -> None:
        """Counts a micro batch of this process; its losses are scalars with the same names every time."""
        self._new.append(torch.stack([value.detach().float() for value in losses.values()]))
        self._names = list(losses)
        self._images += images

    def step_done(self) -> None:
        """Counts an optimizer step and the losses that led to it."""
        for values in self._new:
            self._sums = values if self._sums is None else self._sums + values
        self._micro_batches += len(self._new)
        self.step_skipped()

    def step_skipped(self) -> None:
        """Counts the time and images of a skipped step, but not its losses."""
        self._new = []
        self._steps += 1

    @property
    def has_losses(self) -> bool:
        """Whether the window holds a step whose losses count."""
        return self._sums is not None

    def line(self, steps_left: int) -> dict[str, Any]:
        """The metrics of the window as plain numbers; starts a new window. All processes must call it at the same step.

        Returns:
            loss (sum), groups, losses (by name), images_per_s (of all processes), data_wait (share of time, of the
            process that waits most for data: the others wait for it), energy_j (of all GPUs since the last line; only
            where all are measured), memory_bytes (peak so far), ram_free_bytes (main
            memory that is available on this machine; only where the system reports it), eta_s.
        """
        if self._sums is None:
            raise ValueError("a line needs at least one micro batch")
        seconds = max(time.perf_counter() - self._started, 1e-9)
        shared = torch.zeros(1 + self.world_size)  # joules, then the share of waiting of each process
        shared[1 + self.rank] = self._waited / seconds * self.world_size  # after averaging, the share again
        joules = self._joules()
        shared[0] = math.nan if joules is None else joules * self.world_size
        mean = self.reduce_mean(torch.cat([self._sums / self._micro_batches, shared.to(self._sums)])).tolist()
        mean, (energy_j, *waits_by_rank) = mean[: len(self._names)], mean[len(self._names) :]
        per_step = seconds / max(1, self._steps)
        # Steps differ with the sizes of the images: the estimate follows slowly.
        self.seconds_per_step = 0.7 * self.seconds_per_step + 0.3 * per_step if self.seconds_per_step else per_step
        losses = dict(zip(self._names, mean, strict=True))
        groups = self.group_losses({name: torch.tensor(value) for name, value in losses.items()})
        line = {
            "loss": sum(losses.values()),
            "groups": {name: float(value) for name, value in groups.items()},
            "losses": losses,
            "images_per_s": self._images * self.world_size / seconds,
            "data_wait": max(waits_by_rank),
            "memory_bytes": peak_memory(self.device) or 0,
            **({"energy_j": energy_j} if math.isfinite(energy_j) else {}),
            **({} if (free := main_memory_left()) is None else {"ram_free_bytes": free}),
            "eta_s": steps_left * self.seconds_per_step,
        }
        self.restart()
        return line


class DataWaitMonitor:
    """Detects that a training waits for data permanently."""

    SHARE = 0.2  # of the time, above which a log line counts
    LINES = 4  # consecutive log lines

    def __init__(self) -> None:
        self._shares: list[float] = []
        self._advised = False

    def advice(self, share: float, settings: Settings) -> str | None:
        """A warning for the user, once per training; `share` is the newest line's share of time, 0 to 1."""
        if self._advised:
            return None
        self._shares = [*self._shares, share] if share > self.SHARE else []
        if len(self._shares) < self.LINES:
            return None
        self._advised = True
        waited = sum(self._shares[1:]) / (self.LINES - 1)  # the first may include the start of the workers
        folder = f" {shlex.quote(settings.data.root)}" if settings.data.root else ""
        return (
            f"the training waits for data {waited:.0%} of its time (data.workers = {settings.data.workers}): "
            f"`codetr bench data{folder} --preset {settings.name}` finds the bottleneck and reports how many workers "
            "are enough; data.workers may be changed when a run is continued"
        )
