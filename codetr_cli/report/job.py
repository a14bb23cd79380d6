"""From a finished evaluation, or a scored file of detections, to the two files of its report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from codetr_cli.analysis.analysis import Analysis, analyse
from codetr_cli.analysis.data.input_size import NetworkLimits
from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.annotations.objects import Annotations
from codetr_cli.evaluation.evaluator import EvalResult
from codetr_cli.evaluation.job import EvalOutcome
from codetr_cli.evaluation.request import EvalRequest
from codetr_cli.evaluation.scoring import Scores
from codetr_cli.formats.resolve import DataPaths
from codetr_cli.inference.detections import DetectionTable
from codetr_cli.report.evaluation_report import write_report
from codetr_cli.report.facts import ReportFacts, data_digest, file_sha256
from codetr_cli.report.report_file import HTML_NAME, report_paths


@dataclass(frozen=True, kw_only=True)
class ReportRequest:
    """What report the user wants.

    Attributes:
        html: path of the page; None: `report.html` in `folder`.
        folder: None: that of the detections.
        command: that makes it again.
        force: replace own reports.
    """

    html: Path | None = None
    folder: Path | None = None
    command: str = ""
    force: bool = False

    def page_path(self, detections: Path) -> Path:
        """Where the page is written: as named, or under a free name in the folder.

        Args:
            detections: the file of them.

        Raises:
            ConfigError: see `report_paths`.
        """
        is_named = self.html is not None
        default = (self.folder or detections.parent) / HTML_NAME
        path, _ = report_paths(self.html or default, is_named=is_named, force=self.force)
        return path


def report_evaluation(
    outcome: EvalOutcome,
    result: EvalResult,
    evaluated: EvalRequest,
    paths: DataPaths,
    request: ReportRequest,
    *,
    checkpoint: str,
    show: Callable[[str], None] | None = None,
) -> dict[str, str]:
    """Writes the report of an evaluation whose files are written.

    Args:
        outcome: of the evaluation.
        result: its detections and scores.
        evaluated: the annotations, with outlines if masks were scored, and the settings.
        paths: of the images and annotations.
        request: where to write it.
        checkpoint: as the user has given it.
        show: called with the name of each part of the analysis.

    Returns:
        the paths of the two files, by "html" and "json".

    Raises:
        ConfigError: a file that may not be replaced is in the way.
        ResourceError: no space left, or the folder cannot be written.
    """
    summary = outcome.summary
    detections = Path(summary["detections"])
    facts = _facts(
        result,
        paths,
        detections,
        request,
        title=f"{_short_name(checkpoint)} on {paths.annotations_path.stem}",
        protocol=summary["protocol"],
        protocol_parts=summary["protocol_parts"],
        checkpoint=checkpoint,
        weights=summary["weights"],
        published=summary["published"],
        speed=summary["speed"],
        notes=[outcome.warning] if outcome.warning else [],
    )
    inputs = AnalysisInputs.of(evaluated.ground_truth, result.detections, paths, result.image_ids)
    analyse_these = partial(analyse, inputs, result, show=show, limits=NetworkLimits.of(evaluated.settings))
    return _write(analyse_these, facts, request.page_path(detections), request)


def report_detections(
    request: ReportRequest,
    file: Path,
    detections: DetectionTable,
    scores: Scores,
    ground_truth: Annotations,
    paths: DataPaths,
    *,
    image_ids: Iterable[int],
    protocol: str,
    notes: Iterable[str] = (),
    show: Callable[[str], None] | None = None,
) -> dict[str, str]:
    """Writes the report of a file of detections; arguments and errors as of `report_evaluation`.

    Args:
        request: where to write it.
        file: of the detections.
        detections: that it has.
        scores: of them.
        ground_truth: the annotations, with outlines if masks were scored.
        paths: of the images and annotations; the images may be absent.
        image_ids: of the scored images.
        protocol: how they were scored.
        notes: on the file, sentences.
        show: called with the name of each part of the analysis.
    """
    title = f"{file.name} on {paths.annotations_path.stem}"
    facts = _facts(scores, paths, file, request, title=title, protocol=protocol, notes=list(notes))
    inputs = AnalysisInputs.of(ground_truth, detections, paths, image_ids)
    return _write(partial(analyse, inputs, scores, show=show), facts, request.page_path(file), request)


def _facts(scores: Scores, paths: DataPaths, detections: Path, request: ReportRequest, **more: Any) -> ReportFacts:
    return ReportFacts(
        metrics=scores.metrics,
        per_class=[score.as_dict() for score in scores.per_class],
        images=scores.images,
        objects=scores.objects,
        annotations=str(paths.annotations_path),
        images_dir="" if paths.images_dir == Path() else str(paths.images_dir),
        data=data_digest(paths.annotations_path),
        detections=str(detections),
        detections_sha256=file_sha256(detections),
        command=request.command,
        **more,
    )


def _write(
    analyse_these: Callable[[], Analysis], facts: ReportFacts, html: Path, request: ReportRequest
) -> dict[str, str]:
    started = time.perf_counter()
    analysis = analyse_these()
    speed = {**facts.speed, "analysis_seconds": time.perf_counter() - started}
    if html.parent.absolute() == Path(facts.detections or "").parent.absolute():
        facts = replace(facts, detections=Path(facts.detections or "").name)  # wherever the folder is moved
    write_report(analysis, replace(facts, speed=speed), html, force=request.force)
    return {"html": str(html), "json": str(html.with_suffix(".json"))}


def _short_name(checkpoint: str) -> str:
    """Name of a run, a preset or a file, without its folders."""
    path = Path(checkpoint)
    return checkpoint if len(path.parts) <= 3 else str(Path(*path.parts[-2:]))
