"""The watchdog of a training."""

from __future__ import annotations

from pathlib import Path

import pytest

from codetr_cli.config.schema import Settings
from codetr_cli.distributed.watchdog import Heartbeat
from codetr_cli.runs.folder import RunFolder
from codetr_cli.training import liveness
from tests.distributed.fake_store import KeyValueStore


def test_an_alarm_needs_no_disk(tmp_path: Path, tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch):
    """The process ends also when the run folder, for which it may be waiting, takes no line."""
    ended: list[str] = []
    monkeypatch.setattr(liveness, "end_process", lambda error: ended.append(str(error)))
    watch = liveness.watchdog(KeyValueStore(), Heartbeat(), tiny_settings, RunFolder(tmp_path / "gone"))
    watch.alarm("process 1 stopped responding")
    assert ended == ["process 1 stopped responding"]
