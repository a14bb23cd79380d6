"""What `codetr bench --data` measures and shows: how fast training images come, and what holds them up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from codetr_cli import console

if TYPE_CHECKING:
    import torch

IMAGES = 64
SECONDS = 5.0


def measure_data(
    preset: str,
    overrides: Sequence[str],
    *,
    folder: str | None,
    workers: int | None,
    needed: float | None,
    measure_step: Callable[[], float] | None,
    images: int | None,
    device: torch.device,
) -> dict[str, Any]:
    """Times reading the training images.

    Args:
        preset: whose augmentation and batches.
        overrides: of its settings.
        folder: of the data set; None: where a training would look.
        workers: the only number of workers to measure, beside none; None: 1, 2, 4, ... up to the processor's cores.
        needed: images/s of a training step.
        measure_step: measures that, where it is not given; None: it takes too long here.
        images: to time stage by stage.
        device: where batches go.
    """
    from codetr_cli.benchmark.data import DataPlan, benchmark_data, usable_cores, worker_numbers
    from codetr_cli.config.presets import load_preset
    from codetr_cli.data.coco import build_dataset

    settings = load_preset(preset, list(overrides))
    dataset = build_dataset(settings, split="train", training=True, data=folder)
    source = "given" if needed else "measured" if measure_step else None
    plan = DataPlan(
        images=images or IMAGES,
        seconds=SECONDS if images is None else SECONDS * min(1.0, images / IMAGES),
        workers=worker_numbers(usable_cores()) if workers is None else tuple(sorted({0, workers})),
        device=device,
        needed=needed or (measure_step() if measure_step else None),
    )
    with console.progress("timing the reading of images", plan.ticks) as advance:
        timing = benchmark_data(dataset, settings, plan, advance)
    return {
        "name": settings.name,
        "data_set_images": len(dataset),
        "augmentation": settings.data.augmentation,
        **asdict(timing),
        "loader_images_per_s": {str(count): rate for count, rate in timing.loader_images_per_s.items()},
        "needed_from": source,
    }


def show_data(numbers: Mapping[str, Any]) -> None:
    """Shows the stages of a worker, the rates of the loader, and what they mean."""
    from codetr_cli.benchmark.data_report import MAIN_STAGES, WORKER_STAGES

    stages = numbers["stages_ms"]
    within = max(1e-9, sum(stages[name] for name in WORKER_STAGES))
    rows = [
        [name, round(stages[stage], 2), f"{stages[stage] / within:.0%}"]
        for stage, name in WORKER_STAGES.items()
        if stage != "paste" or stages[stage]
    ]
    rows += [[name, round(stages[stage], 2), "beside the workers"] for stage, name in MAIN_STAGES.items()]
    console.table(
        f"One worker: {numbers['images']} of {numbers['data_set_images']:,} training images, augmentation "
        f"{numbers['augmentation']}, batches of {numbers['micro_batch']}",
        ["stage", "an image [ms]", "share"],
        rows,
    )
    cold = numbers["cold_read_ms"]
    cold_text = "not measured here" if cold is None else f"{cold:.2f} ms, asked to be forgotten by the system before"
    console.result(
        f"files: {numbers['file_bytes'] / 1000:,.0f} kB and {numbers['file_pixels'] / 1e6:.2f} megapixels on average; "
        f"read from the system's cache as in every epoch but the first; from the disk: {cold_text}"
    )
    needed = numbers["needed_images_per_s"]
    console.table(
        "The training's loader",
        ["workers", "images/s", "of a step's need"],
        [
            [count, round(rate, 1), "" if needed is None else f"{rate / needed:.0%}"]
            for count, rate in numbers["loader_images_per_s"].items()
        ],
    )
    if needed is not None:
        console.result(f"a training step takes {needed:.1f} images/s ({numbers['needed_from']})")
    for note in numbers["notes"]:
        console.warn(note)
    console.result(numbers["sentence"])
