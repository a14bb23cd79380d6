"""`codetr bench data`: the data pipeline of a training, stage by stage and as a whole, and its bottleneck."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codetr_cli import console
from codetr_cli.commands import _options as opt
from codetr_cli.commands._option_values import data_settings, only, refuse_both
from codetr_cli.commands.bench import _measurement as measurement
from codetr_cli.commands.bench import _tables as tables
from codetr_cli.errors import ConfigError

if TYPE_CHECKING:
    import torch

EXAMPLES = (
    "codetr bench data data/coco --preset co_dino_swin_l",
    "codetr bench data data/coco --workers 4 --step-images-per-s 14.2",
)
IMAGES = 64
SECONDS = 5.0


FolderArgument = Annotated[
    str | None,
    typer.Argument(metavar="DIR", show_default=False, help="The data set. Default: CODETR_DATA, else data/coco."),
]
WorkersOption = Annotated[
    int | None, opt.option("--workers", "N", "Only N. Default: 1, 2, 4, ... cores.", opt.MEASUREMENT, min=1)
]
StepRateOption = Annotated[
    float | None,
    opt.option("--step-images-per-s", "X", "Images/s per step. Default: measured.", opt.MEASUREMENT),
]
ImagesOption = Annotated[
    int | None, opt.option("--iterations", "N", f"Images to time. Default: {IMAGES}.", opt.MEASUREMENT, min=1)
]


def data(
    folder: FolderArgument = None,
    same_folder: opt.SameDataOption = None,
    format: opt.FormatOption = None,
    val_fraction: opt.ValFractionOption = None,
    annotations: opt.AnnotationsOption = None,
    images: opt.ImagesOption = None,
    preset: opt.PresetOption = None,
    workers: WorkersOption = None,
    step_images_per_s: StepRateOption = None,
    iterations: ImagesOption = None,
    device: opt.DeviceOption = "auto",
    threads: opt.ThreadsOption = None,
    out: opt.ReportOption = None,
    force: opt.ForceOption = False,
    overrides: opt.SetOption = None,
    json_output: opt.JsonOption = False,
    quiet: opt.QuietOption = False,
) -> None:
    """Benchmark the data pipeline and report the bottleneck.

    Reads your training images with the preset's augmentation. On a CPU the speed of a training step is not measured.
    """
    console.set_mode(json=json_output, quiet=quiet)
    same = only(same_folder, "--data")
    if folder is not None and same is not None:
        raise ConfigError(f"both {folder} and --data {same} are given, and they mean the same: give one of them")
    refuse_both(annotations, folder or same)
    overrides = data_settings(
        format=format, val_fraction=val_fraction, annotations=annotations, images=images, overrides=overrides
    )
    if step_images_per_s is not None and step_images_per_s <= 0:
        raise ConfigError(f"--step-images-per-s {step_images_per_s:g} is not above 0")
    chosen = measurement.prepare_device(device, threads)

    from codetr_cli.benchmark.data import DataSpec, benchmark_data, worker_counts
    from codetr_cli.config.presets import load_preset
    from codetr_cli.data.coco import build_dataset
    from codetr_cli.runtime.devices import cpu_count

    name = preset or measurement.DEFAULT_PRESET
    report = measurement.start_report(chosen, name)
    settings = load_preset(name, list(overrides or []))
    dataset = build_dataset(settings, split="train", training=True, data=folder or same)
    measure_step = _step_rate(name, overrides or [], chosen)
    spec = DataSpec(
        images=iterations or IMAGES,
        seconds=SECONDS if iterations is None else SECONDS * min(1.0, iterations / IMAGES),
        workers=worker_counts(cpu_count()) if workers is None else tuple(sorted({0, workers})),
        device=chosen,
        needed=step_images_per_s or (measure_step() if measure_step else None),
    )
    with console.progress("measuring the data pipeline", spec.ticks) as advance:
        timing = benchmark_data(dataset, settings, spec, advance)
    report["data"] = {
        "name": settings.name,
        "data_set_images": len(dataset),
        "augmentation": settings.data.augmentation,
        **asdict(timing),
        "loader_images_per_s": {str(count): rate for count, rate in timing.loader_images_per_s.items()},
        "needed_from": "given" if step_images_per_s else "measured" if measure_step else None,
    }
    tables.show_data(report["data"])
    measurement.finish_report(report, out, force=force)


def _step_rate(preset: str, overrides: Sequence[str], device: torch.device) -> Callable[[], float] | None:
    """What measures images/s of a training step; None on a CPU, where that takes minutes."""
    if device.type == "cpu":
        return None

    def measure() -> float:
        from codetr_cli.benchmark.network import BenchmarkedNetwork

        network = BenchmarkedNetwork(preset, overrides, device, training=True, random_weights=True)
        spec = network.spec(runs=(3, 8, 1))
        with console.progress("measuring a training step", spec.ticks) as advance:
            numbers: dict[str, Any] = network.measure(spec, advance)
        return float(numbers["images_per_second"])

    return measure
