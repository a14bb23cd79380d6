"""What the tests of `codetr bench` share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.inference.fakes import write_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_settings, monkeypatch) -> Path:
    """The path, relative to the working folder, of a tiny network's checkpoint."""
    monkeypatch.chdir(tmp_path)
    return write_checkpoint(Path("m.safetensors"), tiny_settings)
