"""Rebuilds recorded cases and prints how far we are from each: `python -m tests.golden CASE_DIR [CASE_DIR ...]`.

Exit status 1 when any stage of any case is over its tolerance; 2 when a case cannot be read or is not part of this
version.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from codetr_cli.runtime.devices import choose_device
from codetr_cli.runtime.precision import float32_arithmetic
from tests.golden.case import Case, Report, UnsupportedCaseError
from tests.golden.run import run_case


def main() -> int:
    """Runs the cases named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("cases", nargs="+", type=Path, metavar="CASE_DIR", help="folder with case.json")
    parser.add_argument("--quiet", action="store_true", help="only one line a case, and its failures")
    parser.add_argument(
        "--skip-unsupported", action="store_true", help="cases that are not part of this version do not count"
    )
    parser.add_argument("--device", default="cpu", metavar="NAME", help="rebuild the networks' cases on it, e.g. cuda")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    return max(_run(folder, device, arguments.quiet, arguments.skip_unsupported) for folder in arguments.cases)


def _run(folder: Path, device: torch.device, quiet: bool, skip_unsupported: bool) -> int:
    try:
        with float32_arithmetic("fp32", device):  # a GPU would compute convolutions in TF32
            report = run_case(Case.load(folder, device))
    except UnsupportedCaseError as error:
        _write(f"{folder.name}: {'skipped' if skip_unsupported else 'cannot run'}: {error}")
        return 0 if skip_unsupported else 2
    except Exception as error:  # one broken case must not hide the others
        _write(f"{folder}: cannot run: {type(error).__name__}: {error}")
        return 2
    _print(report, quiet)
    return 0 if report.ok else 1


def _print(report: Report, quiet: bool) -> None:
    _write(report.name)
    failed = False
    for line in report.lines:
        mark = "" if line.ok else ("  FAIL" if failed else "  <== FIRST FAILURE")
        failed = failed or not line.ok
        if mark or not quiet:
            _write(f"  {line.key:<60} {line.error:9.2e}  (<= {line.tolerance:.0e}) {line.note}{mark}")
    worst = max((line.error for line in report.lines), default=float("inf"))
    verdict = "ok" if report.ok else "FAILED"
    _write(f"{report.name}: {verdict}, {len(report.lines)} stages, largest relative error {worst:.2e}")


def _write(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
