"""A training in two objects: what is fixed while it runs (`TrainContext`) and what changes (`TrainState`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from codetr_cli.config.schema import Settings
from codetr_cli.data.batch import Batch
from codetr_cli.data.loading.loader import TrainLoader
from codetr_cli.distributed.sharded_state import ShardWriters
from codetr_cli.distributed.watchdog import Heartbeat
from codetr_cli.runs.folder import RunFolder
from codetr_cli.runtime.signals import StopRequest
from codetr_cli.training.background_writer import BackgroundWriter
from codetr_cli.training.best_report import BestReport
from codetr_cli.training.ema import ModelEma
from codetr_cli.training.loggers import Loggers
from codetr_cli.training.metrics import DataWaitMonitor, StepMetrics
from codetr_cli.training.nonfinite import NonfiniteValues, StepInputs
from codetr_cli.training.optim import Schedule
from codetr_cli.training.plan import BatchSizes
from codetr_cli.training.plots import RunPlots
from codetr_cli.training.progress import Progress
from codetr_cli.training.reporter import Reporter


class MicroBatches:
    """The micro batches of one step, read when first needed and kept in case the step is computed again."""

    def __init__(self, read: Callable[[], Batch], count: int) -> None:
        self._read, self._count = read, count
        self._kept: list[Batch] = []

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Batch]:
        for index in range(self._count):
            if index == len(self._kept):
                self._kept.append(self._read())
            yield self._kept[index]


@dataclass(frozen=True, kw_only=True)
class RunIO:
    """Where a training writes and reports, and what can stop it.

    Attributes:
        folder: the run folder; only the process of rank 0 writes there.
        loggers: external services that receive the lines of metrics.jsonl; only in the process of rank 0.
        stop: whether a signal has asked to stop.
        heartbeat: records the current activity for the watchdog.
    """

    folder: RunFolder
    loggers: Loggers
    reporter: Reporter
    stop: StopRequest
    heartbeat: Heartbeat

    def log(self, line: Mapping[str, Any]) -> None:
        """Writes a line, with the time, to metrics.jsonl and to the loggers; for the process of rank 0."""
        line = {**line, "time": round(time.time(), 2)}
        self.folder.log(line)
        self.loggers.log(line)


@dataclass(frozen=True, kw_only=True)
class TrainContext:
    """What stays the same during a training.

    Attributes:
        settings: of the run; model.num_classes is that of the data.
        class_names: by label, for the checkpoints, like the category ids.
        dtype: of autocast, None for float32.
        batches: how the images of a step are divided.
        objective: images, padding mask and targets in, losses by name out; wrapped for several processes.
        model: the detector inside the objective; its state dict is what checkpoints hold.
        evaluate: metrics of the current model after a step, in every process; None never evaluates.
        shard_writers: all processes as writers of the checkpoints of a sharded training; None for any other.
        best_report: of the best checkpoint, written at the end; None: none is written.
        lineage: what the training started from, for the checkpoints, see `runs.lineage`; empty: from nothing.
    """

    settings: Settings
    class_names: list[str]
    category_ids: list[int]
    device: torch.device
    dtype: torch.dtype | None
    batches: BatchSizes
    objective: nn.Module
    model: nn.Module
    loader: TrainLoader
    evaluate: Callable[[int], dict[str, float]] | None
    shard_writers: ShardWriters | None
    io: RunIO
    best_report: BestReport | None = None
    lineage: Mapping[str, str] = field(default_factory=dict)


@dataclass(kw_only=True)
class TrainState:
    """What changes during a training, in addition to the weights.

    Attributes:
        scaler: of fp16 gradients; disabled for other precisions.
        ema: moving average of the weights, None without.
        total_steps: optimizer steps of the whole run.
        schedule: of the learning rate over these steps.
        metrics: of the steps since the last log line.
        newest_line: of training in metrics.jsonl; empty before the first.
        step_inputs: forward passes of the newest step, for the reproducer of a non-finite one.
        nonfinite: non-finite values of the newest skipped step.
        data_waits: detects a training that waits for data.
    """

    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: ModelEma | None
    total_steps: int
    schedule: Schedule
    metrics: StepMetrics
    plots: RunPlots
    progress: Progress = field(default_factory=Progress)
    writer: BackgroundWriter = field(default_factory=BackgroundWriter)
    newest_line: dict[str, Any] = field(default_factory=dict)
    step_inputs: StepInputs = field(default_factory=list)
    nonfinite: NonfiniteValues | None = None
    data_waits: DataWaitMonitor = field(default_factory=DataWaitMonitor)

    @property
    def steps_left(self) -> int:
        """Optimizer steps to the end of the run."""
        return self.total_steps - self.progress.step
