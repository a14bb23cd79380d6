from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from codetr_cli.runs.process_record import PROCESS_NAME, ProcessRecord, read_process, write_process


def test_this_process_is_recorded_and_alive(tmp_path: Path):
    write_process(tmp_path, processes=8, device="NVIDIA H200")
    record = read_process(tmp_path)
    assert record is not None
    assert (record.pid, record.processes, record.device) == (os.getpid(), 8, "NVIDIA H200")
    assert record.is_of_this_machine
    assert record.is_alive is True


def test_a_process_that_is_gone_and_one_of_another_machine(tmp_path: Path):
    write_process(tmp_path, processes=1, device="cpu")
    record = read_process(tmp_path)
    assert record is not None
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert replace(record, pid=ended.pid).is_alive is False
    assert replace(record, host="somewhere.else").is_alive is None


@pytest.mark.parametrize(
    "changes",
    [
        {"host": 3},
        {"host": "h" * 1000},
        {"pid": -1},
        {"pid": 0},
        {"pid": True},
        {"pid": 10**30},
        {"pid": "7"},
        {"processes": 0},
        {"started": "now"},
        {"started": 1e300},
        {"started": float("nan")},
        {"unknown": 1},
        {"device": None},
    ],
)
def test_a_record_with_other_values_is_none(tmp_path: Path, changes: dict[str, object]):
    table = vars(ProcessRecord(host="node", pid=7, started=1.0))
    (tmp_path / PROCESS_NAME).write_text(json.dumps(table))
    assert read_process(tmp_path) == ProcessRecord(host="node", pid=7, started=1.0)
    (tmp_path / PROCESS_NAME).write_text(json.dumps(table | changes))
    assert read_process(tmp_path) is None


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "[" * 100_000])
def test_a_file_that_is_no_record_is_none(tmp_path: Path, text: str):
    assert read_process(tmp_path) is None
    (tmp_path / PROCESS_NAME).write_text(text)
    assert read_process(tmp_path) is None
