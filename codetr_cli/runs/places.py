"""What may be in the places of a run folder's files and folders."""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

from codetr_cli.errors import ConfigError
from codetr_cli.files import real_path
from codetr_cli.reading import open_file
from codetr_cli.result_files import RECORD_NAME
from codetr_cli.runs.plot_files import SHEET_NAME, VAL_IMAGES
from codetr_cli.runs.process_record import PROCESS_NAME

FILES = (
    *("settings.toml", "origin.json", "metrics.jsonl", "events.log", "memory.json", "bad_files.txt", ".lock"),
    PROCESS_NAME,
)
TEMPORARY = ".*.tmp"  # files that are not complete yet
_JOB_FILES = ("train*.sh", "*.log", RECORD_NAME, TEMPORARY)
_PLOT_NAMES = ("*.png", SHEET_NAME, VAL_IMAGES, TEMPORARY)
_EVENT = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ")


def check_places(run: Path) -> None:
    """Refuses a folder in which names of a run are links, pipes or the like: nothing is read or written there.

    A link as the folder of checkpoints is allowed, as on a second disk, unless it leads into another run; as that of
    plots, unless other files are there.

    Raises:
        ConfigError: with the name.
    """
    plots, checkpoints_dir = run / "plots", run / "checkpoints"
    for name in FILES:
        with suppress(FileNotFoundError, NotADirectoryError):
            if not stat.S_ISREG((run / name).lstat().st_mode):
                raise ConfigError(
                    f"{run / name} is not a file of a run but a link or something else: remove it, or give "
                    "another folder with --run"
                )
    if os.path.lexists(plots) and not _holds_plots(plots):
        raise ConfigError(
            f"{plots} is not a folder of plots, or a link to one: remove it, or give another folder with --run"
        )
    checkpoints = real_path(checkpoints_dir)
    if os.path.lexists(checkpoints_dir) and not checkpoints.is_dir():
        raise ConfigError(
            f"{checkpoints_dir} is not a folder: mount its disk where it is a link, remove it, or give another "
            "folder with --run"
        )
    if checkpoints_dir.is_symlink() and (checkpoints.parent / "settings.toml").exists():
        raise ConfigError(f"{checkpoints_dir} is a link to the checkpoints of another run: remove it")


def _holds_plots(folder: Path) -> bool:
    """Whether this is a folder, or a link to one with nothing but plots."""
    try:
        if not folder.is_symlink():
            return folder.is_dir()
        return all(any(fnmatch(entry.name, name) for name in _PLOT_NAMES) for entry in folder.iterdir())
    except OSError:
        return False


def has_other_logs(run: Path) -> bool:
    """Whether there is an events.log, a .lock or a folder of jobs that no run has written, by its content."""
    try:
        jobs = run / "slurm"
        return (
            (os.path.lexists(run / "events.log") and not _is_event_log(run / "events.log"))
            or (os.path.lexists(run / ".lock") and (run / ".lock").lstat().st_size > 0)
            or (os.path.lexists(jobs) and not all(_is_of_a_job(entry.name) for entry in jobs.iterdir()))
        )
    except OSError:
        return True


def _is_event_log(path: Path) -> bool:
    """Whether the first line starts with a time, as those of `RunFolder.event`; a file without content is one."""
    with open_file(path) as file:
        start = file.read(64)
    return not start or _EVENT.match(start) is not None


def _is_of_a_job(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in _JOB_FILES)
