"""Predictions that are killed, in one process and in two, have the files of an undisturbed one."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.forked import ForkedPython

kills = pytest.importorskip("benchmarks.predict_kills", reason="a source distribution has no benchmarks")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")


def start(words: Sequence[str]) -> ForkedPython:
    return ForkedPython("-m", "codetr_cli", *words)


@pytest.fixture
def undisturbed(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The folder of an undisturbed prediction."""
    pytest.importorskip("pyarrow", reason="pyarrow is not installed, and Parquet files are among the results")
    kills.prepare(tmp_path, request.param)
    kills.finish(start, kills.words_of(tmp_path, tmp_path / "alone"))
    return tmp_path / "alone"


def killed(undisturbed: Path, processes: int, count: int) -> list[object]:
    work = undisturbed.parent
    out = work / f"killed-{processes}"
    words = [*kills.words_of(work, out), *(["--procs", "2", "--max-restarts", "100"] if processes > 1 else [])]
    done: list[object] = kills.kill_and_finish(
        start, words, out, count, random.Random(processes), processes, start_s=0.5
    )
    kills.compare(undisturbed, out)
    return done


@pytest.mark.parametrize("undisturbed", [24], indirect=True)
def test_kills_change_no_byte(undisturbed: Path):
    assert len(killed(undisturbed, 1, 1)) == 1
    assert len(killed(undisturbed, 2, 2)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("undisturbed", [400], indirect=True)
def test_many_kills_change_no_byte(undisturbed: Path):
    for processes in (1, 2):
        assert len(killed(undisturbed, processes, 10)) == 10


def test_other_files_are_found(tmp_path: Path):
    for name in ("alone", "killed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "predictions-00000.jsonl").write_text('{"file_name": "a", "error": "x"}\n')
    kills.compare(tmp_path / "alone", tmp_path / "killed")
    (tmp_path / "killed" / "a.jpg").touch()
    with pytest.raises(kills.BrokenRunError, match=r"1 files .* differ: a\.jpg"):
        kills.compare(tmp_path / "alone", tmp_path / "killed")
    for name in ("alone", "killed"):
        (tmp_path / name / "a.jpg").touch()
        (tmp_path / name / "predictions-00000.jsonl").write_text('{"file_name": "a", "error": "x"}\n' * 2)
    with pytest.raises(kills.BrokenRunError, match="more than once"):
        kills.compare(tmp_path / "alone", tmp_path / "killed")
