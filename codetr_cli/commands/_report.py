"""`--report` of verbs that evaluate: what the user asks for, and its file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from codetr_cli import console
from codetr_cli.commands._defaults import Invocation
from codetr_cli.errors import CodetrError

if TYPE_CHECKING:
    from codetr_cli.evaluation.evaluator import EvalResult
    from codetr_cli.evaluation.job import EvalJob, EvalOutcome
    from codetr_cli.evaluation.request import EvalRequest
    from codetr_cli.report.job import ReportRequest


@dataclass(frozen=True)
class RequestedReport:
    """What `--report` asks for, for this process or another one; attributes are those of `ReportRequest`."""

    html: Path | None
    folder: Path | None
    command: str
    force: bool

    def of_outcome(self, job: EvalJob, outcome: EvalOutcome, result: EvalResult, request: EvalRequest) -> EvalOutcome:
        """The outcome with the paths of its report, or with why there is none; the other files are written."""
        from codetr_cli.report.job import report_evaluation

        try:
            with _analysing() as show:
                written = report_evaluation(
                    outcome, result, request, job.paths, self._resolved(), checkpoint=job.checkpoint, show=show
                )
        except CodetrError as error:
            return replace(outcome, unreported=str(error))
        return replace(outcome, summary={**outcome.summary, "report": written})

    def of_file(self, *scored: Any, **how: Any) -> dict[str, str]:
        """Writes the report of a file of detections; arguments and errors are those of `report_detections`."""
        from codetr_cli.report.job import report_detections

        with _analysing() as show:
            return report_detections(self._resolved(), *scored, show=show, **how)

    def _resolved(self) -> ReportRequest:
        from codetr_cli.report.job import ReportRequest

        return ReportRequest(html=self.html, folder=self.folder, command=self.command, force=self.force)


def requested_report(
    context: typer.Context, report: str | None, *, folder: Path | None = None, force: bool
) -> RequestedReport | None:
    """The report that the option asks for.

    Args:
        context: of the command.
        report: the value of the option, empty for the default name; None: no report.
        folder: of a report with the default name; None: that of the detections.
        force: replace own reports.

    Raises:
        ConfigError: the name is taken, or is no name of a page.
    """
    if report is None:
        return None
    from codetr_cli.report.facts import command_text
    from codetr_cli.report.report_file import report_paths

    invocation: Invocation = context.obj
    html = Path(report) if report else None
    if html is not None:
        report_paths(html, is_named=True, force=force)
    words = ["--report" if word == "--report=" else word for word in invocation.words]
    return RequestedReport(html, folder, command_text(words), force)


@contextmanager
def _analysing() -> Iterator[Callable[[str], None]]:
    """Shows the progress of an analysis, whose number of parts depends on the data."""
    with console.progress("analysing") as advance:
        yield lambda _: advance()
