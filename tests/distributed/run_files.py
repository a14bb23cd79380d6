"""Files of a run and of its processes, as tests read and write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def lines_of(run: Path) -> list[dict[str, Any]]:
    """The complete lines of metrics.jsonl, also while a process writes it."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def write_error_file(folder: Path, rank: int, kind: str, text: str, at: float) -> None:
    """Writes the error of a process as `worker_errors.write_error` does."""
    (folder / f"{rank}.json").write_text(json.dumps({"kind": kind, "text": text, "rank": rank, "time": at}))
