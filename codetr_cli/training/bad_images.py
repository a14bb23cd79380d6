"""What a run does about image files that cannot be read: a list in its folder, warnings, an end when they are many.

`bad_files.txt` has a line a file: the split, what became of it, the file, and why. What was left out when the run began
stays left out when it is continued, so that images come in the same order, whatever the files are like by then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from codetr_cli.config.schema import Settings
from codetr_cli.data.annotations import read_annotations
from codetr_cli.data.bad_files import BadFile, check_share, find_bad_files, listed_bad
from codetr_cli.data.formats.cache import source_of
from codetr_cli.data.formats.resolve import Split, find_data
from codetr_cli.distributed import process_group
from codetr_cli.files import write_text
from codetr_cli.runs.folder import RunFolder
from codetr_cli.runtime.disk_errors import writing
from codetr_cli.training.reporter import Report

NAME = "bad_files.txt"
HEAD = "# Image files that cannot be read. Columns: split, what became of it, file, why.\n"
LEFT_OUT = "left out"
"""Never used: found before the first step."""
REPLACED = "replaced"
"""Found in training; another image comes in its place."""
NOT_COUNTED = "not counted"
"""Found in an evaluation, which leaves it out."""
TOLD = 3
"""Files that are met on the way and told of one by one."""


class BadFiles:
    """The bad files of a run, in this process.

    Args:
        folder: of the run.
        images: how many each split has.
        known: what the list says already, by split and file.
        tell: told of every file that is met, until they are too many.
    """

    def __init__(
        self,
        folder: RunFolder,
        images: dict[str, int],
        known: dict[tuple[str, str], tuple[str, BadFile]],
        tell: Callable[[str], object],
    ) -> None:
        self.folder, self.images, self.tell = folder, images, tell
        self._known = known
        self._met = 0

    def left_out(self, split: Split) -> list[str]:
        """Files that are not to be used from the first step on."""
        return [bad.path for (where, _), (what, bad) in self._known.items() if (where, what) == (split, LEFT_OUT)]

    def meet(self, bad: BadFile, split: Split = "train") -> None:
        """Notes a file that could not be read just now; one that is noted already is no news.

        Raises:
            DatasetError: they are too many by now.
        """
        if (split, bad.path) in self._known:
            return
        what = REPLACED if split == "train" else NOT_COUNTED
        self._known[split, bad.path] = what, bad
        self._met += 1
        # Every process appends its own: a line at once, which the system keeps whole.
        path = self.folder.path / NAME
        with writing(self.folder.path), path.open("a", encoding="utf-8", errors="surrogateescape") as file:
            file.write(_line(split, what, bad))
        text = f"{listed_bad([bad])} cannot be read: {_consequence(split)}"
        self.folder.event(text)
        if self._met <= TOLD:
            self.tell(text + (f". Further ones stand in {self.folder.path / NAME} only" if self._met == TOLD else ""))
        check_share(self._of(split), self.images[split], f"the {split} split")

    def _of(self, split: Split) -> list[BadFile]:
        return [bad for (where, _), (_, bad) in self._known.items() if where == split]


def open_bad_files(
    settings: Settings, folder: RunFolder, splits: Sequence[Split], *, resume: bool, report: Report
) -> BadFiles:
    """Finds the files that a training has to do without, in the process of rank 0; every process must call it.

    Args:
        settings: of the run.
        folder: opened.
        splits: that the run uses.
        resume: the run is continued: what was left out at its beginning counts, and only that.
        report: of this process.

    Raises:
        DatasetError: too many, or the images are not where they should be.
    """
    images: dict[str, int] = {}
    known: dict[tuple[str, str], tuple[str, BadFile]] = {}
    if process_group.is_main():
        if resume and folder.last.exists():
            known = read_list(folder.path / NAME)
        skip = settings.data.bad_files == "skip"
        for split in splits if skip else ():
            begun = resume and folder.last.exists()
            images[split], bad = scan(settings, split, report)
            if not begun:
                known |= {(split, one.path): (LEFT_OUT, one) for one in bad}
        if skip and not (folder.path / NAME).exists():
            lines = [_line(split, what, bad) for (split, _), (what, bad) in known.items()]
            with writing(folder.path):
                write_text(folder.path / NAME, HEAD + "".join(lines))
        for split in splits:
            bad = [one for (where, _), (what, one) in known.items() if (where, what) == (split, LEFT_OUT)]
            if not bad:
                continue
            text = f"{split}: {len(bad):,} image files cannot be read and are left out: {listed_bad(bad)}"
            report.warn(f"{text}. All of them: {folder.path / NAME}")
            folder.event(text)
    images, known = process_group.from_main((images, known))
    return BadFiles(folder, images, known, report.warn)


def scan(settings: Settings, split: Split, report: Report) -> tuple[int, list[BadFile]]:
    """Reads the headers of all image files of a split.

    Returns:
        how many images there are, and the bad ones.

    Raises:
        DatasetError: too many are bad.
    """
    paths = find_data(settings.data, None, split)
    names = read_annotations(paths.annotations_path).file_names
    if split == "train":
        names = names[: settings.data.max_images]
    report.note(f"reading the headers of {len(names):,} {split} images (data.bad_files=skip)")
    bad = find_bad_files(paths.images_dir, names, max_pixels=settings.data.max_pixels)
    check_share(bad, len(names), source_of(paths.annotations_path).name)
    return len(names), bad


def sum_up(folder: RunFolder, report: Report) -> None:
    """Says at the end of a training how many files all processes could not read."""
    known = read_list(folder.path / NAME)
    counts = {what: sum(found == what for found, _ in known.values()) for what in (LEFT_OUT, REPLACED, NOT_COUNTED)}
    if known:
        shown = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
        text = f"{len(known):,} image files could not be read ({shown}): see {folder.path / NAME}"
        report.warn(text)
        folder.event(text)


def read_list(path: Path) -> dict[tuple[str, str], tuple[str, BadFile]]:
    """What became of each file, and why, by split and path; empty where there is no list."""
    try:
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    except FileNotFoundError:
        return {}
    known: dict[tuple[str, str], tuple[str, BadFile]] = {}
    for line in lines:
        columns = line.split("\t")
        if len(columns) == 4 and not line.startswith("#"):
            known.setdefault((columns[0], columns[2]), (columns[1], BadFile(columns[2], columns[3])))
    return known


def _line(split: str, what: str, bad: BadFile) -> str:
    return "\t".join((split, what, bad.path, " ".join(bad.reason.split()))) + "\n"


def _consequence(split: Split) -> str:
    if split == "train":
        return "another image comes in its place"
    return "the evaluation leaves it out, and says of how many images its numbers are"
