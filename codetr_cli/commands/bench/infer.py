"""`codetr bench infer`: images per second, latency and memory of inference, and the time of each stage."""

from __future__ import annotations

from typing import Annotated

import typer

from codetr_cli.commands import _options as opt
from codetr_cli.commands.bench import _measurement as measurement
from codetr_cli.commands.bench._end_to_end import benchmark_end_to_end, check_options

EXAMPLES = (
    "codetr bench infer --preset co_dino_swin_l --precision bf16",
    "codetr bench infer --checkpoint runs/co_dino_r50/1 --size 640x640",
    "codetr bench infer --compare torch --out infer.json",
    "codetr bench infer --end-to-end --checkpoint runs/co_dino_r50/1 --images photos/",
)
BatchOption = Annotated[
    int | None,
    opt.option("--batch", "N", "Images per batch. Default: 1; with --end-to-end that of predict.", opt.INPUT, min=1),
]
EndToEndOption = Annotated[
    bool, opt.flag("--end-to-end", "Measure from image files to results, as by predict.", opt.MEASUREMENT)
]
ImagesOption = Annotated[
    str | None,
    opt.option("--images", "DIR", "With --end-to-end: a folder, or the number of synthetic images.", opt.INPUT),
]
WorkersOption = Annotated[
    int | None, opt.option("--workers", "N", "With --end-to-end: as of predict.", opt.DEVICE, min=1)
]
NoDrawOption = Annotated[bool, opt.flag("--no-draw", "With --end-to-end: draw nothing.", opt.OUTPUT)]


def infer(
    context: typer.Context,
    preset: opt.PresetOption = None,
    checkpoint: opt.CheckpointOption = None,
    size: opt.SizeOption = None,
    batch: BatchOption = None,
    images: ImagesOption = None,
    gpus: opt.GpusOption = None,
    device: opt.DeviceOption = "auto",
    procs: opt.ProcsOption = None,
    precision: opt.InferencePrecisionOption = "auto",
    threads: opt.ThreadsOption = None,
    workers: WorkersOption = None,
    end_to_end: EndToEndOption = False,
    warmup: opt.WarmupOption = None,
    iterations: opt.IterationsOption = None,
    compare: opt.CompareOption = None,
    no_draw: NoDrawOption = False,
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
    processes: images/s over all, beside those of one alone. With --end-to-end files are read, and results drawn and
    written.
    """
    check_options(context, end_to_end=end_to_end)
    if end_to_end:
        benchmark_end_to_end(context)
        return
    measurement.benchmark_network(context, "inference", batch=batch)
