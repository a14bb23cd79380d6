"""Class maps: the model's classes under other names, several as one, or none.

A map has the model's names as keys; an empty new name drops the class, and the key `*` stands for all classes that the
map does not name. New classes are in the order of the first of their old ones; the id of each is that of the old class
of the same name, else of the first.

Two classes of the model may both claim one object. Where they become one class, only the better of two detections of
different old classes stays whose boxes overlap by `SAME_OBJECT_IOU` or more.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codetr_cli.annotations.annotation_json import class_name_problem
from codetr_cli.errors import ConfigError, nearest, shown
from codetr_cli.inference.prediction import Prediction
from codetr_cli.reading import parse_json, read_bytes

OTHERS = "*"
"""Key of all classes that are not named."""
SAME_OBJECT_IOU = 0.7
MAX_BYTES = 8 << 20
_ADVICE = "give old=new with commas between them, or a file with one a line, or a JSON table; old= drops a class"


def read_class_map(text: str) -> dict[str, str]:
    """The map of an option: `old=new,old=`, or a file with one entry a line (# starts a comment), or a JSON table.

    Raises:
        ConfigError: it is something else, or has a class twice.
    """
    if os.path.lexists(text):
        return _of_file(Path(text))
    if "=" not in text:
        raise ConfigError(f"--class-map {text}: there is no such file; {_ADVICE}")
    return _of_entries(text.split(","), "--class-map")


def _of_file(path: Path) -> dict[str, str]:
    try:
        content = read_bytes(path, MAX_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read the class map {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"the class map {path} is not UTF-8: save it as UTF-8") from error
    if path.suffix.lower() != ".json":
        lines = [line for line in content.splitlines() if not line.lstrip().startswith("#")]
        return _of_entries(lines, str(path))
    try:
        table = parse_json(content)
    except ValueError as error:
        raise ConfigError(f"the class map {path} cannot be read as JSON: {error}") from error
    if not isinstance(table, dict) or not all(isinstance(new, str) for new in table.values()) or not table:
        raise ConfigError(f'the class map {path} is no table of texts: write {{"old": "new"}}, and "" to drop a class')
    return {old: new.strip() for old, new in table.items()}  # also of names that are blank


def _of_entries(entries: Sequence[str], where: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in entries:
        if not entry.strip():
            continue
        old, equals, new = (part.strip() for part in entry.partition("="))
        if not equals or not old or "=" in new:
            json_advice = "; names with = need a JSON table" if "=" in new else ""
            raise ConfigError(f"{where}: {shown(entry.strip())} is no entry old=new{json_advice}; {_ADVICE}")
        if old in found:
            raise ConfigError(f"{where} has the class {shown(old)} twice")
        found[old] = new
    if not found:
        raise ConfigError(f"{where} has no entry; {_ADVICE}")
    return found


@dataclass(frozen=True)
class ClassMap:
    """The classes that detections get.

    Attributes:
        names: of the new classes, by label.
        ids: category id of each.
        labels: (K,) int64 new label of each class of the model; -1: dropped.
    """

    names: list[str]
    ids: list[int]
    labels: NDArray[np.int64]

    @classmethod
    def of(cls, names: Sequence[str], ids: Sequence[int], mapping: Mapping[str, str]) -> ClassMap:
        """The map for the classes of a model; an empty one changes nothing, not even classes of one name or of none.

        Raises:
            ConfigError: a class that the model does not have, a name that no class can have, or no class is kept.
        """
        if not mapping:
            return cls(list(names), list(ids), np.arange(len(names), dtype=np.int64))
        for old, new in mapping.items():
            if old != OTHERS and old not in names:
                raise ConfigError(f"--class-map: there is no class {shown(old)}; {nearest(old, list(names))}")
            if new and (problem := class_name_problem(new)):
                raise ConfigError(f"--class-map: {shown(old)} becomes {problem}")
        targets = [mapping.get(name, mapping.get(OTHERS, name)) for name in names]
        is_kept = [
            bool(target) or not {name, OTHERS} & mapping.keys() for name, target in zip(names, targets, strict=True)
        ]
        new_names = list(dict.fromkeys(target for target, kept in zip(targets, is_kept, strict=True) if kept))
        if not new_names:
            raise ConfigError("--class-map drops every class of the model: keep one")
        label_of = {name: label for label, name in enumerate(new_names)}
        own_ids = dict(zip(reversed(names), reversed(ids), strict=True))  # of two classes of one name, the first
        new_ids = dict(zip(reversed(targets), reversed(ids), strict=True))
        labels = [label_of[target] if kept else -1 for target, kept in zip(targets, is_kept, strict=True)]
        return cls(new_names, [own_ids.get(name, new_ids[name]) for name in new_names], np.array(labels, np.int64))

    def apply(self, prediction: Prediction) -> Prediction:
        """The detections under their new classes."""
        labels = self.labels[prediction.labels]
        keep = (labels >= 0) & ~_repeated(prediction.boxes, prediction.labels, labels)
        kept = prediction[keep]
        labels = labels[keep]
        return replace(
            kept,
            labels=labels,
            category_ids=np.array(self.ids, np.int64)[labels],
            class_names=[self.names[label] for label in labels.tolist()],
            classes=self.names,
        )


def _repeated(boxes: NDArray[np.float32], old: NDArray[np.int64], new: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(N,) whether a detection is that of a better one, by boxes (N, 4) xyxy, best first, and classes (N,)."""
    repeated = np.zeros(len(boxes), bool)
    for row in range(1, len(boxes)):
        rivals = np.flatnonzero((new[:row] == new[row]) & (old[:row] != old[row]) & ~repeated[:row])
        if new[row] >= 0 and len(rivals):
            repeated[row] = bool((box_iou(boxes[row : row + 1], boxes[rivals]) >= SAME_OBJECT_IOU).any())
    return repeated


def box_iou(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N, M) intersection over union of boxes (N, 4) and (M, 4), xyxy."""
    a, b = first[:, None].astype(np.float64), second[None].astype(np.float64)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = sides.clip(min=0).prod(-1)
    whole = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - shared
    return np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)
