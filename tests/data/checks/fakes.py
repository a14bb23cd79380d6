"""A dataset check without a progress bar, its findings by kind, and edits of annotation files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from codetr_cli.annotations.findings import Finding
from codetr_cli.config.data_settings import DataConfig
from codetr_cli.data.checks.dataset import DatasetReport, check_dataset

Edit = Callable[[dict[str, Any]], None]


@contextmanager
def silent(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    yield lambda n: None


def check(root: Path, **options: Any) -> DatasetReport:
    return check_dataset(root, config=DataConfig(min_side=16), progress=silent, **options)


def found(report: DatasetReport) -> dict[str, Finding]:
    return {finding.kind: finding for finding in report.findings}


def edit(root: Path, change: Edit, split: str = "train") -> None:
    path = root / "annotations" / f"instances_{split}2017.json"
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))


def put(key: str, index: int, **values: Any) -> Edit:
    return lambda table: table[key][index].update(values)


def drop(key: str, index: int, name: str) -> Edit:
    return lambda table: table[key][index].pop(name)
