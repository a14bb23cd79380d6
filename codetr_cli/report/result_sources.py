"""What the words of `codetr compare` stand for: the detections of a run, a checkpoint, an evaluation or a report.

Nothing is evaluated here. A checkpoint whose evaluation is beside it stands for that; the hash of the weights decides.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from codetr_cli.config.presets import preset_names
from codetr_cli.errors import CodetrError, ConfigError, DatasetError
from codetr_cli.evaluation.result_folder import DETECTIONS_NAME, METRICS_NAME, evaluations_folder
from codetr_cli.evaluation.scoring import MASK_PREFIX
from codetr_cli.files import real_path
from codetr_cli.inference.loading import checkpoint_of_run, find_checkpoint
from codetr_cli.reading import parse_json, read_bytes
from codetr_cli.report.facts import file_sha256
from codetr_cli.report.report_file import JSON_NAME, StoredReport, is_report, read_report
from codetr_cli.weights.checkpoint import content_id

MAX_METRICS_BYTES = 64 << 20
"""A data set of thousands of classes needs one."""
MAX_DEPTH = 4
"""Folders between a folder and the evaluations in it."""
MAX_EVALUATIONS = 1000
DETECTION_SUFFIXES = (".json", ".jsonl")
HTML_SUFFIXES = (".html", ".htm")


@dataclass(frozen=True, kw_only=True)
class ResultSource:
    """Results that are compared.

    Attributes:
        given: the user's word.
        kind: "detections", "evaluation", "report" or "checkpoint".
        detections: the file; None: the checkpoint has to be evaluated first, or the report has the numbers.
        report: the report whose numbers are compared, as its detections are gone or others; None: those of detections
            are.
        weights: the checkpoint, as far as it is known.
        annotations: the file that the detections were scored against; None: not recorded.
        images: number of images that were evaluated; None: not recorded.
        skipped: names of image files that could not be read.
        protocol: parts of the protocol by name; empty: not recorded.
        metrics: as recorded, by name.
        notes: on how it was found, sentences without a full stop.
    """

    given: str
    kind: str
    detections: Path | None = None
    report: StoredReport | None = None
    weights: Path | None = None
    annotations: Path | None = None
    images: int | None = None
    skipped: tuple[str, ...] = ()
    protocol: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def is_evaluated(self) -> bool:
        """Whether there is something to compare; otherwise the checkpoint has to be evaluated first."""
        return self.detections is not None or self.report is not None


def find_source(given: str, annotations: Path | None = None) -> ResultSource:
    """What a word of the user stands for.

    Args:
        given: a run folder, a checkpoint or a preset, a file of detections, the folder of an evaluation, or a report.
        annotations: that the comparison uses; of several evaluations of a checkpoint, those against it come first.

    Raises:
        CheckpointError, ConfigError: it does not exist, or is none of these.
        DatasetError: a record of an evaluation, or a report, cannot be read.
    """
    path = Path(given)
    if path.is_file() and path.suffix.lower() in HTML_SUFFIXES:
        beside = path.with_suffix(".json")
        if not beside.is_file():
            raise ConfigError(
                f"{path} is compared by its numbers in {beside.name}, which is not beside it: give the detections, "
                "or write the report again with `codetr eval --report`"
            )
        path = beside
    if path.is_file() and path.suffix.lower() in DETECTION_SUFFIXES:
        return _of_file(given, path, annotations)
    if path.is_dir() and (path / DETECTIONS_NAME).is_file():
        return _of_file(given, path / DETECTIONS_NAME, annotations)
    if path.is_dir() and (path / JSON_NAME).is_file() and not (path / "settings.toml").exists():
        return _of_file(given, path / JSON_NAME, annotations)
    if path.is_dir() and not _has_checkpoint(path):
        inside = _evaluations(path)
        if len(inside) == 1:
            return _of_file(given, inside[0], annotations)
        found = f"{len(inside)} evaluations, e.g. {inside[0].parent}: give one of them" if inside else "no results"
        raise ConfigError(
            f"the folder {path} has {found}. codetr compare takes run folders, checkpoints, folders of `codetr eval`, "
            "files of detections and reports"
        )
    if path.suffix.lower() in (*DETECTION_SUFFIXES, *HTML_SUFFIXES) and not path.exists():
        raise ConfigError(f"there is no file {path}: give detections, a report, a run folder or a checkpoint")
    weights = find_checkpoint(given)
    if weights is None:
        raise ConfigError(f"{given} has no trained weights: give a checkpoint, or results of it")
    return _of_checkpoint(given, weights, annotations)


def check_distinct(sources: Sequence[ResultSource]) -> None:
    """Raises a ConfigError if two sources are the same file."""
    seen: dict[Path, str] = {}
    for source in sources:
        file = source.report.path if source.report is not None else source.detections or source.weights
        assert file is not None
        place = real_path(file)
        if place in seen:
            raise ConfigError(
                f"{seen[place]} and {source.given} are the same results, {file}: give results of two runs, or of two "
                "evaluations of one"
            )
        seen[place] = source.given


# ---------------------------------------------------------------------------------------------- files and their records


def _of_file(given: str, path: Path, annotations: Path | None) -> ResultSource:
    """A file of detections with its record, the record itself, or a report."""
    if is_report(path):
        return _of_report(given, read_report(path), annotations)
    if path.name == METRICS_NAME:
        if not (path.parent / DETECTIONS_NAME).is_file():
            raise ConfigError(
                f"{path} has no {DETECTIONS_NAME} beside it, which a comparison needs: evaluate the checkpoint again"
            )
        path = path.parent / DETECTIONS_NAME
    record = path.with_name(METRICS_NAME)
    if path.name != DETECTIONS_NAME or not record.is_file():
        return ResultSource(given=given, kind="detections", detections=path)
    return _of_record(given, record, _read_record(record))


def _of_record(given: str, path: Path, record: Mapping[str, Any]) -> ResultSource:
    """The evaluation that a metrics.json belongs to."""
    parts, skipped = record.get("protocol_parts"), record.get("left_out")
    return ResultSource(
        given=given,
        kind="evaluation",
        detections=path.with_name(DETECTIONS_NAME),
        weights=_path(record.get("checkpoint")),
        annotations=_path(record.get("annotations")),
        images=_count(record.get("images")),
        skipped=tuple(each["path"] for each in skipped if _is_skipped(each)) if isinstance(skipped, list) else (),
        protocol=parts if isinstance(parts, dict) else {},
        metrics=_numbers(record),
    )


def _of_report(given: str, report: StoredReport, annotations: Path | None) -> ResultSource:
    """The detections of a report; without these, an evaluation of its checkpoint, or else the numbers of the report.

    Detections that have changed since are of other numbers than the report, and so may be what is beside the checkpoint
    now. A report of an earlier version has no resamples: its checkpoint, if it is there, is evaluated again.
    """
    facts, found = report.facts, report.detections_path
    digest = report.detections_sha256
    is_changed = found is not None and digest is not None and file_sha256(found) != digest
    if found is None or is_changed:
        weights = _weights_of(report)
        if weights is not None:
            source = _of_checkpoint(given, weights, annotations)
            is_known = source.detections is not None and not is_changed
            if is_known or annotations is not None or not report.resamples:
                return source
        return _of_numbers(given, report, changed=found)
    source = _of_file(given, found, annotations)
    return replace(
        source,
        kind="report",
        annotations=source.annotations or _path(facts.get("annotations")),
        images=source.images if source.images is not None else _count(facts.get("images")),
        metrics=source.metrics or _numbers(report.metrics),
    )


def _of_numbers(given: str, report: StoredReport, *, changed: Path | None) -> ResultSource:
    """A report alone; `changed` is the file of its detections if that has others by now."""
    facts, parts = report.facts, report.facts.get("protocol_parts")
    reason = f"{changed} has changed since it was written" if changed is not None else "its detections are not there"
    return ResultSource(
        given=given,
        kind="report",
        report=report,
        weights=_path(facts.get("checkpoint")),
        annotations=_path(facts.get("annotations")),
        images=_count(facts.get("images")),
        protocol=parts if isinstance(parts, dict) else {},
        metrics=_numbers(report.metrics),
        notes=(f"{given} is compared by the numbers of its report, as {reason}",),
    )


def _weights_of(report: StoredReport) -> Path | None:
    """The checkpoint that a report is of; None if it is gone, or has other weights now."""
    given, content = _path(report.facts.get("checkpoint")), report.facts.get("weights")
    if given is None or not isinstance(content, str):
        return None
    try:
        found = find_checkpoint(given)  # a path: what a report says is never downloaded
        return found if found is not None and content_id(found) == content else None
    except CodetrError:
        return None


def _read_record(path: Path) -> dict[str, Any]:
    """The table of a metrics.json.

    Raises:
        DatasetError: it cannot be read, or is none.
    """
    try:
        table = parse_json(read_bytes(path, MAX_METRICS_BYTES))
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"the record of the evaluation, {path}, cannot be read ({error}): evaluate the checkpoint again, or move "
            "the file away to compare the detections beside it"
        ) from error
    if not isinstance(table, dict):
        raise DatasetError(f"{path} is no record of `codetr eval`: move it away to compare the detections beside it")
    return table


def _numbers(table: Mapping[str, Any]) -> dict[str, float]:
    names = [name for name in table if name.removeprefix(MASK_PREFIX).startswith(("AP", "AR"))]
    return {name: float(table[name]) for name in names if type(table[name]) in (int, float) and abs(table[name]) <= 1}


def _path(value: object) -> Path | None:
    """A recorded path; None where it is none, too long, or in a folder that must not be entered."""
    if not isinstance(value, str) or not value or "\0" in value:
        return None
    try:
        Path(value).exists()
    except OSError:
        return None
    return Path(value)


def _count(value: object) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _is_skipped(entry: object) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("path"), str)


# --------------------------------------------------------------------------------------------------------- checkpoints


def _of_checkpoint(given: str, weights: Path, annotations: Path | None) -> ResultSource:
    """The best fitting evaluation beside a checkpoint, or the checkpoint alone if there is none of these weights."""
    content = content_id(weights)
    found: list[ResultSource] = []
    folder = evaluations_folder(weights) or Path("eval")
    for detections in _evaluations(folder):
        record_path = detections.with_name(METRICS_NAME)
        try:
            record = _read_record(record_path)
        except DatasetError:
            continue
        measured, place = record.get("weights"), _path(record.get("checkpoint"))
        is_same = measured == content if content else place is not None and real_path(place) == real_path(weights)
        if is_same:
            found.append(_of_record(given, record_path, record))
    if annotations is not None:
        found = [each for each in found if each.annotations and real_path(each.annotations) == real_path(annotations)]
    if not found:
        return ResultSource(given=given, kind="checkpoint", weights=weights)
    best = max(found, key=_preference)
    assert best.detections is not None
    others = f", the best of {len(found)} that fit" if len(found) > 1 else ""
    note = f"{given} stands for its evaluation in {best.detections.parent}{others}"
    return replace(best, weights=weights, notes=(note,))


def _preference(source: ResultSource) -> tuple[bool, int, bool, float]:
    """The more of validation data first, by the settings of the checkpoint rather than in other views, the newest."""
    assert source.detections is not None
    views = source.protocol.get("views")
    return (
        source.protocol.get("split") == "val",
        source.images or 0,
        isinstance(views, str) and views.startswith("single scale"),
        source.detections.stat().st_mtime,
    )


def _has_checkpoint(folder: Path) -> bool:
    return checkpoint_of_run(folder) is not None or str(folder) in preset_names()


def _evaluations(folder: Path) -> list[Path]:
    """Files of detections in a folder that have a record beside them."""
    found: list[Path] = []
    if not folder.is_dir():
        return found
    for place, folders, names in os.walk(folder):
        depth = len(Path(place).relative_to(folder).parts)
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if depth < MAX_DEPTH else []
        if {DETECTIONS_NAME, METRICS_NAME} <= set(names):
            found.append(Path(place, DETECTIONS_NAME))
        if len(found) >= MAX_EVALUATIONS:
            break
    return found
