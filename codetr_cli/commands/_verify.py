"""How `codetr export` shows and keeps a verification."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codetr_cli import console
from codetr_cli.errors import CheckpointError

if TYPE_CHECKING:
    from codetr_cli.commands._options import Split
    from codetr_cli.export.verify import VerifyReport

REPORT_SUFFIX = ".verify.json"
REQUEST = "verify"
"""Of the report: the next verification of the same file replaces it."""


@dataclass(frozen=True, kw_only=True)
class ProofOptions:
    """What a file is verified on; the attributes are those of `codetr export`."""

    data: str | None
    split: Split
    max_images: int | None
    device: str
    overrides: Sequence[str]


def report_path(file: Path) -> Path:
    """Where the figures of a verification are written: NAME.verify.json beside the file."""
    return file.with_suffix(REPORT_SUFFIX)


def check_report(file: Path, *, force: bool) -> None:
    """Refuses a report's name that is taken by another file, before minutes of work.

    Raises:
        ConfigError: it is.
    """
    from codetr_cli.result_files import refuse_taken

    refuse_taken([report_path(file)], force=force, request=REQUEST)


def prove(checkpoint: str, file: Path, options: ProofOptions, *, force: bool) -> VerifyReport:
    """Verifies a file and writes all figures.

    Raises:
        CheckpointError: a file cannot be read.
        ConfigError: the report's name is taken.
        DatasetError: images or annotations are not found.
        ResourceError: a package is not installed, or the device is not available.
    """
    from codetr_cli.export.accuracy import find_images
    from codetr_cli.export.verify import verify
    from codetr_cli.inference.loading import choose_for_file, find_checkpoint
    from codetr_cli.result_files import write_result
    from codetr_cli.runtime.devices import choose_device

    check_report(file, force=force)
    name, file_settings = choose_for_file(file, options.device)
    device = choose_device(name)
    for needed in (checkpoint, file):
        find_checkpoint(needed)
    data = None
    if options.data is not None:
        data = find_images(options.data, options.split, max_images=options.max_images)
    report = verify(
        checkpoint,
        file,
        device=device,
        overrides=options.overrides,
        file_settings=file_settings,
        data=data,
        step=lambda text: console.info(f"{text} ..."),
    )
    with write_result(report_path(file), by="export", request=REQUEST, force=force) as temporary:
        temporary.write_text(json.dumps(report.to_json(), indent=1, default=str), encoding="utf-8")
    return report


def show_proof(file: Path, report: VerifyReport, summary: dict[str, Any]) -> None:
    """Prints a verification, with what the command has done before, and ends the command if the file has failed.

    Raises:
        CheckpointError: the file is not equal to its checkpoint, or nothing was compared.
    """
    show_report(report)
    written = report_path(file)
    console.result(f"Figures: {written}")
    summary = {**summary, "verify": report.to_json(), "report": written}
    if report.passed:
        console.result_json(summary)
        return
    error = CheckpointError(f"{file}: {report.sentence}")
    console.result_json({**summary, "error": str(error), "exit_code": error.exit_code})
    raise error


def show_report(report: VerifyReport) -> None:
    """Prints the comparisons as a table, the speed, the accuracy and the verdict."""
    columns = ("images", "input", "batch", "found", "score", "box [px]", "alone", "result")
    rows = [
        (
            case.shape,
            f"{case.input_size[0]}x{case.input_size[1]}",
            case.batch,
            case.detections,
            _figure(case.score_max),
            _figure(case.box_max),
            case.missing + case.extra,
            "different" if not case.passed else "near ties" if case.near_ties else "equal",
        )
        for case in report.cases
    ]
    if rows:
        console.table("Largest differences, and detections without counterpart (alone)", columns, rows)
        score, box = (max(getattr(case, name) for case in report.cases) for name in ("score_mean", "box_mean"))
        console.result(f"Mean differences are at most {_figure(score)} of score and {_figure(box)} pixels.")
    engine = report.engine
    where = f"{engine['library']}, {engine['provider']}, {engine['precision']}"
    if engine["elsewhere"]:
        where += f", {engine['elsewhere']} of {engine['nodes']} nodes on the CPU"
    if report.latency_ms:
        ours, theirs = report.latency_ms["checkpoint"], report.latency_ms["file"]
        console.result(
            f"Latency: {theirs:.1f} ms an image by the file ({where}), {ours:.1f} ms by the checkpoint (PyTorch)."
        )
    if report.accuracy is not None:
        accuracy = report.accuracy
        console.result(
            f"AP on {accuracy.images} images: {accuracy.file:.2f} by the file, {accuracy.checkpoint:.2f} by the "
            f"checkpoint ({accuracy.difference:+.2f})."
        )
    if report.passed:
        console.result(report.sentence)


def _figure(value: float) -> str:
    return f"{value:.0e}" if 0 < value < 1e-3 else f"{value:.3g}"
