from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from codetr_cli.runs import metrics_log
from codetr_cli.runs.metrics_log import has_numbers, is_evaluation, parse_line, read_lines, texts_from_the_end

LINE = {"kind": "train", "step": 3, "loss": 1.5}


@pytest.mark.parametrize(
    "text",
    ["", "[]", "3", '{"kind": "train"}', '{"kind": 1, "step": 1}', '{"kind": "train", "step": "1"}',
     '{"kind": "train", "step": NaN}', '{"kind": "train", "step": -1}', '{"kind": "train", "step": true}',
     '{"kind": "train", "step": 1e3}', '{"kind": "train", "step": 1' + "0" * 400 + "}",
     '{"kind": "train", "step": ' + "1" * 5000 + "}", "[" * 100_000, '{"kind": "tr'],
)  # fmt: skip
def test_what_is_no_line_of_metrics(text: str):
    assert parse_line(text.encode()) is None


def test_lines_are_read_in_order_and_others_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "metrics.jsonl"
    assert list(read_lines(path)) == []
    monkeypatch.setattr(metrics_log, "MAX_LINE_BYTES", 100)
    texts = [json.dumps(LINE), "nonsense", json.dumps({**LINE, "more": "x" * 200}), json.dumps({**LINE, "step": 4})]
    path.write_text("\n".join(texts) + '\n{"kind": "tr')
    assert [line["step"] for line in read_lines(path)] == [3, 4]
    assert [line["step"] for line in read_lines(path, containing=b": 4")] == [4]


def test_a_file_of_any_size_is_read_without_its_holes(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    text = (json.dumps(LINE) + "\n").encode()
    path.write_bytes(text)
    with path.open("r+b") as file:
        file.seek(1 << 39)
        file.write(b"\n" + text)
        file.truncate(1 << 40)
    started = time.process_time()
    assert list(read_lines(path)) == [LINE, LINE]
    assert next(read_lines(path, b"step")) == LINE
    assert time.process_time() - started < 3


def test_one_long_line_takes_no_time(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    with path.open("wb") as file:
        file.truncate(200 << 20)
    started = time.process_time()
    assert list(read_lines(path)) == []
    with pytest.raises(ValueError, match="a line of it has more than"):
        list(texts_from_the_end(path))
    assert time.process_time() - started < 3


def test_a_pipe_is_no_file(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="named pipe"):
        list(read_lines(tmp_path / "pipe"))


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, True), (0.5, True), (float("nan"), False), (float("inf"), False), ("1", False), (None, False), ([], False),
     (10**400, False), (3.4e38, True), (-1e40, False)],
)  # fmt: skip
def test_numbers(value: Any, expected: bool):
    assert has_numbers({"a": value}, "a") == expected
    assert is_evaluation({"kind": "eval", "step": 1, "metrics": {"AP": value}}) == expected
    assert not has_numbers({}, "a")
    assert not is_evaluation({"kind": "eval", "step": 1, "metrics": value})
