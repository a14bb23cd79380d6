"""Changed files are recognised, copied ones are not mistaken for changed ones."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from codetr_cli.receipts import (
    FileState,
    describe_file,
    has_changed,
    is_unchanged,
    receipt_path,
    write_receipt,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"weights")
    write_receipt(path)
    return path


def test_a_file_as_it_was_written(file: Path):
    assert has_changed(file) is False
    assert receipt_path(file).name == ".weights.pth.receipt"


def test_a_file_of_the_same_size_and_time_with_other_content_has_changed(file: Path):
    status = file.stat()
    file.write_bytes(b"WEIGHTS")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert has_changed(file) is True


def test_a_copied_file_has_not_changed(file: Path, tmp_path: Path):
    (tmp_path / "other").mkdir()
    for path in (file, receipt_path(file)):
        shutil.copyfile(path, tmp_path / "other" / path.name)
    assert has_changed(tmp_path / "other" / file.name) is False


def test_what_is_no_file_has_changed(file: Path):
    file.unlink()
    assert has_changed(file) is True
    os.mkfifo(file)
    assert has_changed(file) is True


@pytest.mark.parametrize(
    "text", ["", "[", "{}", "null", "[" * 4000, '{"size": 1}', "9" * 5000, json.dumps({"size": "7"}), " " * 5000]
)
def test_a_receipt_that_is_none(file: Path, text: str):
    receipt_path(file).write_text(text)
    assert has_changed(file) is None


@pytest.mark.parametrize("change", [{"size": "7"}, {"size": True}, {"mtime_ns": 1.5}, {"sha256": None}, {"more": 1}])
def test_wrong_types_are_no_state(file: Path, change: dict[str, object]):
    table = describe_file(file).as_json()
    assert FileState.parse(table) == describe_file(file)
    assert FileState.parse({**table, **change}) is None


def test_nothing_is_kept_where_nothing_can_be_written(tmp_path: Path):
    write_receipt(tmp_path / "missing" / "file")
    (tmp_path / "file").write_text("x")
    receipt_path(tmp_path / "file").mkdir()
    write_receipt(tmp_path / "file")
    assert has_changed(tmp_path / "file") is None
    assert is_unchanged(tmp_path / "file", describe_file(tmp_path / "file"))
