"""`codetr bench train`: images per second, latency and memory of training steps, and the time of each stage."""

from __future__ import annotations

from typing import Annotated

import typer

from codetr_cli.commands import _options as opt
from codetr_cli.commands.bench import _measurement as measurement

EXAMPLES = (
    "codetr bench train --batch 2 --objects 20",
    "codetr bench train --preset co_dino_r50 --gpus 8",
    "codetr bench train --compare torch --size 512x640 --batch 1",
)
BatchOption = Annotated[
    int | None, opt.option("--batch", "N", "Images per step. Default: the preset's.", opt.INPUT, min=1)
]
ObjectsOption = Annotated[
    int | None, opt.option("--objects", "N", "Boxes per image. Default: 7, as in COCO.", opt.INPUT, min=1)
]


def train(
    context: typer.Context,
    preset: opt.PresetOption = None,
    checkpoint: opt.CheckpointOption = None,
    size: opt.SizeOption = None,
    batch: BatchOption = None,
    objects: ObjectsOption = None,
    gpus: opt.GpusOption = None,
    device: opt.DeviceOption = "auto",
    procs: opt.ProcsOption = None,
    precision: opt.TrainPrecisionOption = None,
    threads: opt.ThreadsOption = None,
    warmup: opt.WarmupOption = None,
    iterations: opt.IterationsOption = None,
    compare: opt.CompareOption = None,
    out: opt.ReportOption = None,
    force: opt.ForceOption = False,
    nodes: opt.NodesOption = None,
    rdzv_endpoint: opt.EndpointOption = None,
    node_rank: opt.NodeRankOption = None,
    slurm: opt.SlurmOption = False,
    overrides: opt.SetOption = None,
    json_output: opt.JsonOption = False,
    quiet: opt.QuietOption = False,
) -> None:
    """Benchmark training steps: images/s, latency, memory, time per stage.

    Images are synthetic and a preset's weights are random: neither changes the speed. Several
    processes: images/s over all, beside those of one alone.
    """
    measurement.benchmark_network(context, "training", batch=batch, objects=objects)
