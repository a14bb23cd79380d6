"""`codetr bench infer`: images per second, latency and memory of inference, and the time of each stage."""

from __future__ import annotations

from typing import Annotated

import typer

from codetr_cli.commands import _options as opt
from codetr_cli.commands.bench import _measurement as measurement

EXAMPLES = (
    "codetr bench infer --preset co_dino_swin_l --precision bf16",
    "codetr bench infer --checkpoint runs/co_dino_r50/1 --size 640x640",
    "codetr bench infer --compare torch --out infer.json",
)
BatchOption = Annotated[int | None, opt.option("--batch", "N", "Images per batch. Default: 1.", opt.INPUT, min=1)]


def infer(
    context: typer.Context,
    preset: opt.PresetOption = None,
    checkpoint: opt.CheckpointOption = None,
    size: opt.SizeOption = None,
    batch: BatchOption = None,
    gpus: opt.GpusOption = None,
    device: opt.DeviceOption = "auto",
    procs: opt.ProcsOption = None,
    precision: opt.InferencePrecisionOption = "auto",
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
    """Benchmark inference: images/s, latency, memory, time per stage.

    Images are synthetic and a preset's weights are random: neither changes the speed. Several
    processes: images/s over all, beside those of one alone.
    """
    measurement.benchmark_network(context, "inference", batch=batch)
