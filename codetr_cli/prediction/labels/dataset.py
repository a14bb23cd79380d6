"""A data set of images and their labels: splits, images, labels in a layout, and a card; for `codetr label`.

Labels are written to a file while the results pass by, since the splits depend on all of them. The data set is then
written beside the part files and moved into its folder at the end, README.md last: a command that was killed writes it
again from the parts.

Splits: folders of the images that mean parts decide, by the rule of `formats.split_names`; else a share is reserved for
validation by the rule of `formats.reserved`. Boxes are clipped to their image; those under a pixel are no labels.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from codetr_cli.annotations.survey import folder_of
from codetr_cli.data.writers.coco import CocoWriter
from codetr_cli.data.writers.content import LayoutWriter, WrittenImage, WrittenObject, clipped_objects, counted
from codetr_cli.data.writers.folder import RECEIPT, check_replaceable, record_folder
from codetr_cli.data.writers.image_files import BY_STEM, CHUNK, header_of, place_file
from codetr_cli.data.writers.names import NamePlan, is_rare
from codetr_cli.data.writers.write import WRITERS
from codetr_cli.distributed import part_files, slurm
from codetr_cli.errors import ConfigError, DatasetError, ResourceError
from codetr_cli.files import make_way, replace_folder, sync_folder
from codetr_cli.formats.intermediate import THREADS
from codetr_cli.formats.layout_names import TITLES
from codetr_cli.formats.reserved import Candidate, choose_validation
from codetr_cli.formats.split_names import split_in, splits_of_folders
from codetr_cli.images.headers import ImageHeader
from codetr_cli.prediction.labels.card import NAME as CARD_NAME
from codetr_cli.prediction.labels.card import Contents, card
from codetr_cli.prediction.labels.layouts import BY, LabelImages, written_classes
from codetr_cli.prediction.labels.options import DatasetOptions
from codetr_cli.prediction.labels.review import LIST_NAME
from codetr_cli.prediction.results import ImageResult
from codetr_cli.prediction.targets import OutputTarget, OutputWriter
from codetr_cli.result_files import RECORD_NAME, ResultRecord

BESIDES = (part_files.FOLDER, slurm.FOLDER, RECORD_NAME, RECEIPT)
"""What may be in the folder before the data set is there."""
MIN_SIDE_PX = 1.0
DIGITS = 4
NOTED = (
    "thin",
    "renamed",
    "rotated",
    "rare_format",
    "outlines",
    "complex_outlines",
    "outlines_outside",
    "unused_classes",
)


def dataset_folder(out: Path, request: str, *, force: bool) -> Path:
    """The folder of a data set, which is made if it is not there.

    Raises:
        ConfigError: there are other files in it, another data set, or the results so far of another command.
    """
    if part_files.has_other_parts(out, request) and not force:
        raise ConfigError(
            f"{out} has the results so far of a stopped command with other options or weights: give the same options "
            "to continue it, another --out, or --force to start again"
        )
    check_replaceable(out, force=force or part_files.has_parts(out, request), besides=BESIDES)
    out.mkdir(parents=True, exist_ok=True)
    return out


def choose_splits(images: Sequence[Candidate], fraction: float) -> tuple[list[str], str]:
    """The split of each image, and a note on how they were chosen; empty where folders decide."""
    folders = splits_of_folders(folder_of(image.name) for image in images)
    meant = [folders[folder_of(image.name)] for image in images]
    if {"val", "test"} & set(meant):
        return [split if split in ("val", "test") else "train" for split in meant], ""
    reserved, note = choose_validation(images, fraction)
    return ["val" if index in reserved else "train" for index in range(len(images))], note


@contextmanager
def open_dataset(target: OutputTarget) -> Iterator[OutputWriter]:
    """Writes the data set of all results.

    Raises:
        DatasetError: an image has gone meanwhile.
        ConfigError: there is no label, or images cannot be linked.
        ResourceError: no space left, or the folder cannot be written.
    """
    folder, spool = target.scratch / "dataset.tmp", target.scratch / "labels.tmp"
    try:
        _clear(target.folder)
        for path in (folder, spool):
            make_way(path)
        with spool.open("w", encoding="utf-8") as file:
            results = _Spool(file, target)
            yield results
        with replace_folder(folder) as temporary:
            _Dataset(target, temporary, results).write(spool)
        _move(folder, target.folder)
    except OSError as error:
        raise ResourceError(
            f"cannot write {error.filename or target.folder}: {error.strerror or error}. Choose another folder with "
            "--out, or fix the cause and run the command again"
        ) from error
    finally:
        for path in (folder, spool):
            make_way(path, ignore_errors=True)


class _Spool:
    """Keeps the labels in a file, and of each image what the splits depend on."""

    def __init__(self, file: IO[str], target: OutputTarget) -> None:
        self._file, self._images, self._names = file, LabelImages(target), list(target.class_names)
        self._keep_empty = target.dataset is None or target.dataset.keep_empty
        self._class_sets: dict[frozenset[str], frozenset[str]] = {}
        self.candidates: list[Candidate] = []
        self.failed = self.empty = 0
        self.thin = 0

    def add(self, result: ImageResult) -> None:
        if result.image is None:
            self.failed += 1
            return
        kept = [record for record in result.records if self._is_wide(record, result.image)]
        self.thin += len(result.records) - len(kept)
        if not kept and not self._keep_empty:
            self.empty += 1
            return
        classes = frozenset(record["category_name"] for record in kept)
        name = result.image["file_name"]
        self.candidates.append(Candidate(name, Path(result.file), self._class_sets.setdefault(classes, classes)))
        line = {"number": result.number, "file": result.file, "image": result.image, "records": kept}
        self._file.write(json.dumps(line) + "\n")

    def _is_wide(self, record: Mapping[str, Any], image: Mapping[str, Any]) -> bool:
        """Whether a box has a pixel or more in its image."""
        x, y, width, height = record["bbox"]
        across = min(x + width, image["width"]) - max(x, 0)
        return across >= MIN_SIDE_PX and min(y + height, image["height"]) - max(y, 0) >= MIN_SIDE_PX


class _Dataset:
    """Writes a data set into a folder."""

    def __init__(self, target: OutputTarget, folder: Path, results: _Spool) -> None:
        assert target.dataset is not None
        self._target, self._folder, self._results = target, folder, results
        self._options: DatasetOptions = target.dataset
        self._images = LabelImages(target)
        self._counts: Counter[str] = Counter(thin=results.thin)
        self._contents = Contents(failed=results.failed, classes=dict.fromkeys(target.class_names, 0))
        layout = self._options.layout
        self._names = NamePlan(by_stem=layout in BY_STEM, for_lists=layout == "voc")
        self._renamed: dict[str, str] = {}

    def write(self, spool: Path) -> None:
        """Writes everything; `spool` has the labels."""
        if not self._results.candidates:
            raise ConfigError(
                "there is no image to label: all are unreadable, or have no object and --drop-empty is given"
            )
        splits, note = choose_splits(self._results.candidates, self._options.val_fraction)
        if note:
            self._contents.notes.append(note[:1].upper() + note[1:])
        present = [split for split in ("train", "val", "test") if split in splits]
        self._contents.images.update(dict.fromkeys(present, 0))
        writer = self._writer(present)
        reviews = (self._folder / LIST_NAME).open("w", encoding="utf-8") if self._target.labels.review else None
        with closing(writer), ThreadPoolExecutor(THREADS) as pool, spool.open(encoding="utf-8") as file:
            chunk: list[tuple[str, ImageResult]] = []
            for split, line in zip(splits, file, strict=True):
                chunk.append((split, ImageResult(**json.loads(line))))
                if len(chunk) == CHUNK:
                    self._add(chunk, writer, pool, reviews)
                    chunk = []
            self._add(chunk, writer, pool, reviews)
            writer.finish()
        if reviews is not None:
            reviews.close()
        self._finish()

    def _writer(self, splits: Sequence[str]) -> LayoutWriter:
        classes = written_classes(self._target)
        if self._options.layout == "coco":
            info = {"description": f"labelled by {self._target.model}", "date_created": self._target.facts.get("date")}
            others = {split: {"info": info} for split in splits}
            return CocoWriter.of_folder(self._folder, classes, others, renumbered=True)
        outlines = self._target.labels.outlines
        return WRITERS[self._options.layout](self._folder, classes, self._counts, outlines=outlines)

    def _add(
        self,
        chunk: Sequence[tuple[str, ImageResult]],
        writer: LayoutWriter,
        pool: ThreadPoolExecutor,
        reviews: IO[str] | None,
    ) -> None:
        headers = pool.map(header_of, [Path(result.file) for _, result in chunk])
        jobs: list[tuple[Path, Path]] = []
        for (split, result), header in zip(chunk, headers, strict=True):
            if problem := _change(result, header):
                raise DatasetError(
                    f"{result.file} has changed since it was labelled ({problem}): run the command again"
                )
            assert isinstance(header, ImageHeader)
            image = self._written(split, result, header)
            place = writer.image_path(split, image.name)
            if image.name != _without_split(result, split):
                self._renamed[place] = str((result.image or {})["file_name"])
            self._counts["rotated"] += header.orientation != 1
            self._counts["rare_format"] += is_rare(image.name)
            writer.add(image)
            names = self._target.class_names
            self._contents.count(split, [(names[item.label], item.score or 0.0) for item in image.objects])
            if reviews is not None and image.review:
                reviews.write(f"{place}\n")
                self._contents.add_review(place, image.review)
            (self._folder / place).parent.mkdir(parents=True, exist_ok=True)
            jobs.append((Path(result.file), self._folder / place))
        list(pool.map(self._place, jobs))

    def _place(self, job: tuple[Path, Path]) -> None:
        place_file(*job, self._options.images)

    def _written(self, split: str, result: ImageResult, header: ImageHeader) -> WrittenImage:
        """An image as the layout is written from it, boxes clipped."""
        scope = "" if self._options.layout == "voc" else split
        name = self._names.assign(scope, _without_split(result, split), header.format)
        image = self._images.image(result, split, name, is_suggestion=False)
        sizes = {"width": image.width, "height": image.height}
        objects = [replace(item, box=box, **self._coco(item, box)) for item, box in clipped_objects(image, Counter())]
        return replace(image, objects=objects, record=sizes)

    def _coco(self, item: WrittenObject, box: Sequence[float]) -> dict[str, Any]:
        """What COCO's record of an object has besides, where this is the layout."""
        if self._options.layout != "coco":
            return {}
        x1, y1, x2, y2 = box
        entry = {
            "category_id": item.entry["category_id"],
            "area": round((x2 - x1) * (y2 - y1), DIGITS),
            "iscrowd": 0,
            "score": item.score,
        }
        return {"entry": entry, "outline": item.entry.get("segmentation")}

    def _finish(self) -> None:
        """Writes the card and the receipt."""
        self._counts["renamed"] = len(self._renamed)
        notes = [counted(kind, self._counts[kind]) for kind in NOTED if self._counts[kind]]
        if self._results.empty:
            notes.append(f"{self._results.empty:,} images without objects are skipped (--drop-empty)")
        self._contents.notes += notes
        self._target.notes[self._options.layout] = list(self._contents.notes)
        options, facts = self._options, self._target.facts
        text = card(self._target.folder.absolute().name, TITLES[options.layout], facts, options, self._contents)
        (self._folder / CARD_NAME).write_text(text, encoding="utf-8")
        made = {
            "layout": options.layout,
            "source": options.source,
            "request": self._target.request,
            "model": dict(facts),
            "contents": self._contents.as_dict(),
            "renamed": self._renamed,
        }
        record_folder(self._folder, made, by=BY, request=self._target.request, digests=False)
        if (self._folder / LIST_NAME).exists():  # no reader takes it for a list of images
            ResultRecord(self._folder).add(self._folder / LIST_NAME, self._folder / LIST_NAME, by="predict")


def _change(result: ImageResult, header: ImageHeader | str) -> str:
    """How an image differs from the one that was labelled; empty if it does not."""
    if isinstance(header, str):
        return header
    image = result.image or {}
    before, (height, width) = (image["height"], image["width"]), header.size
    return "" if (height, width) == before else f"{width} x {height} pixels now, {before[1]} x {before[0]} then"


def _without_split(result: ImageResult, split: str) -> str:
    """The name of an image without a first folder that means its split, which the layout has itself."""
    name: str = (result.image or {})["file_name"]
    first, slash, rest = name.partition("/")
    return rest if slash and split_in(first) == split else name


def _clear(out: Path) -> None:
    """Removes the data set that is replaced, or the part of this one that was moved before a kill."""
    check_replaceable(out, force=True, besides=BESIDES)
    for path in out.iterdir():
        if path.name not in (part_files.FOLDER, slurm.FOLDER):
            make_way(path)


def _move(folder: Path, out: Path) -> None:
    """Moves a data set to its place: first the record, which makes the files our own, and the card last."""
    names = sorted((path.name for path in folder.iterdir() if path.name != RECORD_NAME), key=_order)
    if taken := [name for name in names if os.path.lexists(out / name)]:
        raise ConfigError(f"{out / taken[0]} has come into the place of the data set: move it away")
    with (out / RECORD_NAME).open("ab") as record:  # it may have lines of other files of this command
        record.write((folder / RECORD_NAME).read_bytes())
    for name in names:
        (folder / name).rename(out / name)
    sync_folder(out)


def _order(name: str) -> tuple[int, str]:
    return ({RECEIPT: 0, CARD_NAME: 2}.get(name, 1), name)
