"""Rebuilds recorded cases and prints how far we are from each: `python -m tests.golden CASE_DIR [CASE_DIR ...]`.

Exit status 1 when any stage of any case is over its tolerance, 2 when a case cannot be read or is of an unknown kind.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from codetr_cli.errors import CodetrError
from tests.golden.case import Case, Report
from tests.golden.run import run_case


def main() -> int:
    """Runs the cases named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("cases", nargs="+", type=Path, metavar="CASE_DIR", help="folder with case.json")
    parser.add_argument("--quiet", action="store_true", help="only one line a case, and its failures")
    arguments = parser.parse_args()
    status = 0
    for folder in arguments.cases:
        try:
            report = run_case(Case.load(folder))
        except (OSError, KeyError, ValueError, CodetrError) as error:
            sys.stdout.write(f"{folder}: cannot run: {type(error).__name__}: {error}\n")
            status = 2
            continue
        _print(report, arguments.quiet)
        status = max(status, 0 if report.ok else 1)
    return status


def _print(report: Report, quiet: bool) -> None:
    sys.stdout.write(f"{report.name}\n")
    failed = False
    for line in report.lines:
        mark = "" if line.ok else ("  FAIL" if failed else "  <== FIRST FAILURE")
        failed = failed or not line.ok
        if mark or not quiet:
            sys.stdout.write(f"  {line.key:<60} {line.error:9.2e}  (<= {line.tolerance:.0e}) {line.note}{mark}\n")
    worst = max((line.error for line in report.lines), default=float("inf"))
    verdict = "ok" if report.ok else "FAILED"
    sys.stdout.write(f"{report.name}: {verdict}, {len(report.lines)} stages, largest relative error {worst:.2e}\n")


if __name__ == "__main__":
    sys.exit(main())
