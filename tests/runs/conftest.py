"""A run folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from codetr_cli.config.schema import Settings
from codetr_cli.runs.folder import RunFolder
from tests.runs.saved_runs import INPUTS


@pytest.fixture
def folder(tmp_path: Path, tiny_settings: Settings) -> RunFolder:
    run = RunFolder(tmp_path / "runs" / "tiny" / "1")
    run.open(tiny_settings, INPUTS)
    (run.path / ".lock").touch()  # of the training
    return run
