"""`codetr bench infer`: images per second, latency and memory of inference, and the time of each stage."""

from __future__ import annotations

from typing import Annotated

import typer

from codetr_cli import console
from codetr_cli.commands._options import (
    CheckpointOption,
    DeviceOption,
    ForceOption,
    InferencePrecisionOption,
    JsonOption,
    PresetOption,
    QuietOption,
    SetOption,
    ThreadsOption,
)
from codetr_cli.commands.bench import _measurement as measurement
from codetr_cli.commands.bench._measurement import (
    CompareOption,
    IterationsOption,
    OutOption,
    SizeOption,
    WarmupOption,
)

EXAMPLES = (
    "codetr bench infer --preset co_dino_swin_l --precision bf16",
    "codetr bench infer --checkpoint runs/co_dino_r50/1 --size 640x640",
    "codetr bench infer --compare torch --out infer.json",
)
BatchOption = Annotated[
    int | None,
    typer.Option("--batch", metavar="N", min=1, help="Images per batch. Default: 1.", rich_help_panel="Input"),
]


def infer(
    preset: PresetOption = None,
    checkpoint: CheckpointOption = None,
    size: SizeOption = None,
    batch: BatchOption = None,
    device: DeviceOption = "auto",
    precision: InferencePrecisionOption = "auto",
    threads: ThreadsOption = None,
    warmup: WarmupOption = None,
    iterations: IterationsOption = None,
    compare: CompareOption = None,
    out: OutOption = None,
    force: ForceOption = False,
    overrides: SetOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Benchmark inference: images/s, latency, memory, time per stage.

    Images are synthetic and a preset's weights are random: neither changes the speed.
    """
    console.set_mode(json=json_output, quiet=quiet)
    measurement.check_target(preset, checkpoint)
    input_size = measurement.parse_size(size) if size else None
    chosen = measurement.prepare_device(device, threads)
    report = measurement.benchmark_network(
        "inference",
        preset=preset,
        checkpoint=checkpoint,
        overrides=overrides,
        device=chosen,
        compare=compare is not None,
        size=input_size,
        batch=batch,
        precision=precision,
        runs=measurement.run_counts(chosen.type, warmup, iterations),
    )
    measurement.finish_report(report, out, force=force)
