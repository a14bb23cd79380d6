"""The errors that a user can fix, and the exit code of each kind.

Every message is one paragraph: what was found, where, and what to do. `cli.py` prints it without a traceback.
"""

import difflib
from collections.abc import Sequence


class CodetrError(Exception):
    """An error that the user can fix; the message says how."""

    exit_code = 1


class ConfigError(CodetrError):
    """Wrong usage: an unknown preset, a misspelled setting, options that exclude each other."""

    exit_code = 2


class DatasetError(CodetrError):
    """Unusable data: missing, truncated or contradictory files."""

    exit_code = 3


class CheckpointError(CodetrError):
    """A checkpoint that cannot be read, is unsafe to read, or has another architecture."""

    exit_code = 4


class ResourceError(CodetrError):
    """A missing resource: no GPU, too little memory, no space on disk, an optional package that is not installed."""

    exit_code = 5


class MemoryShrunkError(ResourceError):
    """One of several processes ran out of memory. The change was recorded in the run folder; all processes restart."""


class DivergedError(CodetrError):
    """Training diverged: the loss is not finite."""

    exit_code = 6


class StoppedError(CodetrError):
    """A signal stopped the program after it saved its work.

    Args:
        message: what was saved and how to continue.
        signal_number: the signal received. The exit code is 130 for Ctrl-C (2) and 143 for others (SIGTERM, SIGUSR1).
    """

    def __init__(self, message: str, signal_number: int = 2) -> None:
        super().__init__(message)
        self.exit_code = 130 if signal_number == 2 else 143


def nearest(word: str, choices: list[str]) -> str:
    """A phrase that suggests the closest choice for a misspelled word, or lists the choices."""
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {listed(choices, 12)}"


def listed(items: Sequence[object], limit: int = 3, *, count: int | None = None, separator: str = ", ") -> str:
    """The first items and the number of the others: `a, b, c and 4 more`; `count` if there are more than `items`."""
    first = [str(item) for item in items[:limit]]
    others = (len(items) if count is None else count) - len(first)
    return separator.join(first) + (f" and {others:,} more" if others else "")
