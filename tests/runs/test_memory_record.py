"""The record of what a run does when memory runs out."""

from __future__ import annotations

from pathlib import Path

from codetr_cli.runs.memory_record import MemoryRecord, read_record


def test_a_record_that_cannot_be_read_is_none(tmp_path: Path):
    (tmp_path / "memory.json").write_text("{")
    assert read_record(tmp_path) == MemoryRecord()
