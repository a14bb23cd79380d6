"""`codetr doctor`: what this machine offers, what should be fixed, and a block to paste into a bug report."""

from __future__ import annotations

from pathlib import Path

from codetr_cli import __version__, console
from codetr_cli.commands import _options as opt
from codetr_cli.commands._machine import machine_rows, show_machine

EXAMPLES = ("codetr doctor", "codetr doctor --json > machine.json")


def doctor(json_output: opt.JsonOption = False) -> None:
    """Report this machine: GPUs, PyTorch, memory, packages.

    Warns of everything that makes the program slower here than it could be, and ends with a block to paste into a bug
    report.
    """
    console.set_mode(json=json_output)
    from codetr_cli.runtime.environment import machine_report

    environment = machine_report(Path.cwd())
    # Folders stay out of a bug report: they name the user.
    rows = [(what, found) for what, found in machine_rows(environment) if not what.startswith("disk of ")]
    text = "\n".join(["```", f"codetr: {__version__}", *(f"{what}: {found}" for what, found in rows), "```"])
    console.result_json({"codetr": __version__, "environment": environment.as_dict(), "bug_report": text})
    if json_output:
        return
    show_machine(environment)
    console.result(f"\nFor a bug report:\n{text}")
