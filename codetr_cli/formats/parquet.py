"""Hugging Face's object detection data sets: parquet files, as a hub has them, or image folders with metadata.jsonl.

Parquet: files such as data/train-00000-of-00002.parquet, with columns `image` (bytes, or the name of a file in the
folder) and `objects` (`bbox`, and `category` or another usual name). Names of classes are those in the file's schema;
without them, numbers are names. Images inside the files are written to the cache once. Image folders:
metadata.jsonl with `file_name` and `objects` a line, beside the images. How boxes are read: see `hub_rows`. Classes are
in the order of their numbers, else in alphabetical order, with ids from 0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from codetr_cli.annotations.file_names import NameRule
from codetr_cli.annotations.image_names import ImageNames
from codetr_cli.annotations.survey import Survey, folder_of
from codetr_cli.errors import DatasetError, counted, listed, shown
from codetr_cli.formats import hub_images
from codetr_cli.formats.assembly import AnnotatedImage, Content, assemble, class_name, read_sizes
from codetr_cli.formats.found import ReadOptions
from codetr_cli.formats.hub_rows import BOXES, LABELS, OBJECTS, HubImage, add_objects, place_boxes
from codetr_cli.formats.intermediate import MAX_CLASSES, ParsedDataset
from codetr_cli.formats.linked_folders import files_and_images, with_links
from codetr_cli.formats.split_names import split_in, split_of_folder, splits_of_files
from codetr_cli.reading import open_file, parse_json

KEY = "parquet"
TITLE = "Hugging Face"
MAX_FILES = 10_000
FOOTER_BYTES = 4 << 20
MAX_LINE = 16 << 20
"""Bytes of a line of metadata.jsonl."""
MAX_VALUES = 300_000
"""Lists and tables in such a line."""
BATCH_ROWS = 256
_BOXES = re.compile(rf'\\?"({"|".join(BOXES)})\\?"')
_FILE_NAMES = ("file_name", "filename", "image", "image_path", "path")


def evidence(survey: Survey) -> str:
    """The file that shows the layout; empty if there is none."""
    survey = with_links(survey)
    return next(iter([*_parquet_files(survey)[:1], *_metadata_files(survey)[:1]]), "")


def _parquet_files(survey: Survey) -> list[str]:
    return [name for name in survey.with_suffix(".parquet")[:MAX_FILES] if _has_boxes(survey.folder / name)]


def _has_boxes(path: Path) -> bool:
    """Whether a parquet file has columns of images and boxes, by the names in its footer; pyarrow is not needed."""
    try:
        with open_file(path) as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - FOOTER_BYTES))
            footer = file.read(FOOTER_BYTES)
    except OSError:
        return False
    length = int.from_bytes(footer[-8:-4], "little")
    footer = footer[-8 - length : -8] if footer.endswith(b"PAR1") else b""
    boxes = any(re.search(rb"\W%s\W" % key.encode(), footer) for key in BOXES)
    return boxes and any(key in footer for key in (b"image", b"file_name", b"path"))


def _metadata_files(survey: Survey) -> list[str]:
    names = [name for name in survey.with_suffix(".jsonl")[:MAX_FILES] if name.rpartition("/")[2] == "metadata.jsonl"]
    return [name for name in names if _is_metadata(survey.head(name))]


def _is_metadata(head: str) -> bool:
    return head.lstrip().startswith("{") and '"file_name"' in head and _BOXES.search(head) is not None


def files_read(survey: Survey, names: NameRule) -> Iterable[Path]:
    """The files that decide the result of `read`, except the content of images."""
    return files_and_images(survey, ".parquet", ".jsonl")


def read(survey: Survey, names: NameRule, options: ReadOptions) -> ParsedDataset:
    """Reads all parquet files of the folder, or all metadata.jsonl if there are none.

    Args:
        survey: of the data set's folder.
        names: not needed: images are looked for in the folder only.
        options: how it is read.

    Raises:
        DatasetError: damaged files, rows that are not understood, boxes that contradict their format, or images that
            are not there.
        ResourceError: pyarrow is not installed, or the cache has no space for the images.
    """
    survey = with_links(survey)
    files = _parquet_files(survey)
    reader = _Reader(survey, files or _metadata_files(survey))
    if files:
        reader.read_parquet()
    else:
        reader.read_metadata()
    content = reader.content
    content.images = [AnnotatedImage(image.name, image.where, [], split=image.split) for image in reader.images]
    read_sizes(content.images, content.images_dir or survey.folder)
    note = place_boxes(reader.images, content.images, options.box_format, content.place)
    content.notes += [note] if note else []
    return assemble(content, options)


class _Reader:
    """Reads the rows of files.

    Attributes:
        content: of the data set, without images.
        images: of the rows.
    """

    def __init__(self, survey: Survey, files: list[str]) -> None:
        self.content = Content(TITLE, survey, [], files[0] if len(files) == 1 else _place(files), first_id=0)
        self.images: list[HubImage] = []
        self._survey, self._files = survey, files
        self._found: set[tuple[str, str]] = set()
        for name in survey.with_suffix(".parquet", ".jsonl"):
            if name not in files:
                self.content.findings.add("other_file", self.content.place, name)

    def read_parquet(self) -> None:
        """Reads the rows of all parquet files; images inside them are written to the cache."""
        splits = _splits(self._files, self._survey.folder)
        with hub_images.open_parquet(self._survey.folder / self._files[0]) as file:
            schema = file.schema_arrow
        image, columns = _columns(schema, self._files[0])
        inside = "binary" in f"{schema.field(image).type}"
        class_names = _class_names(schema, columns)
        self.content.class_names = class_names
        row_names: dict[str, list[str]] = {}
        images_dir = None
        if inside:
            images_dir, row_names, size = hub_images.extract(self._survey.folder, list(splits.items()), image)
            count = sum(map(len, row_names.values()))
            in_files = f"{counted(count, 'image')} in the files ({size / 1e6:,.1f} MB)"
            self.content.notes.append(f"the {in_files} {'is' if count == 1 else 'are'} in the cache, {images_dir}")
            self.content.images_dir, self.content.unused_images = images_dir, False
            columns = [*columns, f"{image}.path"] if "path" in f"{schema.field(image).type}" else columns
        else:
            columns = [*columns, image]
        names = ImageNames(self._survey.images, partial(self._stated_in_parquet, list(splits), image))
        for name, split in splits.items():
            rows = hub_images.rows(self._survey.folder / name, columns, BATCH_ROWS)
            for number, row in enumerate(rows):
                where = f"{name}: row {number + 1}"
                if inside:
                    self._add(row_names[name][number], shown(row.get(image)), where, split, row, class_names)
                else:
                    self._add_file(row[image], names, where, split, row, class_names)

    def read_metadata(self) -> None:
        """Reads the lines of all metadata.jsonl."""
        names = ImageNames(self._survey.images, self._stated_in_metadata)
        for name in self._files:
            for where, row in _lines(self._survey.folder / name, name):
                self._add_file(_file_of(row), names, where, split_of_folder(folder_of(name)) or "", row, None)

    def _stated_in_parquet(self, files: Sequence[str], image: str) -> Iterator[tuple[str, str]]:
        """The names of images in the rows, each with the folder of its file."""
        for name in files:
            for row in hub_images.rows(self._survey.folder / name, [image], BATCH_ROWS):
                file = row[image].get("path") if isinstance(row[image], dict) else row[image]
                if isinstance(file, str):
                    yield file, folder_of(name)

    def _stated_in_metadata(self) -> Iterator[tuple[str, str]]:
        for name in self._files:
            for _, row in _lines(self._survey.folder / name, name):
                if (file := _file_of(row)) is not None:
                    yield file, folder_of(name)

    def _add_file(
        self, file: Any, names: ImageNames, where: str, split: str, row: dict[str, Any], classes: list[str] | None
    ) -> None:
        if isinstance(file, dict):
            file = file.get("path")
        if not isinstance(file, str) or not file:
            raise DatasetError(f"{where} has no name of an image ({shown(file)}). Add it, or remove the row")
        found = names.find(file, folder_of(where.partition(": ")[0])) or ""
        self._add(found, file, where, split, row, classes)

    def _add(
        self, name: str, stated: str, where: str, split: str, row: dict[str, Any], classes: list[str] | None
    ) -> None:
        if not name:
            self.content.absent.append(f"{where} ({stated:.200})")
            return
        if (split, name) in self._found:
            self.content.findings.add("second_annotation", self.content.place, f"{where} ({name})")
            return
        self._found.add((split, name))
        image = HubImage(name, where, split)
        add_objects(image, row, classes, self.content)
        self.images.append(image)


# ------------------------------------------------------------------------------------------------------- parquet files


def _file_of(row: dict[str, Any]) -> str | None:
    return next((row[key] for key in _FILE_NAMES if isinstance(row.get(key), str)), None)


def _place(files: Sequence[str]) -> str:
    return "the parquet files" if files and files[0].endswith(".parquet") else "the metadata.jsonl files"


def _splits(files: Sequence[str], folder: Path) -> dict[str, str]:
    """The split of each file.

    Raises:
        DatasetError: the files are of several configurations of the data set.
    """
    configurations = sorted({"/".join(part for part in folder_of(n).split("/") if not split_in(part)) for n in files})
    if len(configurations) > 1:
        names = listed([f"{name or '.'}/" for name in configurations], 6)
        raise DatasetError(
            f"{folder} has several data sets of parquet files, in {names}. Give the folder of one of them"
        )
    return {name: split or "" for name, split in splits_of_files(files).items()}


def _columns(schema: Any, name: str) -> tuple[str, list[str]]:
    """The column of images, and those of objects.

    Raises:
        DatasetError: there are none.
    """
    columns = {field.name: f"{field.type}" for field in schema}
    images = [key for key in ("image", "img", *_FILE_NAMES, *columns) if "binary" in columns.get(key, "")]
    images += [key for key in _FILE_NAMES if "string" in columns.get(key, "")]
    objects = [key for key in OBJECTS if any(f"{box}: " in columns.get(key, "") for box in BOXES)][:1]
    objects = objects or [key for keys in (BOXES, LABELS) for key in keys if key in columns and "list" in columns[key]]
    if not images or not objects:
        raise DatasetError(
            f"{name} has the columns {listed(list(columns), 12)}: an image (image, file_name) and objects with bbox "
            "and category are needed"
        )
    return images[0], objects


def _class_names(schema: Any, columns: Sequence[str]) -> list[str] | None:
    """The names of classes in the description of the columns that the library writes; None if there are none."""
    try:
        described = parse_json((schema.metadata or {}).get(b"huggingface", b""))
        features = described["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return None
    if not isinstance(features, dict):
        return None
    for column in columns:
        feature = _inner(features.get(column))
        labels = [feature[key] for key in LABELS if key in feature] if "_type" not in feature else [feature]
        for label in map(_inner, labels):
            names = label.get("names")
            if label.get("_type") == "ClassLabel" and isinstance(names, list) and len(names) <= MAX_CLASSES:
                return [class_name(name, "the list of classes in the files") for name in names]
    return None


def _inner(feature: Any) -> dict[str, Any]:
    """The description of the elements of a list."""
    for _ in range(10):
        if isinstance(feature, list) and feature:
            feature = feature[0]
        elif isinstance(feature, dict) and isinstance(feature.get("feature"), dict | list):
            feature = feature["feature"]
        else:
            break
    return feature if isinstance(feature, dict) else {}


# ----------------------------------------------------------------------------------------------------------- json lines


def _lines(path: Path, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The tables in the lines of a file, each with words that name it.

    Raises:
        DatasetError: a line is none, or too long.
    """
    try:
        with open_file(path) as file:
            number = 0
            while line := file.readline(MAX_LINE + 1):
                number += 1
                where = f"{name}: line {number}"
                if len(line) > MAX_LINE or line.count(b"[") + line.count(b"{") > MAX_VALUES:
                    raise DatasetError(f"{path}, line {number} is too long for the objects of one image. Fix it")
                if number > hub_images.MAX_ROWS:
                    raise DatasetError(f"{path} has more than {hub_images.MAX_ROWS:,} lines, the limit")
                if not line.strip():
                    continue
                try:
                    row = parse_json(line.decode("utf-8-sig"))
                except ValueError as error:
                    raise DatasetError(f"{path}, line {number} is not JSON: {error}. Fix or remove it") from error
                if not isinstance(row, dict):
                    raise DatasetError(f"{path}, line {number} is {shown(row)} instead of a table. Fix or remove it")
                yield where, _with_parsed_objects(row)
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}. Replace or remove it") from error


def _with_parsed_objects(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose objects may be JSON in a text."""
    for key in OBJECTS:
        value = row.get(key)
        if isinstance(value, str) and len(value) < MAX_LINE:
            try:
                return {**row, key: json.loads(value)}
            except (ValueError, RecursionError):
                return row
    return row
