"""`codetr bench ops`: deformable attention alone, every backend of this machine beside the machine's limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from codetr_cli import console
from codetr_cli.commands import _options as opt
from codetr_cli.commands.bench import _measurement as measurement
from codetr_cli.commands.bench import _tables as tables
from codetr_cli.errors import ConfigError, nearest

if TYPE_CHECKING:
    import torch

    from codetr_cli.benchmark.operators import OperatorSpec

EXAMPLES = (
    "codetr bench ops --device cuda --dtype bf16 --batch 2",
    "codetr bench ops --backend cpu --shape encoder --threads 4",
)
DTYPES = {"fp32": "float32", "fp64": "float64", "bf16": "bfloat16", "fp16": "float16"}


BackendOption = Annotated[
    list[str] | None, opt.option("--backend", "NAME", "Only this one and the reference. Repeatable.", opt.INPUT)
]
ShapeOption = Annotated[
    Literal["encoder", "decoder", "both"], opt.option("--shape", "NAME", "encoder, decoder or both.", opt.INPUT)
]
ImageSizeOption = Annotated[str, opt.option("--size", "HxW", "Image size in pixels.", opt.INPUT)]
LevelsOption = Annotated[int, opt.option("--levels", "N", "Feature levels.", opt.INPUT, min=1, max=8)]
BatchOption = Annotated[int, opt.option("--batch", "N", "Images per call.", opt.INPUT, min=1)]
DtypeOption = Annotated[
    Literal["fp32", "fp64", "bf16", "fp16"], opt.option("--dtype", "TYPE", "fp32, fp64, bf16 or fp16.", opt.INPUT)
]
UnfusedOption = Annotated[bool, opt.flag("--unfused", "Locations and weights are computed before.", opt.INPUT)]
CandidatesOption = Annotated[
    bool, opt.flag("--candidates", "Measure every form of the Triton kernels (GPUs).", opt.INPUT)
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
    candidates: CandidatesOption = False,
    classic: ClassicOption = False,
    device: opt.DeviceOption = "auto",
    threads: opt.ThreadsOption = None,
    warmup: opt.WarmupOption = None,
    iterations: opt.IterationsOption = None,
    out: opt.ReportOption = None,
    force: opt.ForceOption = False,
    json_output: opt.JsonOption = False,
    quiet: opt.QuietOption = False,
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
            candidates=candidates,
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
