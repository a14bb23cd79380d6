"""`codetr doctor`: what this machine offers, what should be fixed, and a block to paste into a bug report."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from codetr_cli import __version__, console
from codetr_cli.commands import _options as opt
from codetr_cli.number_text import bytes_text

if TYPE_CHECKING:
    from codetr_cli.runtime.environment import MachineReport

EXAMPLES = ("codetr doctor", "codetr doctor --json > machine.json")


def doctor(json_output: opt.JsonOption = False) -> None:
    """Report this machine: GPUs, PyTorch, memory, packages.

    Warns of everything that makes the program slower here than it could be, and ends with a block to paste into a bug
    report.
    """
    console.set_mode(json=json_output)
    from codetr_cli.runtime.environment import machine_report

    report = machine_report(Path.cwd())
    text = report.bug_report_text()
    console.result_json({"codetr": __version__, "environment": asdict(report), "bug_report": text})
    if not json_output:
        show_machine(report)
        console.result_lines(f"\nFor a bug report:\n{text}")


def show_machine(report: MachineReport) -> None:
    """Prints the table of this machine and warns of what should be fixed."""
    disks = [(f"disk of {disk.path}", f"{bytes_text(disk.free_bytes)} free") for disk in report.disks]
    console.table("This machine", ["what", "found"], [*report.rows(), *disks])
    for remark in report.remarks:
        console.warn(remark)
