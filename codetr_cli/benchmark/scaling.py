"""Throughput of all processes together, and how it compares with that of one of them alone, in the same run."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from codetr_cli.benchmark.model import Timing, TrainingWorkload, Workload, measure
from codetr_cli.distributed import process_group
from codetr_cli.distributed.fsdp import check_shardable, shard
from codetr_cli.losses.build import build_objective
from codetr_cli.runtime.timing import Tick
from codetr_cli.training.build import build_normalizers
from codetr_cli.training.optim import build_optimizer


@dataclass(frozen=True)
class Scaling:
    """Results of a measurement in several processes; every process has a batch of its own.

    Attributes:
        processes: their number.
        images_per_second: over all processes: the sum of their rates while all of them work.
        images_per_second_of_each: by rank.
        scaling_efficiency: `images_per_second` over what as many processes would reach if each were as fast as one
            alone; 1 is perfect.
        together: of the process of rank 0 while all work.
        one_process: of the process of rank 0 while the others wait.
    """

    processes: int
    images_per_second: float
    images_per_second_of_each: list[float]
    scaling_efficiency: float
    together: Timing
    one_process: Timing


def measure_scaling(workload: Workload, tick: Tick = lambda: None) -> Scaling | None:
    """Measures one process, then all; all processes of the group call it together.

    Args:
        workload: of this process; the training's gradients are averaged over all processes in the second part.
        tick: called after each run in the process of rank 0, twice `spec.ticks` times.

    Returns:
        the result in the process of rank 0; None in the others.
    """
    one_process = measure(workload, tick) if process_group.is_main() else None
    process_group.barrier()
    if isinstance(workload, TrainingWorkload):
        _distribute(workload)
    process_group.barrier()
    together = measure(workload, tick if process_group.is_main() else lambda: None)
    rates = process_group.gather_objects(together.images_per_second)
    if one_process is None:
        return None
    total = sum(rates)
    return Scaling(
        processes=len(rates),
        images_per_second=total,
        images_per_second_of_each=rates,
        scaling_efficiency=total / (len(rates) * one_process.images_per_second),
        together=together,
        one_process=one_process,
    )


def _distribute(workload: TrainingWorkload) -> None:
    """From now on, steps average gradients and normalizers over all processes, as a training does; or shard weights."""
    settings = workload.settings
    if settings.train.fsdp:
        check_shardable(fp16=workload.dtype == torch.float16, compiled=settings.train.compile)
    objective = build_objective(workload.model, settings.train.loss, normalizers=build_normalizers(settings)).train()
    wrap = shard if settings.train.fsdp else process_group.wrap_ddp
    workload.objective = wrap(objective, workload.spec.device)
    workload.optimizer = build_optimizer(workload.model, settings.train)
