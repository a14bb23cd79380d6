"""What a process that fails leaves behind, and what is made of it by whoever started it.

A note of each failing process lies in a folder of the launcher: several processes fail when one does, and the person is
told of one cause.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from codetr_cli import errors
from codetr_cli.errors import CodetrError, MemoryShrunkError, ResourceError, StoppedError

NOTES = "CODETR_NOTES"  # the folder, for the processes
FRAMES = 4  # of a traceback, innermost first
USER_ERRORS = range(2, 7)  # exit codes of what a person has to mend


def write_note(error: Exception) -> None:
    """Leaves word of an error that ends this process."""
    known = isinstance(error, CodetrError)
    note = {
        "kind": type(error).__name__ if known else "",
        "text": str(error) if known else f"{type(error).__name__}: {error} ({_calls(error)})",
        "rank": int(os.environ["RANK"]),
        "time": time.monotonic(),  # of all processes of a machine alike, and never set anew
    }
    try:
        Path(os.environ[NOTES], f"{os.environ['RANK']}.json").write_text(json.dumps(note), encoding="utf-8")
    except OSError:  # a full disk; the exit code is left, and this
        sys.stderr.write(f"training process {note['rank']}: {note['text']}\n")
    if os.environ.get("CODETR_DEBUG"):
        traceback.print_exception(error)


def _calls(error: Exception) -> str:
    """The end of a traceback in one line, innermost call first."""
    frames = traceback.extract_tb(error.__traceback__)[-FRAMES:]
    return "at " + ", called from ".join(
        f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames)
    )


def end_process(error: CodetrError, tell: Callable[[str], None]) -> None:
    """Ends this process at once because of an error; for threads, which cannot raise it in the main one.

    Args:
        error: what the person is told.
        tell: tells it where no launcher of ours reads it.
    """
    if NOTES in os.environ:
        write_note(error)
    else:
        tell(str(error))
    os._exit(error.exit_code)


def error_of(folder: Path, deaths: Mapping[int, int]) -> tuple[Exception, bool]:
    """Why processes ended, as one error: one that a person can mend rather than others, a cause rather than its effect.

    Args:
        folder: of the notes.
        deaths: exit code of each process that ended first, by rank; negative for a signal.

    Returns:
        the error, and whether it is final: a start anew would only meet it again.
    """
    notes = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    notes.sort(key=lambda note: (not note["kind"], note["time"]))
    if notes and notes[0]["kind"]:
        # Who ran out of memory has written down how to go on with less.
        return error_from(notes[0]), notes[0]["kind"] != MemoryShrunkError.__name__
    for rank, code in deaths.items():
        # PyTorch ends the other processes with SIGTERM when it is the first to see that one failed.
        if code < 0 and (code != -signal.SIGTERM or len(deaths) == 1):
            return ResourceError(
                f"training process {rank} was ended by {_signal_name(-code)}, often because memory ran out: lower "
                "train.micro_batch, data.workers or the number of processes. The same command continues from the "
                "newest checkpoint."
            ), False
    if notes:
        return RuntimeError(f"training process {notes[0]['rank']} failed with {notes[0]['text']}"), False
    rank, code = next(iter(deaths.items()))
    return (
        ResourceError(f"training process {rank} ended with exit code {code} and without a message."),
        code in USER_ERRORS,
    )


def error_from(note: Mapping[str, str]) -> Exception:
    """The error that a note tells of: of its own kind where that is one of ours."""
    if not note["kind"]:
        return RuntimeError(note["text"])
    if note["kind"] == StoppedError.__name__:
        return StoppedError(note["text"], signal.SIGTERM)
    kind: type[CodetrError] = getattr(errors, note["kind"])
    return kind(note["text"])


def stopped_at_once(number: int) -> StoppedError:
    """The error of a launcher whose processes a signal ended before they could save."""
    return StoppedError(
        "stopped at once, nothing was saved after the newest checkpoint: start the same command again to continue from "
        "it.",
        number,
    )


def _signal_name(number: int) -> str:
    with suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"
