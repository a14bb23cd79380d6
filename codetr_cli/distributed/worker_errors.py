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
from dataclasses import dataclass
from pathlib import Path

from codetr_cli import errors
from codetr_cli.errors import CodetrError, MemoryShrunkError, ResourceError, StoppedError, machine_error
from codetr_cli.escaping import visible

logger = logging.getLogger(__name__)

ERROR_FOLDER = "CODETR_ERROR_FOLDER"  # environment variable of the started processes
FRAMES = 4  # of a traceback, innermost first
USER_ERRORS = range(2, 7)  # exit codes of errors that the user must fix
MAX_RESTARTS = 3


@dataclass(frozen=True, kw_only=True)
class Work:
    """What the processes of a launch do, for messages, and how often they may be restarted.

    Attributes:
        name: a noun.
        less_memory: how the user makes it need less memory, an imperative.
        continues: where the same command continues; empty if it has nothing to continue.
        max_restarts: of all processes after one died, unless the user chooses a number.
    """

    name: str
    less_memory: str
    continues: str
    max_restarts: int = MAX_RESTARTS


TRAINING = Work(
    name="training",
    less_memory="lower train.micro_batch, data.workers or the number of processes",
    continues="from the newest checkpoint",
)
EVALUATION = Work(
    name="evaluation",
    less_memory="lower data.workers or the number of processes; a lower --batch starts again",
    continues="with the images that are not done",
)
PREDICTION = Work(
    name="prediction",
    less_memory="lower the number of processes",
    continues="with the images that are not done",
)
BENCHMARK = Work(
    name="benchmark",
    less_memory="lower --batch, --size or the number of processes",
    continues="from the start",
    max_restarts=0,
)


def explained(error: Exception, work: Work) -> Exception:
    """The error that a process reports: one of the machine, e.g. no space on the disk, as the user can fix it.

    A training restarts after such errors instead: it saves its state often, and may need less memory then.
    """
    if isinstance(error, CodetrError) or work.name == TRAINING.name:
        return error
    known = machine_error(error, work.less_memory[0].upper() + work.less_memory[1:])
    if known is None:
        return error
    known.__traceback__ = error.__traceback__
    return known


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
        sys.stderr.write(visible(f"process {record['rank']}: {record['text']}") + "\n")
    if os.environ.get("CODETR_DEBUG"):
        for line in "".join(traceback.format_exception(error)).splitlines():
            sys.stderr.write(visible(line) + "\n")


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


def error_of(folder: Path, exit_codes: Mapping[int, int], work: Work = TRAINING) -> tuple[Exception, bool]:
    """Why processes ended, as one error: rather one that the user can fix than another, rather a cause than its effect.

    Args:
        folder: of the files of `write_error`.
        exit_codes: of each process that ended first, by rank; negative for a signal.
        work: what the processes do.

    Returns:
        the error, and whether it is final: a restart would only run into it again.
    """
    records = []
    for path in folder.glob("*.json"):
        with suppress(ValueError):  # cut short: the disk was full
            records.append(json.loads(path.read_text(encoding="utf-8")))
    records.sort(key=lambda record: (not record["kind"], record["time"]))
    if records and records[0]["kind"]:
        # A process that ran out of memory has stored how to continue with less.
        return error_from(records[0]), records[0]["kind"] != MemoryShrunkError.__name__
    for rank, code in exit_codes.items():
        # PyTorch ends the other processes with SIGTERM when it is the first to notice a failure.
        if code < 0 and (code != -signal.SIGTERM or len(exit_codes) == 1):
            return ResourceError(
                f"{work.name} process {rank} was ended by {_signal_name(-code)}, often because memory ran out: "
                f"{work.less_memory}.{f' The same command continues {work.continues}.' if work.continues else ''}"
            ), False
    if records:
        return RuntimeError(f"{work.name} process {records[0]['rank']} failed with {records[0]['text']}"), False
    rank, code = next(iter(exit_codes.items()))
    return (
        ResourceError(f"{work.name} process {rank} ended with exit code {code} and without a message."),
        code in USER_ERRORS,
    )


def error_from(record: Mapping[str, str]) -> Exception:
    """The error of a record: of its own class where that is a `CodetrError`."""
    if not record["kind"]:
        return RuntimeError(record["text"])
    if record["kind"] == StoppedError.__name__:
        return StoppedError(record["text"], signal.SIGTERM)
    kinds = {
        name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, CodetrError)
    }
    return kinds.get(record["kind"], RuntimeError)(record["text"])


def stopped_at_once(number: int, work: Work = TRAINING) -> StoppedError:
    """The error of a launcher whose processes a signal ended before they could save."""
    return StoppedError(
        f"stopped immediately, nothing more was saved: the same command continues {work.continues}.", number
    )


def _signal_name(number: int) -> str:
    with suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"
