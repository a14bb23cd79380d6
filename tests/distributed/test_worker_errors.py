from __future__ import annotations

import errno
import os
import re
import signal
from pathlib import Path

import pytest
import torch

from codetr_cli.distributed.worker_errors import EVALUATION, TRAINING, error_from, error_of, explained, write_error
from codetr_cli.errors import DatasetError, ResourceError, StoppedError
from tests.distributed.run_files import write_error_file


@pytest.mark.parametrize("debug", [False, True])
def test_the_traceback_of_a_failing_process_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], debug: bool
):
    """Its innermost calls in the error text; the whole traceback with CODETR_DEBUG."""
    monkeypatch.setenv("CODETR_ERROR_FOLDER", str(tmp_path))
    monkeypatch.setenv("RANK", "3")
    if debug:
        monkeypatch.setenv("CODETR_DEBUG", "1")

    def innermost() -> None:
        {}["nothing"]

    with pytest.raises(KeyError) as caught:
        innermost()
    write_error(caught.value)
    error, _ = error_of(tmp_path, {3: 1})
    assert re.search(
        r"process 3 failed with KeyError: 'nothing' \(at test_worker_errors.py:\d+ innermost, called", str(error)
    )
    shown = capsys.readouterr().err
    assert ("Traceback" in shown) == ("in innermost" in shown) == debug


def test_a_process_that_was_killed_is_an_error_of_the_machine(tmp_path: Path):
    write_error_file(
        tmp_path, 0, "", "RuntimeError: connection closed by peer", 1.0
    )  # follows from the death of the other
    error, final = error_of(tmp_path, {0: 1, 3: -9})
    assert isinstance(error, ResourceError)
    assert "process 3 was ended by SIGKILL" in str(error)
    assert not final


def test_processes_that_are_ended_with_a_failed_one_are_not_the_cause(tmp_path: Path):
    write_error_file(tmp_path, 1, "", "KeyError: 'x'", 1.0)
    error, final = error_of(tmp_path, {0: -signal.SIGTERM, 1: 1})
    assert str(error) == "training process 1 failed with KeyError: 'x'"
    assert not final
    assert "ended by SIGTERM" in str(error_of(tmp_path, {0: -signal.SIGTERM})[0])


def test_an_error_that_the_user_must_fix_counts_and_is_final(tmp_path: Path):
    write_error_file(tmp_path, 0, "", "RuntimeError: connection closed", 1.0)
    write_error_file(tmp_path, 1, "DatasetError", "no image", 2.0)
    error, final = error_of(tmp_path, {0: 1, 1: 3})
    assert isinstance(error, DatasetError)
    assert str(error) == "no image"
    assert final


def test_the_first_of_several_errors_counts(tmp_path: Path):
    write_error_file(tmp_path, 0, "", "RuntimeError: connection closed", 2.0)
    write_error_file(tmp_path, 1, "", "KeyError: 'x'", 1.0)
    error, final = error_of(tmp_path, {0: 1, 1: 1})
    assert str(error) == "training process 1 failed with KeyError: 'x'"
    assert not final


def test_a_message_that_was_cut_short_is_none(tmp_path: Path):
    (tmp_path / "0.json").write_text('{"kind": ', encoding="utf-8")
    error, _ = error_of(tmp_path, {0: 1})
    assert str(error) == "training process 0 ended with exit code 1 and without a message."


@pytest.mark.parametrize(("code", "final"), [(7, False), (5, True)])
def test_a_process_without_a_message(tmp_path: Path, code: int, final: bool):
    error, is_final = error_of(tmp_path, {1: code})
    assert f"training process 1 ended with exit code {code}" in str(error)
    assert is_final is final


def test_an_error_of_another_node_keeps_its_kind():
    assert isinstance(error_from({"kind": "DatasetError", "text": "x"}), DatasetError)
    stopped = error_from({"kind": "StoppedError", "text": "x"})
    assert isinstance(stopped, StoppedError)
    assert stopped.exit_code == 143
    assert type(error_from({"kind": "", "text": "x"})) is RuntimeError
    for kind in ("re", "machine_error", "Exception"):
        assert type(error_from({"kind": kind, "text": "x"})) is RuntimeError


def test_a_process_that_has_written_down_less_is_started_again(tmp_path: Path):
    write_error_file(tmp_path, 1, "MemoryShrunkError", "ran out of memory", 1.0)
    error, final = error_of(tmp_path, {1: 5})
    assert isinstance(error, ResourceError)
    assert not final
    write_error_file(tmp_path, 0, "ResourceError", "no space", 0.5)
    assert error_of(tmp_path, {1: 5})[1]


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (FileExistsError(errno.EEXIST, "File exists", "results"), "cannot use results: File exists"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "no space left on the disk"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "not enough memory: CUDA out of memory. Tried. Lower"),
    ],
)
def test_an_error_of_the_machine_ends_an_evaluation_and_restarts_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, part: str
):
    monkeypatch.setenv("CODETR_ERROR_FOLDER", str(tmp_path))
    monkeypatch.setenv("RANK", "1")
    write_error(explained(error, EVALUATION))
    found, final = error_of(tmp_path, {1: 5}, EVALUATION)
    assert isinstance(found, ResourceError)
    assert str(found).startswith(part)
    assert final
    assert explained(error, TRAINING) is error
    assert explained(found, EVALUATION) is found
    bug = KeyError("x")
    assert explained(bug, EVALUATION) is bug
