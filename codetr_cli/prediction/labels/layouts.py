"""Labels of a prediction in the layouts of other tools, a folder each, as `codetr convert-data` writes them.

Boxes are clipped to their image, which those of detections may leave by a little. There are no images in the folder:
names of label files are those of the images, where the layout allows them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from codetr_cli.data.writers.content import (
    LayoutWriter,
    WrittenClasses,
    WrittenImage,
    WrittenObject,
    counted,
    xml_text,
)
from codetr_cli.data.writers.csv_table import COLUMNS, empty_row, row_writer, table_rows
from codetr_cli.data.writers.folder import RECEIPT, check_replaceable, receipt_of, record_folder
from codetr_cli.data.writers.image_files import BY_STEM
from codetr_cli.data.writers.label_studio import LabelStudioWriter
from codetr_cli.data.writers.names import NamePlan
from codetr_cli.data.writers.source import PRESENT
from codetr_cli.data.writers.write import WRITERS
from codetr_cli.errors import ConfigError, DatasetError, shown
from codetr_cli.files import replace_folder
from codetr_cli.prediction.labels.outlines import mask_polygons
from codetr_cli.prediction.labels.review import phrase, review_of
from codetr_cli.prediction.results import ImageResult
from codetr_cli.prediction.targets import OpenWriter, OutputTarget, OutputWriter
from codetr_cli.result_files import ResultRecord, write_result

BY = "label"
"""The verb in records of label files: they are data, which results of `predict` are not."""
FOLDERS = tuple(layout for layout in WRITERS if layout != "csv")
"""Layouts that are a folder in the output folder, of their name."""
IN_XML = {"voc", "cvat", "label-studio"}
CSV_NAME = "predictions.csv"
NOTED = ("renamed", "outlines", "complex_outlines", "outlines_outside", "under_one_pixel", "no_extent", "outside")
"""What is reported of what a layout cannot hold. That boxes are clipped is none: detections end a little outside."""
SCORE_DIGITS = 8


class LabelImages:
    """Makes what layouts are written from out of results.

    Where images to be reviewed are known, the labels of the others are no suggestions any more.

    Args:
        target: has the classes and options.
    """

    def __init__(self, target: OutputTarget) -> None:
        self._labels = {category_id: label for label, category_id in enumerate(target.category_ids)}
        self._options = target.labels

    def image(self, result: ImageResult, split: str, name: str, **more: Any) -> WrittenImage:
        """An image with its labels, under a name; the result is no error.

        Args:
            result: of the image.
            split: train, val or test.
            name: within the folder of the split.
            more: of `content.WrittenImage`.
        """
        facts = result.image or {}
        review = review_of(result)
        objects = [self._object(record) for record in result.records]
        more.setdefault("is_suggestion", self._options.review is None or review is not None)
        return WrittenImage(split, name, facts["width"], facts["height"], objects, review=phrase(review), **more)

    def _object(self, record: Mapping[str, Any]) -> WrittenObject:
        x, y, width, height = record["bbox"]
        mask = record.get("segmentation")
        outline: Any = None
        if mask is not None:
            outline = mask_polygons(mask) if self._options.outlines else PRESENT
        return WrittenObject(
            self._labels[record["category_id"]],
            (x, y, x + width, y + height),
            outline=outline,
            entry=record,
            score=record["score"],
        )


def written_classes(target: OutputTarget) -> WrittenClasses:
    """The classes of all labels."""
    names, ids = list(target.class_names), list(target.category_ids)
    records = [{"id": category_id, "name": name} for category_id, name in zip(ids, names, strict=True)]
    return WrittenClasses(names, ids, dict.fromkeys(("train", "val", "test"), records))


class _LayoutOutput:
    def __init__(self, layout: str, writer: LayoutWriter, target: OutputTarget) -> None:
        self._writer, self._images = writer, LabelImages(target)
        self._names = NamePlan(by_stem=layout in BY_STEM, for_lists=layout == "voc")
        self.renamed: dict[str, str] = {}

    def add(self, result: ImageResult) -> None:
        if result.image is None:
            return
        name = result.image["file_name"]
        given = self._names.assign("", name, "")
        if given != name:
            self.renamed[given] = name
        self._writer.add(self._images.image(result, "", given))


@contextmanager
def open_layout(layout: str, target: OutputTarget) -> Iterator[OutputWriter]:
    """Writes a folder with the labels of all images in a layout; it appears when it is whole.

    Raises:
        ConfigError: there is a folder that may not be replaced.
    """
    folder = target.folder / layout
    if problem := taken_folder(target.folder, (layout,), request=target.request, force=target.force):
        raise ConfigError(problem)
    counts: Counter[str] = Counter()
    with replace_folder(folder) as temporary:
        writer = WRITERS[layout](temporary, written_classes(target), counts, outlines=target.labels.outlines)
        if isinstance(writer, LabelStudioWriter):
            writer.model = target.model
        with closing(writer):
            output = _LayoutOutput(layout, writer, target)
            yield output
            writer.finish()
        counts["renamed"] = len(output.renamed)
        target.notes[layout] = [counted(kind, number) for kind, number in counts.items() if number and kind in NOTED]
        made = {"layout": layout, "request": target.request, "renamed": output.renamed}
        record_folder(temporary, made, by=BY, request=target.request, digests=False)
    ResultRecord(target.folder).add(folder / RECEIPT, folder / RECEIPT, by=BY, request=target.request)


def check_class_names(layouts: Collection[str], class_names: Collection[str]) -> None:
    """Ensures that some layouts can have the names of all classes.

    Raises:
        DatasetError: one has a character that XML cannot have, or is blank, which only COCO's records can be.
    """
    if IN_XML & set(layouts):
        for name in class_names:
            xml_text(name)
    by_name = sorted(LAYOUT_WRITERS.keys() & set(layouts))
    if by_name and (blank := [name for name in class_names if not name.strip()]):
        raise DatasetError(
            f"a class of the model has the blank name {shown(blank[0])}, with which {by_name[0]} cannot be read: give "
            "it another one with --class-map FILE.json, or write another layout, e.g. coco"
        )


def taken_folder(folder: Path, formats: Collection[str], *, request: str, force: bool) -> str | None:
    """Why layouts must not be written into an output folder, a sentence; None if they may.

    A folder of a layout is replaced by the same request, or with `force`, if it is as codetr has written it.
    """
    for layout in formats:
        if layout not in FOLDERS:
            continue
        path = folder / layout
        try:
            check_replaceable(path, force=force or receipt_of(path).get("request") == request)
        except ConfigError as error:
            return str(error)
    return None


class _CsvOutput:
    def __init__(self, rows: Any, target: OutputTarget) -> None:
        self._rows, self._images = rows, LabelImages(target)
        self._names, self._counts = list(target.class_names), Counter[str]()

    def add(self, result: ImageResult) -> None:
        if result.image is None:
            return
        name = result.image["file_name"]
        image = self._images.image(result, "", name)
        is_empty = True
        for item, cells in table_rows(image, name, self._names, self._counts):
            self._rows.writerow((*cells, f"{item.score:.{SCORE_DIGITS}g}"))
            is_empty = False
        if is_empty:
            self._rows.writerow((*empty_row(image, name), ""))


@contextmanager
def open_csv(target: OutputTarget) -> Iterator[OutputWriter]:
    """Writes a table with a detection a row and its score; an image without any is a row without class and corners."""
    how: dict[str, Any] = {"by": "predict", "force": target.force, "request": target.request}
    with (
        write_result(target.folder / CSV_NAME, scratch=target.scratch, **how) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        rows = row_writer(file)
        rows.writerow((*COLUMNS, "score"))
        yield _CsvOutput(rows, target)


LAYOUT_WRITERS: dict[str, OpenWriter] = {
    **{layout: partial(open_layout, layout) for layout in FOLDERS},
    "csv": open_csv,
}
"""The layouts of labels by name."""
