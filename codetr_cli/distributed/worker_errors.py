"""How a failing process reports its error, and how the launcher makes one error of those of all processes.

Each failing process writes a file into a folder of the launcher. When one process fails, others fail because of it; the
user gets the error of the cause.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from codetr_cli import errors
from codetr_cli.errors import CodetrError, MemoryShrunkError, ResourceError, StoppedError

logger = logging.getLogger(__name__)

ERROR_FOLDER = "CODETR_ERROR_FOLDER"  # environment variable of the started processes
FRAMES = 4  # of a traceback, innermost first
USER_ERRORS = range(2, 7)  # exit codes of errors that the user must fix


def write_error(error: Exception) -> None:
    """Writes the error that ends this process for the launcher to read."""
    known = isinstance(error, CodetrError)
    record = {
        "kind": type(error).__name__ if known else "",
        "text": str(error) if known else f"{type(error).__name__}: {error} ({_innermost_calls(error)})",
        "rank": int(os.environ["RANK"]),
        "time": time.monotonic(),  # the same clock in all processes of a node
    }
    try:
        Path(os.environ[ERROR_FOLDER], f"{os.environ['RANK']}.json").write_text(json.dumps(record), encoding="utf-8")
    except OSError:  # a full disk; the exit code remains, and this
        sys.stderr.write(f"training process {record['rank']}: {record['text']}\n")
    if os.environ.get("CODETR_DEBUG"):
        traceback.print_exception(error)


def _innermost_calls(error: Exception) -> str:
    """The end of a traceback in one line, innermost call first."""
    frames = traceback.extract_tb(error.__traceback__)[-FRAMES:]
    return "at " + ", called from ".join(
        f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames)
    )


def end_process(error: CodetrError) -> None:
    """Ends this process at once because of an error; for threads, which cannot raise it in the main thread."""
    if ERROR_FOLDER in os.environ:
        write_error(error)
    else:
        logger.error("%s", error)
    os._exit(error.exit_code)


def error_of(folder: Path, exit_codes: Mapping[int, int]) -> tuple[Exception, bool]:
    """Why processes ended, as one error: rather one that the user can fix than another, rather a cause than its effect.

    Args:
        folder: of the files of `write_error`.
        exit_codes: of each process that ended first, by rank; negative for a signal.

    Returns:
        the error, and whether it is final: a restart would only run into it again.
    """
    records = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    records.sort(key=lambda record: (not record["kind"], record["time"]))
    if records and records[0]["kind"]:
        # A process that ran out of memory has stored how to continue with less.
        return error_from(records[0]), records[0]["kind"] != MemoryShrunkError.__name__
    for rank, code in exit_codes.items():
        # PyTorch ends the other processes with SIGTERM when it is the first to notice a failure.
        if code < 0 and (code != -signal.SIGTERM or len(exit_codes) == 1):
            return ResourceError(
                f"training process {rank} was ended by {_signal_name(-code)}, often because memory ran out: lower "
                "train.micro_batch, data.workers or the number of processes. The same command continues from the "
                "newest checkpoint."
            ), False
    if records:
        return RuntimeError(f"training process {records[0]['rank']} failed with {records[0]['text']}"), False
    rank, code = next(iter(exit_codes.items()))
    return (
        ResourceError(f"training process {rank} ended with exit code {code} and without a message."),
        code in USER_ERRORS,
    )


def error_from(record: Mapping[str, str]) -> Exception:
    """The error of a record: of its own class where that is a `CodetrError`."""
    if not record["kind"]:
        return RuntimeError(record["text"])
    if record["kind"] == StoppedError.__name__:
        return StoppedError(record["text"], signal.SIGTERM)
    kind: type[CodetrError] = getattr(errors, record["kind"])
    return kind(record["text"])


def stopped_at_once(number: int) -> StoppedError:
    """The error of a launcher whose processes a signal ended before they could save."""
    return StoppedError(
        "stopped immediately, nothing was saved after the newest checkpoint: start the same command again to continue "
        "from it.",
        number,
    )


def _signal_name(number: int) -> str:
    with suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"
