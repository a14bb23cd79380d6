"""The record of what a run does when memory runs out."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from codetr_cli.config.overrides import replace_settings
from codetr_cli.config.schema import Settings
from codetr_cli.runs.memory_record import MemoryRecord, read_record, with_fitted, write_record

WHY = {"process": 0, "images": [1], "size": [64, 64], "named": "image 1", "step": 3, "epoch": 0}


def test_a_record_that_cannot_be_read_is_none(tmp_path: Path):
    (tmp_path / "memory.json").write_text("{")
    assert read_record(tmp_path) == MemoryRecord()


def test_a_record_is_read_as_it_was_written(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    record = MemoryRecord({"device": "cpu"}, {"train.micro_batch": [4, 2]}, 2, True, WHY)
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record
    write_record(tmp_path, MemoryRecord(fitted={"train.shard": [False, True]}))
    assert read_record(tmp_path).fitted == {"train.fsdp": [False, True]}  # its name since
    assert not caplog.records


@pytest.mark.parametrize(
    "change",
    [
        {"fitted": {"train.micro_batch": [2]}},
        {"fitted": {"train.micro_batch": 2}},
        {"fitted": []},
        {"checked": None},
        {"parts": "2"},
        {"parts": True},
        {"parts": 0},
        {"parts": 10**9},
        {"parts": 2},
        {"recompute": 1},
        {"parts": 2, "why": {"named": "image 1"}},
        {"why": [1]},
        {"other": 1},
    ],
)
def test_a_record_with_wrong_values_is_named_and_not_used(
    tmp_path: Path, change: dict[str, object], caplog: pytest.LogCaptureFixture
):
    (tmp_path / "memory.json").write_text(json.dumps({**asdict(MemoryRecord()), **change}))
    assert read_record(tmp_path) == MemoryRecord()
    assert f"{tmp_path / 'memory.json'} is damaged" in caplog.text


def test_a_record_that_is_no_file_is_not_used(tmp_path: Path):
    os.mkfifo(tmp_path / "memory.json")
    assert read_record(tmp_path) == MemoryRecord()


def test_only_settings_that_save_memory_are_fitted(tmp_path: Path, tiny_settings: Settings):
    write_record(tmp_path, MemoryRecord(fitted={"train.backbone_weights": ["auto", "http://host/x.pth"]}))
    assert with_fitted(tiny_settings, tmp_path) == tiny_settings


@pytest.mark.parametrize(
    ("name", "before", "value"),
    [
        ("train.micro_batch", 2, 64),
        ("train.micro_batch", 2, True),
        ("train.precision", "fp32", "fp16"),
        ("train.fsdp", True, False),
        ("model.encoder_checkpointing", 1, 0),
    ],
)
def test_values_that_save_no_memory_are_not_used(
    tmp_path: Path, tiny_settings: Settings, name: str, before: object, value: object, caplog: pytest.LogCaptureFixture
):
    settings = replace_settings(tiny_settings, {name: before})
    write_record(tmp_path, MemoryRecord(fitted={name: [before, value]}))
    assert with_fitted(settings, tmp_path) == settings
    assert f"its value of {name} saves no memory" in caplog.text


@pytest.mark.parametrize("value", ["nothing", -1, None, [], 1e300])
def test_wrong_fitted_values_are_not_used(
    tmp_path: Path, tiny_settings: Settings, value: object, caplog: pytest.LogCaptureFixture
):
    write_record(tmp_path, MemoryRecord(fitted={"train.micro_batch": [2, 1]}))
    assert with_fitted(tiny_settings, tmp_path).train.micro_batch == 1
    write_record(tmp_path, MemoryRecord(fitted={"train.micro_batch": [2, value]}))
    assert with_fitted(tiny_settings, tmp_path).train.micro_batch in (2, None)
    if value is not None:
        assert "memory.json is damaged" in caplog.text
