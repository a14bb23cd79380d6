"""How `codetr bench` shows what it measured: tables for people, and reports that name no machine and no folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from codetr_cli import console

if TYPE_CHECKING:
    from codetr_cli.benchmark.operators import OperatorReport
    from codetr_cli.benchmark.roofline import MachineLimits

PACKAGE = "torch-ms-deform-attn"

FOLDERS = re.compile(r"(?<![\w.:/])~?/(?:[^/\s'\"]+/)+|[A-Za-z]:\\(?:[^\\\s'\"]+\\)+")
"""The folders of an absolute path, on Linux, macOS and Windows."""


def without_folders(value: Any) -> Any:
    """A report with absolute paths cut to their last part: published results tell no folders of this machine."""
    if isinstance(value, str):
        return FOLDERS.sub("", value)
    if isinstance(value, Mapping):
        return {key: without_folders(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(part) for part in value]
    return value


def memory_text(count: int | None) -> str | None:
    """Bytes for people; None stays."""
    return None if count is None else console.bytes_text(count)


def show_timing(kind: str, numbers: Mapping[str, Any], machine: Mapping[str, Any]) -> None:
    """Shows throughput, latency, memory and stages of detection ("inference") or of training steps ("training")."""
    latency = numbers["latency_ms"]
    console.table(
        _title(kind, numbers, machine),
        ["images/s", "mean [ms]", "p50 [ms]", "p90 [ms]", "p99 [ms]", f"peak memory of the {numbers['memory_of']}"],
        [
            [
                round(numbers["images_per_second"], 3),
                *(round(latency[name], 1) for name in ("mean", "p50", "p90", "p99")),
                memory_text(numbers["peak_memory_bytes"]),
            ]
        ],
    )
    stages = numbers["stages_ms"]
    within = _within(stages)
    rows = [
        [name, round(value, 1), "beside the network" if name == "data" else f"{value / within:.0%}"]
        for name, value in stages.items()
    ]
    console.table("", ["stage", "time [ms]", "share"], rows)


def show_comparison(kind: str, numbers: Mapping[str, Any], machine: Mapping[str, Any]) -> None:
    """Shows ours beside the plain way: medians, their ratio, memory, stages, and whether both found the same."""
    ways = ("ours", "plain")
    rows: list[list[object]] = [
        [
            name,
            numbers["attention"][name],
            round(numbers["latency_median_ms"][name], 1),
            round(numbers[name]["latency_ms"]["mean"], 1),
            memory_text(numbers[name]["peak_memory_bytes"]),
        ]
        for name in ways
    ]
    peak = f"peak memory of the {numbers['ours']['memory_of']}"
    console.table(
        f"{_title(kind, numbers, machine)}, {numbers['iterations']} rounds in turn",
        ["way", "attention", "median [ms]", "mean [ms]", peak],
        rows,
    )
    stages = {name: numbers[name]["stages_ms"] for name in ways}
    console.table(
        "",
        ["stage", "ours [ms]", "plain [ms]", "times as fast"],
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
    less = "" if ratio is None else f", {ratio:.2f} times less memory"
    console.result(
        f"ours is {numbers['speed_up']:.2f} times as fast as plain{less}. {_agreement(numbers['agreement'])}"
    )


def show_operator(report: OperatorReport, machine: Mapping[str, Any]) -> None:
    """Shows forward and backward pass of all backends, and the limits that they are held against."""
    shape = report.shape
    height, width = shape.size
    title = (
        f"Deformable attention, {report.entry} entry: {shape.name} of {height}x{width}, batch {shape.batch}, "
        f"{shape.queries} queries, {shape.levels} levels, {report.dtype}, {machine['device']}, "
        f"{machine['threads']} threads, {report.rounds} rounds in turn"
    )
    measured = [row for row in report.rows if row.reason is None]
    for passing, bounds in (("forward", report.forward_bounds_ms), ("backward", report.backward_bounds_ms)):
        rows = []
        for row in measured:
            spread = getattr(row, f"{passing}_ms")
            memory = row.forward_extra_bytes if passing == "forward" else row.training_extra_bytes
            errors = [error for name, error in row.errors.items() if (name == "output") == (passing == "forward")]
            rows.append(
                [
                    row.name,
                    round(spread.median, 2),
                    round(spread.minimum, 2),
                    _rounded(getattr(row, f"{passing}_speed")),
                    _rounded(getattr(row, f"{passing}_over_limit")),
                    memory_text(memory),
                    f"{max(errors):.1e}",
                ]
            )
        above = "inputs, output" if passing == "forward" else "inputs, output, gradients, both passes"
        columns = [f"{passing}", "median [ms]", "min [ms]", "x reference", "x limit", f"memory above {above}", "error"]
        console.table(title, columns, rows)
        title = ""
        largest = max(bounds, key=lambda name: bounds[name])
        console.result(
            f"limit of a {passing} pass: {bounds[largest]:.2f} ms by {largest} ("
            + ", ".join(f"{name} {value:.2f} ms" for name, value in bounds.items() if name != largest)
            + ")"
        )
    if report.entry == "fused" and any(row.name == PACKAGE for row in measured):
        console.result(f"{PACKAGE} has no fused entry: it gets locations and weights that are computed already")
    for row in report.rows:
        if row.reason is not None:
            console.result(f"{row.name} is not measured: {row.reason}")


def show_limits(limits: MachineLimits) -> None:
    """Shows what the machine can do."""
    console.result(
        f"measured here: copy {limits.copy_bytes_per_second / 1e9:.1f} GB/s (read and written), caches of "
        f"{console.bytes_text(limits.cache_bytes)} {limits.cache_bytes_per_second / 1e9:.1f} GB/s, "
        f"{limits.dtype} matrix product {limits.flops_per_second / 1e9:.0f} GFLOP/s"
    )


def place_text(machine: Mapping[str, Any]) -> str:
    """One line about where the numbers come from."""
    return (
        f"{machine['device']}, {machine['threads']} threads, torch {machine['versions']['torch']}; "
        f"deformable attention by {machine['attention_note']}"
    )


def _title(kind: str, numbers: Mapping[str, Any], machine: Mapping[str, Any]) -> str:
    height, width = numbers["size"]
    return (
        f"{'Detection' if kind == 'inference' else 'Training step'}: {numbers['name']} at {height}x{width}, "
        f"batch {numbers['batch']}, {numbers['precision']}, {machine['device']}"
    )


def _within(stages: Mapping[str, float]) -> float:
    """Milliseconds of all stages but reading data, which goes on beside the network."""
    return max(1e-9, sum(milliseconds for name, milliseconds in stages.items() if name != "data"))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _agreement(found: Mapping[str, Any]) -> str:
    if "loss_ours" in found:
        return f"First loss {found['loss_ours']:.6g} and {found['loss_plain']:.6g}."
    same = found["detections_ours"] - found["unmatched"]
    text = f"{same} of {found['detections_ours']} detections are the same"
    if found["largest_box_difference_px"] is not None:
        text += f", boxes within {found['largest_box_difference_px']:.1e} px"
    return f"{text}; labels in the same order: {'yes' if found['labels_equal'] else 'no'}."
