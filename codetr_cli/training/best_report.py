"""The report of a run: of the evaluation that gave its best checkpoint, written into the run folder at the end."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from codetr_cli.analysis.analysis import analyse
from codetr_cli.analysis.data.input_size import NetworkLimits
from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.config.data_settings import DataConfig
from codetr_cli.errors import CodetrError
from codetr_cli.evaluation.evaluator import EvalResult
from codetr_cli.evaluation.protocol import find_published
from codetr_cli.evaluation.request import EvalRequest
from codetr_cli.files import WEIGHTS_NAME
from codetr_cli.formats.resolve import DataPaths
from codetr_cli.report.evaluation_report import write_report
from codetr_cli.report.facts import ReportFacts, command_text, data_digest
from codetr_cli.report.report_file import HTML_NAME, read_report
from codetr_cli.runs.folder import RunFolder
from codetr_cli.weights.checkpoint import content_id

logger = logging.getLogger(__name__)

DATA_SETTINGS = ("format", "box_format", "annotations", "images", "val_images", "val_annotations", "yolo_labels")
"""Of `data.*`: where validation data are, and how they are read."""


class BestReport:
    """Keeps the detections of the best evaluation of this process, and writes their report.

    It is written once, at the end: an analysis after each evaluation would hold up the training, and its detections are
    no part of a checkpoint. After a run was continued it has none until an evaluation improves on the best one before.

    Args:
        request: of the evaluations.
        paths: of the validation images.
    """

    def __init__(self, request: EvalRequest, paths: DataPaths) -> None:
        self._request, self._paths = request, paths
        self._newest: EvalResult | None = None
        self._best: EvalResult | None = None

    def add(self, result: EvalResult) -> None:
        """Takes the result of an evaluation; without the masks, which are gigabytes of Python objects."""
        table = replace(result.detections, masks=None, mask_scores=None)
        self._newest = replace(result, detections=table)

    def keep(self) -> None:
        """The newest evaluation is the best one of the run."""
        self._best = self._newest

    def write(self, folder: RunFolder) -> None:
        """Writes the report; an error is logged and does not end the training, which is done."""
        html = folder.path / HTML_NAME
        if self._best is None and _is_of_best(html, folder):
            return
        command = command_text(["eval", str(folder.path), *_data_words(self._request.settings.data), "--report"])
        if self._best is None:
            logger.info(
                "%s: the best checkpoint was evaluated before this start; make its report: %s",
                f"{html} is of another checkpoint" if html.exists() else "no report is written",
                command,
            )
            return
        try:
            self._write(self._best, folder, command)
        except Exception as error:
            logger.warning("the report could not be written: %s; make it with: %s", error, command, exc_info=False)
            logger.debug("the report could not be written", exc_info=True)
        else:
            logger.info("report of the best checkpoint: %s", html)

    def _write(self, result: EvalResult, folder: RunFolder, command: str) -> None:
        protocol, request, settings = result.protocol, self._request, self._request.settings
        assert protocol is not None
        published = find_published(
            settings, tta=False, precision=protocol.precision, split=protocol.split, images=result.images, trained=True
        )
        facts = ReportFacts(
            title=f"Best checkpoint of {folder.path.parent.name}/{folder.path.name}",
            protocol=str(protocol),
            protocol_parts=protocol.as_dict(),
            metrics=result.metrics,
            per_class=[score.as_dict() for score in result.per_class],
            images=result.images,
            objects=result.objects,
            annotations=str(request.annotations_path),
            images_dir=str(self._paths.images_dir),
            data=data_digest(request.annotations_path),
            checkpoint=str(folder.best / WEIGHTS_NAME),
            weights=content_id(folder.best / WEIGHTS_NAME),
            published=None if published is None else published.as_dict(),
            command=command,
        )
        inputs = AnalysisInputs.of(request.ground_truth, result.detections, self._paths, result.image_ids)
        analysis = analyse(inputs, result, show=_ignore, limits=NetworkLimits.of(settings))
        write_report(analysis, facts, folder.path / HTML_NAME, by="train", force=True)


def _is_of_best(html: Path, folder: RunFolder) -> bool:
    """Whether there is a report, and it is of the best checkpoint."""
    try:
        return read_report(html).facts.get("weights") == content_id(folder.best / WEIGHTS_NAME)
    except (CodetrError, OSError):
        return False


def _data_words(data: DataConfig) -> list[str]:
    """The options by which `codetr eval` finds the validation data of a training."""
    roots = [root for root in (data.root, *data.extra_roots) if root]
    chosen = {name: value for name in DATA_SETTINGS if (value := getattr(data, name)) is not None}
    words = [word for root in roots for word in ("--data", root)]
    return [*words, *(word for name, value in chosen.items() for word in ("--set", f"data.{name}={value}"))]


def _ignore(name: str) -> None:
    """Parts of the analysis are no events of a run."""
