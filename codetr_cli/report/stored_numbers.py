"""The numbers of a report in `report.json`, and what of them is compared where its detections are gone.

That is resampled metrics, and the errors of each image.

Two reports of the same images have the same resamples, so that the interval of their difference is one of pairs.
Shape letters: S resamples, I images, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codetr_cli.analysis.analysis import Analysis
from codetr_cli.analysis.bootstrap import around
from codetr_cli.analysis.common_ground import fingerprint
from codetr_cli.analysis.errors import ERROR_TYPES
from codetr_cli.analysis.jsonable import jsonable
from codetr_cli.analysis.run_numbers import ImageErrors, RunNumbers
from codetr_cli.errors import DatasetError, listed
from codetr_cli.evaluation.scoring import MASK_PREFIX, ClassScore, Scores
from codetr_cli.report.facts import ReportFacts, data_digest
from codetr_cli.report.report_file import StoredReport, stored_table
from codetr_cli.report.result_sources import ResultSource

CLASS_DIGITS = 4
"""Of the resampled AP of classes: of 1,203 classes, there are a third of a million."""
COLUMNS = {"found": "hits", "missed": "misses", "false_alarms": "alarms"}
"""Names of columns of images -> those of `ImageErrors`."""
NOT_STORED = ("inputs", "matches", "scores", "found_errors", "run")
"""Fields of an analysis that are no results, or are stored under other names."""


def report_table(analysis: Analysis, facts: ReportFacts) -> dict[str, Any]:
    """Every number of a report as JSON values."""
    parts = {field.name: getattr(analysis, field.name) for field in fields(analysis) if field.name not in NOT_STORED}
    resamples = None if analysis.run is None else stored_numbers(analysis.run)
    return stored_table(facts.as_dict(), jsonable(parts), resamples)


def stored_numbers(numbers: RunNumbers) -> dict[str, Any]:
    """Numbers that were measured from detections, as JSON values."""
    images = numbers.images
    assert images is not None
    assert numbers.inputs is not None
    assert numbers.class_samples is not None
    per_image = {name: getattr(images, column) for name, column in COLUMNS.items()}
    table: dict[str, Any] = jsonable(
        {
            "fingerprint": fingerprint(numbers.inputs),
            "max_detections": numbers.max_detections,
            "metrics": dict(numbers.samples),
            "classes": numbers.class_samples.T.round(CLASS_DIGITS),
            "images": {
                "image_id": images.image_ids,
                "file_name": images.file_names,
                **per_image,
                "errors": dict(zip(ERROR_TYPES, images.types.T, strict=True)),
            },
        }
    )
    return table


def numbers_of_report(report: StoredReport) -> RunNumbers:
    """The numbers of a report as far as it has them; those of earlier versions have no resamples.

    Raises:
        DatasetError: they are damaged.
    """
    try:
        return _read(report)
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError) as error:
        raise DatasetError(
            f"the numbers of the report {report.path} are damaged ({type(error).__name__}): write it again: codetr "
            "eval CHECKPOINT --report"
        ) from error


def with_samples(numbers: RunNumbers, samples: int, masks: bool = True) -> RunNumbers:
    """The numbers of a report with its first resamples, and without masks where these are not compared."""
    metrics = {
        name: value for name, value in numbers.scores.metrics.items() if masks or not name.startswith(MASK_PREFIX)
    }
    by_metric, by_class = dict(numbers.samples), numbers.class_samples
    if samples < len(by_metric.get("AP", ())):  # the mean of the first ones is another
        by_metric = {
            name: around(values[:samples], np.array([numbers.scores.metrics[name]]))
            for name, values in by_metric.items()
        }
        assert by_class is not None
        by_class = around(by_class[:samples], np.array([[score.AP for score in numbers.scores.per_class]]))
    return replace(numbers, scores=replace(numbers.scores, metrics=metrics), samples=by_metric, class_samples=by_class)


def check_same_data(
    names: Sequence[str], sources: Sequence[ResultSource], numbers: Sequence[RunNumbers], digest: str
) -> None:
    """Refuses to compare the numbers of a report with those of other images, objects, classes or rules.

    Args:
        names: of the runs.
        sources: what they are.
        numbers: of each.
        digest: fingerprint of the data that detections were measured on; empty without any.

    Raises:
        DatasetError: names two runs, and what differs.
    """
    for name, source, other in zip(names[1:], sources[1:], numbers[1:], strict=True):
        alone = [each for each, of in ((names[0], sources[0]), (name, source)) if of.report is not None]
        digests = [_digests(of, digest) for of in (sources[0], source)]
        reason = _difference_of(numbers[0], other, digests) if alone else ""
        if reason:
            reports, they = ("report", "it") if len(alone) == 1 else ("reports", "they")
            raise DatasetError(
                f"{names[0]} and {name} cannot be compared: {reason}. Without the detections of the {reports} "
                f"{' and '.join(alone)}, {they} cannot be scored on other data: evaluate the "
                "checkpoint again, with `codetr eval --data`"
            )


def fingerprint_of(source: ResultSource) -> str:
    """Digest of the images and objects that a report was measured on; empty where it is not known."""
    return "" if source.report is None else str(source.report.resamples.get("fingerprint", ""))


def _digests(source: ResultSource, digest: str) -> tuple[str, str]:
    """Digest of the images and objects of a run, and of its annotation file; empty where they are not known."""
    if source.report is None:
        file = source.annotations
        return digest, data_digest(file) if file is not None and file.is_file() else ""
    return fingerprint_of(source), str(source.report.facts.get("data") or "")


def _difference_of(left: RunNumbers, right: RunNumbers, digests: Sequence[tuple[str, str]]) -> str:
    """What differs in the data of two runs, a clause; empty: nothing."""
    if left.is_lvis != right.is_lvis:
        return "one was scored by the rules of LVIS, the other by those of COCO"
    if left.scores.images != right.scores.images:
        return f"they are of {left.scores.images:,} and {right.scores.images:,} images"
    classes = [[score.name for score in side.scores.per_class] for side in (left, right)]
    if classes[0] != classes[1]:
        only = [name for name in (*classes[0], *classes[1]) if (name in classes[0]) != (name in classes[1])]
        return f"their classes differ ({listed(only, 4)})" if only else "their classes are in another order"
    # Images are resampled in the order of their ids.
    for number, of_what in ((0, "images or annotated objects, or images have other ids"), (1, "annotation files")):
        found = [digest[number] for digest in digests]
        if all(found):
            return "" if found[0] == found[1] else f"they were measured on other {of_what}"
    return ""


def _read(report: StoredReport) -> RunNumbers:
    analysis, table = report.analysis, report.resamples
    metrics = {name: _metric(value) for name, value in report.metrics.items()}
    classes = [
        ClassScore(
            name=str(row["name"]),
            category_id=int(row["category_id"]),
            objects=int(row["objects"]),
            AP=_metric(row["AP"]),
            AP50=_metric(row["AP50"]),
        )
        for row in report.per_class
    ]
    scores = Scores(
        {"AP": metrics["AP"], **metrics}, classes, int(report.facts["images"]), int(report.facts["objects"])
    )
    errors = analysis.get("errors") or {}
    own = analysis.get("ap_interval")
    interval = (_number(own[0]), _number(own[1])) if own else None
    costs = {name: _number(value) for name, value in (errors.get("delta_ap") or {}).items() if name in ERROR_TYPES}
    numbers = RunNumbers(scores=scores, error_ap=costs, ap_interval=interval, is_lvis=bool(analysis.get("is_lvis")))
    if not table:
        return numbers
    if not isinstance(table["fingerprint"], str):
        raise TypeError("fingerprint")  # resamples of other images are no pairs
    samples = {str(name): _column(values) for name, values in table["metrics"].items()}
    count = len(samples["AP"])
    class_samples = np.array([_column(values) for values in table["classes"]]).reshape(len(classes), count).T
    if not count or any(len(values) != count for values in samples.values()):
        raise ValueError("resamples")
    return replace(
        numbers,
        samples=samples,
        class_samples=class_samples,
        images=_images(table["images"], scores.images),
        max_detections=int(table["max_detections"]),
    )


def _images(table: Mapping[str, Any], count: int) -> ImageErrors:
    names = [str(name) for name in table["file_name"]]
    if len(names) != count:
        raise ValueError("images")
    return ImageErrors(
        image_ids=_whole(table["image_id"], count),
        file_names=names,
        **{column: _whole(table[name], count) for name, column in COLUMNS.items()},
        types=np.stack([_whole(table["errors"][name], count) for name in ERROR_TYPES], axis=1),
    )


def _whole(values: Sequence[int], count: int) -> NDArray[np.int64]:
    """(I,) whole numbers."""
    found = np.array(values)
    if found.shape != (count,) or (count and found.dtype.kind != "i"):
        raise ValueError("images")
    return found.astype(np.int64)


def _column(values: Sequence[float | None]) -> NDArray[np.float64]:
    return np.array([_number(value) for value in values], np.float64)


def _number(value: float | None) -> float:
    """An AP, or a difference of two; NaN for None."""
    found = math.nan if value is None else float(value)
    if value is not None and not -1 <= found <= 1:
        raise ValueError("no AP")
    return found


def _metric(value: float | None) -> float:
    """A metric as `Scores` has it."""
    return -1.0 if value is None else _number(value)
