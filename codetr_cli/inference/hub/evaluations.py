"""What was measured of a checkpoint: found in the files of `codetr eval` and of its training, or given.

An evaluation counts only if it is of the same weights: files of `codetr eval` record their hash, and the lines of a
training their step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codetr_cli.errors import ConfigError
from codetr_cli.reading import parse_json, read_bytes
from codetr_cli.runs.lineage import run_of
from codetr_cli.runs.metrics_log import has_numbers, is_evaluation, read_lines

METRICS_NAME = "metrics.json"
MAX_METRICS_BYTES = 64 << 20
"""A data set of thousands of classes needs one."""
MAX_EVENTS_BYTES = 256 << 20
PROTOCOL_MARK = "evaluation protocol: "
"""What precedes the protocol in a run's events.log."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The metrics of a checkpoint.

    Attributes:
        metrics: in [0, 1] by name, e.g. AP, AP50 or mask_AP; -1 where there is no object to find.
        protocol: how they were measured, a sentence without its period; empty: not recorded.
        data: the annotations, e.g. instances_val2017; empty: not recorded.
        images: number of scored images; None: not recorded.
        per_class: as `codetr eval` writes it, `name`, `objects` and `AP` of each class; empty: not recorded.
        published: box AP that was published for this network by the same protocol, in percent; None: none.
        source: where the numbers are from.
    """

    metrics: Mapping[str, float]
    protocol: str = ""
    data: str = ""
    images: int | None = None
    per_class: list[Mapping[str, Any]] = field(default_factory=list)
    published: float | None = None
    source: str = ""


def find_evaluation(weights: Path, *, content: str | None, step: int | None) -> Evaluation | None:
    """The evaluation of a checkpoint, of the most images where there are several; None: there is none of it.

    Args:
        weights: the checkpoint's file, possibly in a run folder.
        content: hash of its content.
        step: of its training.
    """
    run = run_of(weights)
    folder = (run or weights.parent) / "eval"
    found = []
    for path in sorted(folder.glob(f"**/{METRICS_NAME}")) if content and folder.is_dir() else ():
        try:
            evaluation, measured = _read_metrics(path)
        except ConfigError:
            continue
        if measured == content:
            found.append(evaluation)
    if found:
        return max(found, key=lambda each: each.images or 0)
    return None if run is None or step is None else _of_training(run, step)


def read_evaluation(path: Path, *, content: str | None, step: int | None) -> Evaluation:
    """An evaluation that the user names.

    Args:
        path: metrics.json of `codetr eval`, the folder with it, or a run folder.
        content: hash of the checkpoint's content.
        step: of its training.

    Raises:
        ConfigError: there is no evaluation, or it is of other weights.
    """
    if path.is_dir() and (path / METRICS_NAME).is_file():
        path = path / METRICS_NAME
    if path.is_dir():
        found = None if step is None else _of_training(path, step)
        if found is None:
            of_step = "" if step is None else f" of step {step}, which the checkpoint is of"
            raise ConfigError(
                f"{path} has neither {METRICS_NAME} nor, in metrics.jsonl, an evaluation{of_step}: give the folder "
                "that `codetr eval` wrote"
            )
        return found
    evaluation, measured = _read_metrics(path)
    if measured is not None and content is not None and measured != content:
        raise ConfigError(
            f"{path} is the evaluation of other weights than this checkpoint: evaluate it with `codetr eval`, and give "
            "the folder that it writes"
        )
    return evaluation


def _read_metrics(path: Path) -> tuple[Evaluation, str | None]:
    """The evaluation in a metrics.json, and the hash of the weights that it is of, if it is recorded.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        table = parse_json(read_bytes(path, MAX_METRICS_BYTES))
    except OSError as error:
        raise ConfigError(f"cannot read the evaluation {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(table, dict) or not has_numbers(table, "AP"):
        raise ConfigError(f"{path} has no AP: give the {METRICS_NAME} that `codetr eval` wrote")
    published = table.get("published")
    comparable = isinstance(published, dict) and published.get("comparable") and has_numbers(published, "box_ap")
    classes = table.get("per_class")
    evaluation = Evaluation(
        metrics=_metrics(table),
        protocol=_text(table.get("protocol")),
        data=Path(_text(table.get("annotations"))).stem,
        images=table["images"] if isinstance(table.get("images"), int) else None,
        per_class=[each for each in classes if _is_class(each)] if isinstance(classes, list) else [],
        published=published["box_ap"] if isinstance(published, dict) and comparable else None,
        source="measured by `codetr eval`",
    )
    weights = table.get("weights")
    return evaluation, weights if isinstance(weights, str) else None


def _of_training(run: Path, step: int) -> Evaluation | None:
    """The evaluation of a step in a run's metrics.jsonl."""
    found = None
    try:
        for line in read_lines(run / "metrics.jsonl", b'"eval"'):
            if line["step"] == step and is_evaluation(line):
                found = line
    except OSError:
        return None
    if found is None:
        return None
    protocol = _logged_protocol(run / "events.log")
    return Evaluation(
        metrics=_metrics(found["metrics"]), protocol=protocol, source=f"measured by the training, after step {step}"
    )


def _logged_protocol(path: Path) -> str:
    """The protocol that a training logged last; empty if it logged none."""
    try:
        lines = read_bytes(path, MAX_EVENTS_BYTES).decode("utf-8", "replace").splitlines()
    except (OSError, ValueError):
        return ""
    return next((line.split(PROTOCOL_MARK, 1)[1] for line in reversed(lines) if PROTOCOL_MARK in line), "")


def _metrics(table: Mapping[str, Any]) -> dict[str, float]:
    names = [name for name in table if name.removeprefix("mask_").startswith(("AP", "AR"))]
    return {name: float(table[name]) for name in names if has_numbers(dict(table), name)}


def _is_class(entry: object) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("name"), str) and has_numbers(entry, "AP", "objects")


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
