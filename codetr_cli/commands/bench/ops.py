"""`codetr bench ops`: deformable attention alone, every backend of this machine beside the machine's limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from codetr_cli import console
from codetr_cli.commands._options import DeviceOption, ForceOption, JsonOption, QuietOption, ThreadsOption
from codetr_cli.commands.bench import _measurement as measurement
from codetr_cli.commands.bench import _tables as tables
from codetr_cli.commands.bench._measurement import IterationsOption, OutOption, WarmupOption
from codetr_cli.errors import ConfigError, nearest

if TYPE_CHECKING:
    import torch

    from codetr_cli.benchmark.operators import OperatorSpec

EXAMPLES = (
    "codetr bench ops --device cuda --dtype bf16 --batch 2",
    "codetr bench ops --backend cpu --shape encoder --threads 4",
)
INPUT = "Input"
DTYPES = {"fp32": "float32", "fp64": "float64", "bf16": "bfloat16", "fp16": "float16"}


BackendOption = Annotated[
    list[str] | None,
    typer.Option(
        "--backend", metavar="NAME", help="Only this one and the reference. Repeatable.", rich_help_panel=INPUT
    ),
]
ShapeOption = Annotated[
    Literal["encoder", "decoder", "both"],
    typer.Option("--shape", metavar="NAME", help="encoder, decoder or both.", rich_help_panel=INPUT),
]
ImageSizeOption = Annotated[
    str, typer.Option("--size", metavar="HxW", help="Image size in pixels.", rich_help_panel=INPUT)
]
LevelsOption = Annotated[
    int, typer.Option("--levels", metavar="N", min=1, max=8, help="Feature levels.", rich_help_panel=INPUT)
]
BatchOption = Annotated[
    int, typer.Option("--batch", metavar="N", min=1, help="Images per call.", rich_help_panel=INPUT)
]
DtypeOption = Annotated[
    Literal["fp32", "fp64", "bf16", "fp16"],
    typer.Option("--dtype", metavar="TYPE", help="fp32, fp64, bf16 or fp16.", rich_help_panel=INPUT),
]
UnfusedOption = Annotated[
    bool, typer.Option("--unfused", help="Locations and weights are computed before.", rich_help_panel=INPUT)
]
ClassicOption = Annotated[bool, typer.Option("--classic", hidden=True, help="Former name of --unfused.")]


def ops(
    backend: BackendOption = None,
    shape: ShapeOption = "both",
    size: ImageSizeOption = "800x1333",
    levels: LevelsOption = 5,
    batch: BatchOption = 1,
    dtype: DtypeOption = "fp32",
    unfused: UnfusedOption = False,
    classic: ClassicOption = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    warmup: WarmupOption = None,
    iterations: IterationsOption = None,
    out: OutOption = None,
    force: ForceOption = False,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Benchmark deformable attention: every backend and machine limits.

    The reference is the definition in plain PyTorch. Forward and backward pass are timed separately.
    """
    console.set_mode(json=json_output, quiet=quiet)
    image_size = measurement.parse_size(size)
    chosen = measurement.prepare_device(device, threads)

    import torch

    from codetr_cli.benchmark.operator_inputs import OperatorShape
    from codetr_cli.benchmark.operators import OperatorSpec

    backends = _known_backends(backend, chosen.type)
    report = measurement.start_report(chosen)
    runs = measurement.run_counts(chosen.type, warmup, iterations)
    names: Sequence[Literal["encoder", "decoder"]] = ("encoder", "decoder") if shape == "both" else (shape,)
    specs = [
        OperatorSpec(
            shape=OperatorShape(name=name, size=image_size, levels=levels, batch=batch),
            device=chosen,
            dtype=getattr(torch, DTYPES[dtype]),
            unfused=unfused or classic,
            backends=backends,
            warmup=runs[0],
            rounds=runs[1],
        )
        for name in names
    ]
    report["operators"] = _measure(specs, chosen, report["machine"])
    measurement.finish_report(report, out, force=force)


def _measure(specs: Sequence[OperatorSpec], device: torch.device, machine: dict[str, Any]) -> dict[str, Any]:
    """Measures the machine's limits and then each shape, and shows them."""
    from codetr_cli.benchmark.operators import benchmark_operator, report_table
    from codetr_cli.benchmark.roofline import measure_limits

    limits = measure_limits(device, specs[0].dtype)
    tables.show_limits(limits)
    shapes = []
    for spec in specs:
        with console.progress(f"measuring the {spec.shape.name} shape", spec.ticks) as advance:
            report = benchmark_operator(spec, limits, advance)
        tables.show_operator(report, machine)
        shapes.append(report_table(report))
    return {"limits": asdict(limits), "shapes": shapes}


def _known_backends(names: Sequence[str] | None, device_type: str) -> tuple[str, ...] | None:
    """The names as given; None for every backend.

    Raises:
        ConfigError: one of them does not exist.
    """
    from codetr_cli.ops.deform_attn import available_backends

    known = list(available_backends(device_type))
    for name in names or ():
        if name not in known:
            raise ConfigError(f"--backend {name!r} is unknown: {nearest(name, known)}")
    return tuple(names) if names else None
