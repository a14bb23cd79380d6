"""What can go wrong in a way that a person can mend, and the exit code each kind ends the program with.

Every message is one paragraph: what was found, where, what to do next. `cli.py` prints it without a traceback.
"""


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


class MachineError(CodetrError):
    """The machine lacks something: no GPU, too little memory, no space on disk, a missing optional package."""

    exit_code = 5


class MemoryShrunkError(MachineError):
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
