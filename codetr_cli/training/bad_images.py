"""What a run does about image files that cannot be read: a list in its folder, warnings, an error when they are many.

`bad_files.txt` has one line per file: the split, what was done, the file, and why. Files that were skipped when the run
started stay skipped when it continues, so that images come in the same order even when the files are readable by then.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from codetr_cli.annotations.cache import source_of
from codetr_cli.annotations.image_folder import ImageFolder
from codetr_cli.annotations.objects import read_annotations
from codetr_cli.config.schema import Settings
from codetr_cli.data.bad_files import BadFile, check_share, find_bad_files, listed_bad
from codetr_cli.distributed import process_group
from codetr_cli.files import restore_bytes, write_text
from codetr_cli.formats.resolve import Split, find_data
from codetr_cli.reading import read_bytes
from codetr_cli.runs.folder import RunFolder
from codetr_cli.runtime.disk_errors import writing

logger = logging.getLogger(__name__)

NAME = "bad_files.txt"
MAX_LIST_BYTES = 64 << 20
HEAD = "# Image files that cannot be read. Columns: split, what was done, file, why.\n"
SKIPPED = "skipped"  # never used: found before the first step
REPLACED = "replaced"  # found in training; another image replaces it
NOT_COUNTED = "not counted"  # found in an evaluation, which skips it
ACTIONS = (SKIPPED, REPLACED, NOT_COUNTED)
CONSEQUENCES = {
    REPLACED: "another image replaces it",
    NOT_COUNTED: "the evaluation skips it and reports how many images it scored",
}
WARNINGS = 3  # files found during training that get a warning of their own

KnownFiles = dict[tuple[str, str], tuple[str, BadFile]]
"""What was done about each file, and why, by split and path."""


class BadFiles:
    """The unreadable files of a run, in this process; `images` is the number of images of each split."""

    def __init__(self, folder: RunFolder, images: dict[str, int], known: KnownFiles) -> None:
        self.folder, self.images = folder, images
        self._known = known
        self._new = 0

    def skipped(self, split: Split) -> list[str]:
        """Files that are not used from the first step on."""
        return [bad.path for bad in _with_action(self._known, split, SKIPPED)]

    def on_unreadable(self, bad: BadFile, split: Split = "train") -> None:
        """Records a file that could not be read just now, unless the list has it already.

        Raises:
            DatasetError: there are too many by now.
        """
        if (split, bad.path) in self._known:
            return
        action = REPLACED if split == "train" else NOT_COUNTED
        self._known[split, bad.path] = action, bad
        self._new += 1
        # Every process appends its own: the system writes a line as a whole.
        path = self.folder.path / NAME
        with writing(self.folder.path), path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(_line(split, action, bad))
        level = logging.WARNING if self._new <= WARNINGS else logging.DEBUG
        more = f". Further ones are only listed in {path}" if self._new == WARNINGS else ""
        logger.log(level, "%s cannot be read: %s%s", listed_bad([bad]), CONSEQUENCES[action], more)
        found = [bad for (where, _), (_, bad) in self._known.items() if where == split]
        check_share(found, self.images[split], f"the {split} split")


def open_bad_files(settings: Settings, folder: RunFolder, splits: Sequence[Split], *, resume: bool) -> BadFiles:
    """Finds the unreadable files before a training, in the process of rank 0; every process must call it.

    A resumed run skips exactly the files that it skipped when it started.

    Raises:
        DatasetError: too many are unreadable, or the image folder is wrong.
    """
    images: dict[str, int] = {}
    known: KnownFiles = {}
    if process_group.is_main():
        continues = resume and folder.last.exists()
        if continues:
            known = read_list(folder.path / NAME)
        skip = settings.data.bad_files == "skip"
        for split in splits if skip else ():
            images[split], bad = scan(settings, split)
            if continues:
                known = _relocated(known, settings, split)
            else:
                known |= {(split, one.path): (SKIPPED, one) for one in bad}
        # Until there is a checkpoint the list is that of this start: an earlier one may have found other files.
        if skip and not (continues and (folder.path / NAME).exists()):
            lines = [_line(split, action, bad) for (split, _), (action, bad) in known.items()]
            with writing(folder.path):
                write_text(folder.path / NAME, HEAD + "".join(lines))
        for split in splits:
            if bad := _with_action(known, split, SKIPPED):
                text = "%s: %s image files cannot be read and are skipped: %s. All of them: %s"
                logger.warning(text, split, f"{len(bad):,}", listed_bad(bad), folder.path / NAME)
    images, known = process_group.from_main((images, known))
    return BadFiles(folder, images, known)


def scan(settings: Settings, split: Split) -> tuple[int, list[BadFile]]:
    """Reads the headers of all image files of a split.

    Returns:
        the number of images, and the unreadable ones.

    Raises:
        DatasetError: too many are unreadable.
    """
    paths = find_data(settings.data, None, split)
    names = read_annotations(paths.annotations_path).file_names
    folder = ImageFolder(paths.images_dir, names, paths.names)
    names, _ = folder.inside(names, source_of(paths.annotations_path).name)
    if split == "train":
        names = names[: settings.data.max_images]
    logger.info("reading the headers of %s %s images (data.bad_files=skip)", f"{len(names):,}", split)
    bad = find_bad_files(folder, names, max_pixels=settings.data.max_pixels)
    check_share(bad, len(names), source_of(paths.annotations_path).name)
    return len(names), bad


def log_summary(folder: RunFolder) -> None:
    """Warns at the end of a training of the files that any process could not read."""
    known = read_list(folder.path / NAME)
    counts = {name: sum(action == name for action, _ in known.values()) for name in ACTIONS}
    if known:
        shown = ", ".join(f"{count:,} {action}" for action, count in counts.items() if count)
        logger.warning("%s image files could not be read (%s): see %s", f"{len(known):,}", shown, folder.path / NAME)


def read_list(path: Path) -> KnownFiles:
    """The content of bad_files.txt; empty where there is none, and with a warning where it cannot be read."""
    try:
        text = read_bytes(path, MAX_LIST_BYTES).decode("utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return {}
    except OSError as error:
        logger.warning("%s cannot be read and is not used: %s", path, error.strerror)
        return {}
    known: KnownFiles = {}
    for line in restore_bytes(text).split("\n"):
        columns = line.split("\t")
        if len(columns) == 4 and not line.startswith("#"):
            split, action, file, reason = columns
            # Version 0.1.0 has another word for skipped files, and the same for the others.
            known.setdefault((split, file), (action if action in ACTIONS else SKIPPED, BadFile(file, reason)))
    return known


def _relocated(known: KnownFiles, settings: Settings, split: Split) -> KnownFiles:
    """The list with the paths of the split's files in the folder where the images are now."""
    paths = find_data(settings.data, None, split)
    prefix = f"{paths.images_dir}/"
    if all(where != split or path.startswith(prefix) for where, path in known):
        return known
    names = frozenset(read_annotations(paths.annotations_path).file_names)
    depth = max((name.count("/") for name in names), default=0)
    moved: KnownFiles = {}
    for (where, path), (action, bad) in known.items():
        ends = accumulate(reversed(path.rsplit("/", depth + 1)[1:]), lambda end, part: f"{part}/{end}")
        name = next((end for end in ends if end in names), None) if where == split else None
        place = path if name is None else str(paths.images_dir / name)
        moved[where, place] = action, BadFile(place, bad.reason)
    return moved


def _with_action(known: KnownFiles, split: str, action: str) -> list[BadFile]:
    return [bad for (where, _), (what, bad) in known.items() if (where, what) == (split, action)]


def _line(split: str, action: str, bad: BadFile) -> str:
    return "\t".join((split, action, bad.path, " ".join(bad.reason.split()))) + "\n"
