"""The report on this machine, alone."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from codetr_cli import __version__
from tests.conftest import Ran


def test_json_has_versions_and_a_bug_report(codetr: Callable[..., Ran]):
    report = codetr("doctor", "--json").json
    assert report["codetr"] == __version__
    assert report["environment"]["torch"] == torch.__version__
    assert f"codetr: {__version__}" in report["bug_report"]


def test_ends_with_a_block_for_a_bug_report_that_names_no_folder(
    codetr: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    ran = codetr("doctor")
    assert ran.code == 0, ran.err
    assert "This machine" in ran.out
    start, block, end = ran.out.split("```")
    assert start.endswith("For a bug report:\n")
    assert end == "\n"
    assert f"PyTorch: {torch.__version__}" in block
    for private in (str(tmp_path), str(Path.home()), platform.node() or "no name"):
        assert private not in block
