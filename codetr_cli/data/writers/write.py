"""Writes a data set in another layout: reads the splits, chooses images and classes, writes files and images.

A folder with images is written under a temporary name and renamed at the end. Tables alone are written file by file;
the same command completes them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codetr_cli import files, result_files
from codetr_cli.annotations.file_names import NameRule
from codetr_cli.data.writers.coco import CocoWriter
from codetr_cli.data.writers.content import NOTES, LayoutWriter, WrittenClasses, WrittenImage, counted
from codetr_cli.data.writers.csv_table import CsvWriter
from codetr_cli.data.writers.cvat import CvatWriter
from codetr_cli.data.writers.folder import VERB, check_replaceable, record_folder
from codetr_cli.data.writers.image_files import write_images
from codetr_cli.data.writers.label_studio import LabelStudioWriter
from codetr_cli.data.writers.labelme import LabelmeWriter
from codetr_cli.data.writers.options import WriteOptions
from codetr_cli.data.writers.selection import choose_classes, choose_sample
from codetr_cli.data.writers.source import SourceSplit, all_classes, read_split
from codetr_cli.data.writers.voc import VocWriter
from codetr_cli.data.writers.yolo import YoloWriter
from codetr_cli.formats.found import FoundDataset

WRITERS: dict[str, Callable[..., LayoutWriter]] = {
    "yolo": YoloWriter,
    "voc": VocWriter,
    "labelme": LabelmeWriter,
    "cvat": CvatWriter,
    "label-studio": LabelStudioWriter,
    "csv": CsvWriter,
}
Advance = Callable[[int], None]


@dataclass
class Written:
    """What was written: images and objects of each split, the classes, the counts of `NOTES`, and other notes."""

    splits: dict[str, tuple[int, int]]
    classes: list[str]
    counts: Counter[str]
    notes: list[str] = field(default_factory=list)

    def sentences(self) -> list[str]:
        """What is not as in the source, with numbers."""
        return [counted(kind, self.counts[kind]) for kind in NOTES if self.counts[kind]]


@dataclass
class Content:
    """What is to be written."""

    splits: list[SourceSplit]
    classes: WrittenClasses
    written: Written

    @property
    def images(self) -> int:
        """Images of all splits."""
        return sum(len(split.rows) for split in self.splits)


def read_content(found: FoundDataset, splits: Sequence[str], names: NameRule, options: WriteOptions) -> Content:
    """Reads the splits of a data set and chooses images and classes.

    Raises:
        DatasetError: an annotation file cannot be used.
        ConfigError: there is no class of a name.
    """
    counts: Counter[str] = Counter()
    notes, sources = [], []
    for name in splits:
        source, note = read_split(found, name, names, counts, with_records=options.layout == "coco")
        sources.append(source)
        notes += [note] if note else []
    classes = choose_classes(
        sources, all_classes(sources), options.classes, counts, keep_empty=options.keep_empty is True
    )
    if options.sample is not None:
        choose_sample(sources, options.sample, counts)
    return Content(sources, classes, Written({}, classes.names, counts, notes))


def write_tables(
    content: Content, targets: Mapping[str, Path], options: WriteOptions, *, request: str, force: bool
) -> Written:
    """Writes COCO files without images: all of them or, where one cannot be written, none.

    Args:
        content: what is written.
        targets: the file of each split.
        options: how.
        request: the command; some of its files may be there, since it was interrupted, but not all of them.
        force: replace files that this function has written.

    Raises:
        ConfigError: there are files that may not be replaced.
        ResourceError: a file cannot be written.
    """
    if all(map(os.path.lexists, targets.values())):
        result_files.refuse_taken(targets.values(), force=force)
    result_files.refuse_taken(targets.values(), force=force, request=request)
    with _without_new_folders(targets.values()), ExitStack() as stack:
        how: dict[str, Any] = {"by": VERB, "force": force, "request": request, "parents": True}
        temporary = {
            split: stack.enter_context(result_files.write_result(path, **how)) for split, path in targets.items()
        }
        others = {split.name: split.tables.others for split in content.splits}
        writer = stack.enter_context(closing(CocoWriter(temporary, content.classes, others)))
        for split in content.splits:
            for row in split.rows.tolist():
                objects = list(split.objects(row, "text"))
                if objects or options.keep_empty is not False:
                    height, width = split.annotations.sizes[row].tolist()
                    record = split.record(row)
                    add(writer, WrittenImage(split.name, record["file_name"], width, height, objects, record), content)
                else:
                    content.written.counts["empty"] += 1
        writer.finish()
    return content.written


@contextmanager
def _without_new_folders(paths: Iterable[Path]) -> Iterator[None]:
    """Removes the folders of some files, and those above, that the block has made if it raises and they are empty."""
    folders = {folder for path in paths for folder in path.parents if not os.path.lexists(folder)}
    try:
        yield
    except BaseException:
        for folder in sorted(folders, reverse=True):  # those inside first
            with suppress(OSError):
                folder.rmdir()
        raise


def write_folder(
    content: Content, out: Path, options: WriteOptions, *, force: bool, made: Mapping[str, Any], advance: Advance
) -> Written:
    """Writes a folder with images.

    Args:
        content: what is written.
        out: the folder.
        options: how.
        force: replace a folder that this function has written.
        made: the command, for the receipt.
        advance: called with numbers of images that are done.

    Raises:
        ConfigError: the folder is there and may not be replaced.
        DatasetError: images cannot be read.
        ResourceError: the folder cannot be written.
    """
    check_replaceable(out, force=force)
    counts = content.written.counts
    with files.replace_folder(out) as folder:
        writer: LayoutWriter
        if options.layout == "coco":
            others = {split.name: split.tables.others for split in content.splits}
            writer = CocoWriter.of_folder(folder, content.classes, others, renumbered=options.slicing is not None)
        else:
            writer = WRITERS[options.layout](folder, content.classes, counts, outlines=options.outlines)
        with closing(writer):
            renamed = write_images(content.splits, folder, writer, options, counts, content.written.splits, advance)
            writer.finish()
        record_folder(folder, {**made, "renamed": renamed})
    return content.written


def add(writer: LayoutWriter, image: WrittenImage, content: Content) -> None:
    """Writes the objects of an image and counts them."""
    images, objects = content.written.splits.get(image.split, (0, 0))
    content.written.splits[image.split] = (images + 1, objects + writer.add(image))
