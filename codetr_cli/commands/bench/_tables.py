"""Tables of `codetr bench`, and reports without folders of this machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from codetr_cli import console
from codetr_cli.number_text import bytes_text

if TYPE_CHECKING:
    from codetr_cli.benchmark.operators import OperatorReport
    from codetr_cli.benchmark.roofline import MachineLimits

FOLDERS = re.compile(r"(?<![\w.:/])~?/(?:[^/\s'\"]+/)+|[A-Za-z]:\\(?:[^\\\s'\"]+\\)+")
"""The folders of an absolute path, on Linux, macOS and Windows."""


def without_folders(value: Any) -> Any:
    """A report with absolute paths cut to their last part: published results name no folders of this machine."""
    if isinstance(value, str):
        return FOLDERS.sub("", value)
    if isinstance(value, Mapping):
        return {key: without_folders(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(part) for part in value]
    return value


def size_text(count: int | None) -> str | None:
    """Bytes with a unit; None stays None."""
    return None if count is None else bytes_text(count)


def show_timing(kind: str, numbers: Mapping[str, Any], machine: Mapping[str, Any]) -> None:
    """Shows throughput, latency, peak memory and stages of "inference" or "training"."""
    latency = numbers["latency_ms"]
    console.table(
        _title(kind, numbers, machine),
        ["images/s", "mean [ms]", "p50 [ms]", "p90 [ms]", "p99 [ms]", f"peak memory of the {numbers['memory_of']}"],
        [
            [
                round(numbers["images_per_second"], 3),
                *(round(latency[name], 1) for name in ("mean", "p50", "p90", "p99")),
                size_text(numbers["peak_memory_bytes"]),
            ]
        ],
    )
    if "scaling_efficiency" in numbers:
        alone = numbers["one_process"]["images_per_second"]
        console.result(
            f"images/s are those of all {numbers['processes']} processes, {numbers['images_per_step']} images at once; "
            f"one process alone: {alone:.3f} images/s. Scaling efficiency: {numbers['scaling_efficiency']:.0%} "
            f"({numbers['images_per_second']:.3f} / ({numbers['processes']} x {alone:.3f}))"
        )
    stages = numbers["stages_ms"]
    within = max(1e-9, sum(stages.values()) - stages["data"])  # which runs in parallel with the network
    rows = [
        [name, round(value, 1), "in parallel" if name == "data" else f"{value / within:.0%}"]
        for name, value in stages.items()
    ]
    console.table("", ["stage", "time [ms]", "share"], rows)


def show_comparison(kind: str, numbers: Mapping[str, Any], machine: Mapping[str, Any]) -> None:
    """Shows ours beside plain PyTorch: medians, their ratio, peak memory, stages, and whether the results agree."""
    names = ("ours", "plain")
    rows: list[list[object]] = [
        [
            name,
            numbers["attention"][name],
            round(numbers["latency_median_ms"][name], 1),
            round(numbers[name]["latency_ms"]["mean"], 1),
            size_text(numbers[name]["peak_memory_bytes"]),
        ]
        for name in names
    ]
    peak = f"peak memory of the {numbers['ours']['memory_of']}"
    console.table(
        f"{_title(kind, numbers, machine)}, {numbers['iterations']} rounds in turn",
        ["network", "attention", "median [ms]", "mean [ms]", peak],
        rows,
    )
    stages = {name: numbers[name]["stages_ms"] for name in names}
    console.table(
        "",
        ["stage", "ours [ms]", "plain [ms]", "speed-up"],
        [
            [
                stage,
                round(ours, 1),
                round(stages["plain"][stage], 1),
                round(stages["plain"][stage] / max(ours, 1e-9), 2),
            ]
            for stage, ours in stages["ours"].items()
            if stage != "data"
        ],
    )
    ratio = numbers["memory_ratio"]
    less = "" if ratio is None else f", peak memory {ratio:.2f} times smaller"
    console.result(
        f"ours is {numbers['speed_up']:.2f} times as fast as plain{less}. {_agreement(numbers['agreement'])}"
    )


def show_operator(report: OperatorReport, machine: Mapping[str, Any]) -> None:
    """Shows forward and backward pass of every backend, and the limits of the machine."""
    shape = report.shape
    height, width = shape.size
    title = (
        f"Deformable attention, {report.entry}: {shape.name} of {height}x{width}, batch {shape.batch}, "
        f"{shape.queries} queries, {shape.levels} levels, {report.dtype}, {machine['device']}, "
        f"{machine['threads']} threads, {report.rounds} rounds in turn"
    )
    above = {"forward": "inputs, output", "backward": "inputs, output, gradients, both passes"}
    for direction, bounds in (("forward", report.forward_bounds_ms), ("backward", report.backward_bounds_ms)):
        rows = [
            [
                row.name,
                round(getattr(row, f"{direction}_ms").median, 2),
                round(getattr(row, f"{direction}_ms").minimum, 2),
                _rounded(getattr(row, f"{direction}_speed")),
                _rounded(getattr(row, f"{direction}_over_limit")),
                size_text(row.forward_extra_bytes if direction == "forward" else row.training_extra_bytes),
            ]
            for row in report.rows
            if row.reason is None
        ]
        columns = [direction, "median [ms]", "min [ms]", "x reference", "x limit", f"memory above {above[direction]}"]
        console.table(title, columns, rows)
        title = ""
        largest = max(bounds, key=lambda name: bounds[name])
        others = ", ".join(f"{name} {value:.2f} ms" for name, value in bounds.items() if name != largest)
        console.result(f"limit of a {direction} pass: {bounds[largest]:.2f} ms by {largest} ({others})")
    for row in report.rows:
        if row.reason is not None:
            console.result(f"{row.name} is not measured: {row.reason}")


def show_limits(limits: MachineLimits) -> None:
    """Shows the limits of the machine."""
    console.result(
        f"measured here: copy {limits.copy_bytes_per_second / 1e9:.1f} GB/s (read and written), caches of "
        f"{bytes_text(limits.cache_bytes)} {limits.cache_bytes_per_second / 1e9:.1f} GB/s, "
        f"{limits.dtype} matrix product {limits.flops_per_second / 1e9:.0f} GFLOP/s"
    )


def show_end_to_end(numbers: Mapping[str, Any], machine: Mapping[str, Any]) -> None:
    """Shows the stages of a prediction from files to results, its rate and its bottleneck."""
    of_threads = {
        **{"read": "reading", "prepare": "reading"},
        **{"network": "network", "finish": "finishing", "write": "finishing"},
    }
    words = {
        "write": "draw and write",
        "wait": "wait (network without images)",
        "finish": "finish",
        "network": "network",
    }
    counts = {"network": 1, "reading": numbers["workers"], "finishing": numbers["workers"]}
    rows = []
    for stage, value in numbers["stages_ms"].items():
        threads = of_threads.get(stage)
        rows.append(
            [
                words.get(stage, stage),
                round(value, 2),
                "" if threads is None else counts[threads],
                "" if threads is None else f"{numbers['busy'][threads]:.0%}",
            ]
        )
    console.table(
        f"From files to results: {numbers['name']}, {numbers['images']} images, {numbers['images_per_batch']:.1f} at "
        f"once, {machine['device']}",
        ["stage", "per image [ms]", "threads", "they work"],
        rows,
    )
    console.result(
        f"{numbers['images_per_second']:.2f} images/s, peak memory of the process "
        f"{size_text(numbers['peak_memory_bytes'])}. {numbers['sentence']}"
    )


def show_data(numbers: Mapping[str, Any]) -> None:
    """Shows the stages of a worker, the rates of the loader, and the bottleneck."""
    from codetr_cli.benchmark.data_report import MAIN_STAGES, WORKER_STAGES

    stages = numbers["stages_ms"]
    within = max(1e-9, sum(stages[name] for name in WORKER_STAGES))
    rows = [
        [name, round(stages[stage], 2), f"{stages[stage] / within:.0%}"]
        for stage, name in WORKER_STAGES.items()
        if stage != "paste" or stages[stage]
    ]
    rows += [[name, round(stages[stage], 2), "in parallel"] for stage, name in MAIN_STAGES.items()]
    console.table(
        f"One worker: {numbers['images']} of {numbers['data_set_images']:,} training images, augmentation "
        f"{numbers['augmentation']}, batches of {numbers['micro_batch']}",
        ["stage", "per image [ms]", "share"],
        rows,
    )
    cold = numbers["cold_read_ms"]
    console.result(
        f"files: {numbers['file_bytes'] / 1000:,.0f} kB and {numbers['file_pixels'] / 1e6:.2f} megapixels on average, "
        "read from the system's cache as in every epoch but the first; from the disk: "
        + ("not measured here" if cold is None else f"{cold:.2f} ms")
    )
    needed = numbers["needed_images_per_s"]
    console.table(
        "Training loader",
        ["workers", "images/s", "of a step's need"],
        [
            [count, round(rate, 1), "" if needed is None else f"{rate / needed:.0%}"]
            for count, rate in numbers["loader_images_per_s"].items()
        ],
    )
    if needed is not None:
        console.result(f"a training step needs {needed:.1f} images/s ({numbers['needed_from']})")
    console.result(numbers["sentence"])


def _title(kind: str, numbers: Mapping[str, Any], machine: Mapping[str, Any]) -> str:
    height, width = numbers["size"]
    return (
        f"{'Inference' if kind == 'inference' else 'Training step'}: {numbers['name']} at {height}x{width}, "
        f"batch {numbers['batch']}, {numbers['precision']}, {machine['device']}"
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _agreement(agreement: Mapping[str, Any]) -> str:
    if "loss_ours" in agreement:
        return f"First losses: {agreement['loss_ours']:.6g} and {agreement['loss_plain']:.6g}."
    same = agreement["detections_ours"] - agreement["unmatched"]
    text = f"{same} of {agreement['detections_ours']} detections agree"
    if agreement["largest_box_difference_px"] is not None:
        text += f", boxes within {agreement['largest_box_difference_px']:.1e} px"
    return f"{text}; labels in the same order: {'yes' if agreement['labels_equal'] else 'no'}."
