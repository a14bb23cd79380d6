"""`codetr bench infer --end-to-end`: a prediction from files to results, stage by stage."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import typer

from codetr_cli import console
from codetr_cli.commands._launch import refuse_launch_options
from codetr_cli.commands._weights import place_exported, resolve_weights
from codetr_cli.commands.bench import _measurement as measurement
from codetr_cli.commands.bench import _tables as tables
from codetr_cli.errors import ConfigError

OF_END_TO_END = ("images", "workers", "no_draw")
"""Parameters of `codetr bench infer` that count with `--end-to-end` only."""
OF_THE_NETWORK = ("size", "compare", "warmup", "iterations")
"""Those that do not count with it."""
CPU_IMAGES, GPU_IMAGES = 64, 512


def check_options(context: typer.Context, *, end_to_end: bool) -> None:
    """Refuses options of the other kind of measurement.

    Raises:
        ConfigError: one of them is given.
    """
    for name in OF_THE_NETWORK if end_to_end else OF_END_TO_END:
        if context.params[name]:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(
                f"{option} is of no use with --end-to-end" if end_to_end else f"{option} needs --end-to-end"
            )


def benchmark_end_to_end(context: typer.Context) -> None:
    """Measures a prediction, and shows and writes the result.

    Raises:
        ConfigError: options that are wrong or exclude each other.
    """
    given = context.params
    console.set_mode(json=given["json_output"], quiet=given["quiet"])
    measurement.check_target(given["preset"], given["checkpoint"])
    refuse_launch_options(context, "--end-to-end")
    target = resolve_weights(given["checkpoint"]) or given["preset"] or measurement.DEFAULT_PRESET
    overrides = [*place_exported(context, target), *(given["overrides"] or [])]
    device = measurement.prepare_device(given["device"], given["threads"])

    from codetr_cli.benchmark.end_to_end import load_measured, measure_end_to_end, synthetic_images
    from codetr_cli.inference.exported.network import runtime_facts
    from codetr_cli.inference.options import DetectOptions
    from codetr_cli.prediction.inputs import find_images

    report = measurement.start_report(device, target)
    with ExitStack() as stack:
        count = _count(given["images"], CPU_IMAGES if device.type == "cpu" else GPU_IMAGES)
        if count is None:
            images = list(find_images([given["images"]]))
        else:
            images = synthetic_images(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="codetr-"))), count)
        detector = load_measured(
            target,
            overrides,
            device,
            precision=given["precision"] or "auto",
            random_weights=given["checkpoint"] is None,
        )
        with console.progress("predicting", len(images)) as advance:
            timing = measure_end_to_end(
                detector,
                images,
                DetectOptions(batch=given["batch"], workers=given["workers"]),
                draw=not given["no_draw"],
                tick=advance,
            )
    settings = detector.loaded.settings
    report["end_to_end"] = {
        "name": settings.name,
        "synthetic": count is not None,
        **runtime_facts(detector.loaded.model),
        **asdict(timing),
    }
    tables.show_end_to_end(report["end_to_end"], report["machine"])
    measurement.finish_report(report, given["out"], force=given["force"])


def _count(images: str | None, default: int) -> int | None:
    """The number of synthetic images; None if a folder is given."""
    if images is None:
        return default
    if images.isascii() and images.isdecimal() and 0 < len(images) <= 6 and int(images) > 0:
        return int(images)
    return None
