"""What can go wrong in a way that a person can mend, and the exit code each kind ends the program with.

Every message is one paragraph: what was found, where, what to do next. `cli.py` prints it without a traceback.
"""

import difflib


class CodetrError(Exception):
    """A failure that the user can mend; the message says how."""

    exit_code = 1


class ConfigError(CodetrError):
    """Wrong usage: an unknown preset, a mistyped setting, options that exclude each other."""

    exit_code = 2


class DatasetError(CodetrError):
    """The data on disk cannot be used: missing, truncated or contradictory files."""

    exit_code = 3


class CheckpointError(CodetrError):
    """A checkpoint cannot be read, is not safe to read, or belongs to another architecture."""

    exit_code = 4


class ResourceError(CodetrError):
    """The machine lacks something: no GPU, too little memory, no space on disk, a missing optional package."""

    exit_code = 5


class MemoryShrunkError(ResourceError):
    """One of several processes ran out of memory; what has to change is written down for all, which start again."""


class DivergedError(CodetrError):
    """Training produced numbers that cannot be trained on (non-finite loss)."""

    exit_code = 6


class StoppedError(CodetrError):
    """A signal asked the program to stop and its work has been saved.

    Args:
        message: what was saved and how to continue.
        signal_number: the signal received; Ctrl-C (2) gives the exit code 130, others (SIGTERM, SIGUSR1) 143.
    """

    def __init__(self, message: str, signal_number: int = 2) -> None:
        super().__init__(message)
        self.exit_code = 130 if signal_number == 2 else 143


def nearest(word: str, choices: list[str]) -> str:
    """A phrase that suggests the choice closest to a mistyped word, or lists the choices."""
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return "known: " + ", ".join(choices[:12]) + (" ..." if len(choices) > 12 else "")
