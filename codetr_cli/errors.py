"""The errors that a user can fix, and the exit code of each kind.

Every message is one paragraph: what was found, where, and what to do. `cli.py` prints it without a traceback.
"""

import difflib
import errno
import re
import reprlib
from collections.abc import Sequence

MAX_ITEM = 1000  # characters of a listed name


class CodetrError(Exception):
    """An error that the user can fix; the message says how."""

    exit_code = 1


class ConfigError(CodetrError):
    """Wrong usage: an unknown preset, a misspelled setting, options that exclude each other."""

    exit_code = 2


class ArgumentError(ConfigError, ValueError):
    """A wrong argument of the Python API: names the argument, its value and what is allowed."""


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


# PyTorch raises plain RuntimeErrors for what the CPU's memory, shared memory or a library of the GPU cannot give, e.g.
# CUBLAS_STATUS_ALLOC_FAILED, CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED, miopenStatusAllocFailed.
_NO_MEMORY = re.compile(
    r"\bout of memory|can(no|')t allocate memory|not enough memory|std::bad_alloc|DefaultCPUAllocator|"
    r"unable to allocate shared memory|ALLOC(ATION)?_FAILED|StatusAllocFailed|OUT_OF_(DEVICE_|HOST_)?MEMORY",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that an allocation of main or GPU memory failed."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None


_PATH_ADVICE = {
    errno.EEXIST: "It is there already, as a file where a folder is needed or the reverse: choose another path",
    errno.ENOTDIR: "A part of this path is a file, not a folder: choose another path",
    errno.EISDIR: "It is a folder where a file is needed: choose another path",
    errno.ENOTEMPTY: "It is a folder with files in it: choose another path",
    errno.ENAMETOOLONG: "Choose a shorter path",
    errno.ENOENT: "Check that it exists",
    errno.EACCES: "Check its permissions",
    errno.EPERM: "Check its permissions",
    errno.EROFS: "Choose a path that can be written to",
}
"""What to do about an error of the system with a path; none of them contradicts the error's own words."""


def machine_error(error: Exception, less_memory: str) -> ResourceError | None:
    """The error of the machine or of a path that an exception of Python or PyTorch stands for; None for any other.

    Args:
        error: caught where a command ends.
        less_memory: how the user makes the command need less memory, an imperative.
    """
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" while writing {error.filename}" if error.filename else ""
        return ResourceError(
            f"no space left on the disk{where}: free some space or choose another folder, then run again."
        )
    if isinstance(error, OSError) and error.filename is not None:
        advice = _PATH_ADVICE.get(error.errno or 0, "Check that it can be accessed")
        return ResourceError(f"cannot use {error.filename}: {error.strerror}. {advice}.")
    if is_out_of_memory(error):
        first_line = (str(error).splitlines() or [""])[0]
        return ResourceError(f"not enough memory: {first_line.rstrip('.') or 'an allocation failed'}. {less_memory}.")
    return None


def nearest(word: str, choices: Sequence[str]) -> str:
    """A phrase that suggests the closest choice for a misspelled word, or lists the choices."""
    same = [choice for choice in choices if choice.casefold() == word.casefold()]
    # The search takes longer for longer words.
    close = same or difflib.get_close_matches(word[:200], choices, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {listed(choices, 12)}"


_SHORT = reprlib.Repr()
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 6
_SHORT.maxlevel = 3
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60


def shown(value: object, limit: int = 80) -> str:
    """The text of any value of a file in a message, however long or deeply nested it is; at most `limit` characters."""
    try:
        text = _SHORT.repr(value)
    except ValueError:  # an integer of thousands of digits
        text = "a number of thousands of digits"
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def listed(items: Sequence[object], limit: int = 3, *, count: int | None = None, separator: str = ", ") -> str:
    """The first items and the number of the others: `a, b, c and 4 more`; `count` if there are more than `items`."""
    first = [text if len(text) <= MAX_ITEM else f"{text[:MAX_ITEM]}..." for text in map(str, items[:limit])]
    others = (len(items) if count is None else count) - len(first)
    return separator.join(first) + (f" and {others:,} more" if others else "")


def counted(number: int, noun: str, verb: str = "") -> str:
    """A number of things, and the verb for it: `1 image is`, `2,000 images are`; `verb` is the plural, are or have."""
    ending = "" if number == 1 else "s"
    words = {"are": "is", "have": "has"} if number == 1 else {}
    return f"{number:,} {noun}{ending} {words.get(verb, verb)}".rstrip()
