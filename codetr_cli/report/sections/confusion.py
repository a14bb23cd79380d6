"""Which classes are taken for which, and for background; the cells lead to crops."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from codetr_cli.analysis.confusion import Confusion, Example
from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.errors import counted
from codetr_cli.report.charts import heat_map
from codetr_cli.report.markup import element, joined
from codetr_cli.report.page import Cell, Column, Section, Table
from codetr_cli.report.pictures import DrawnBox, gallery, legend
from codetr_cli.report.sections.drawn import Boxes
from codetr_cli.report.thumbnails import Thumbnails

LEAD = (
    "A row is an annotated class, a column what was detected there; a good detector has its weight on the diagonal. "
    "The last column is what was not found, the last row what was detected where nothing is annotated, or where "
    "another detection, with a higher score, has the object already."
)
BACKGROUND = "background"
MOST_CLASSES = 40
"""Classes of the map; of more, those with most errors are shown."""
LISTED_PAIRS = 200
"""Pairs in the table."""
CLASS_PAIRS, BACKGROUND_PAIRS = 14, 10
"""Pairs with crops: of two classes, and of a class and background, which would crowd out the others."""


def confusion_section(confusion: Confusion, inputs: AnalysisInputs, thumbnails: Thumbnails) -> Section:
    """The section of the confusion matrix, with the pairs that are confused most."""
    names = [*confusion.class_names, BACKGROUND]
    matrix = np.asarray(confusion.matrix)
    pairs = _pairs(matrix)
    chosen = _chosen(matrix)
    crops, links = _crops(confusion, _pairs_with_crops(pairs, len(names) - 1), names, inputs, thumbnails)
    place = {int(index): number for number, index in enumerate(chosen)}
    parts: list[Table | Markup] = [_threshold_text(confusion)]
    if len(chosen) < len(names):
        text = f"The map shows the {len(chosen) - 1} classes with most errors, of {len(names) - 1:,}."
        parts.append(element("p", text, class_="hint"))
    parts.append(
        heat_map(
            "Confusion, in percent: of the objects of each row; in the last row, of the detections of each column",
            [names[index] for index in chosen],
            [names[index] for index in chosen],
            _shares(matrix)[np.ix_(chosen, chosen)].tolist(),
            rows_are="annotated",
            columns_are="detected",
            links={(place[i], place[j]): f"#{key}" for (i, j), key in links.items() if i in place and j in place},
        )
    )
    if pairs:
        parts.append(_table(matrix, pairs[:LISTED_PAIRS], names, links))
    if crops:
        parts += [element("h3", "Examples"), legend(["annotated", "detected"])]
        parts.append(element("div", joined(crops), class_="groups"))
    return Section("confusion", "Confusion", LEAD, parts)


def _threshold_text(confusion: Confusion) -> Markup:
    text = f"Detections from score {confusion.threshold} on, matched at IoU {confusion.iou:.2f} regardless of class."
    alarms = int(confusion.matrix[-1].sum())
    if alarms:
        text += (
            f" Of {counted(alarms, 'detection')} in the last row, {confusion.repeated:,} are on an object that another "
            "detection has."
        )
    return element("p", text, class_="hint")


def _pairs(matrix: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Pairs (annotated, detected) that differ, those with most errors first."""
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    rows, columns = np.nonzero(wrong)
    order = np.argsort(-wrong[rows, columns], kind="stable")
    return list(zip(rows[order].tolist(), columns[order].tolist(), strict=True))


def _pairs_with_crops(pairs: Sequence[tuple[int, int]], background: int) -> list[tuple[int, int]]:
    of_classes = [pair for pair in pairs if background not in pair][:CLASS_PAIRS]
    return of_classes + [pair for pair in pairs if background in pair][:BACKGROUND_PAIRS]


def _chosen(matrix: NDArray[np.int64]) -> NDArray[np.int64]:
    """Ascending classes of the map, and background; of many, those that are confused most, then those missed most."""
    classes = len(matrix) - 1
    if classes <= MOST_CLASSES:
        return np.arange(classes + 1)
    wrong = matrix[:classes].copy()
    np.fill_diagonal(wrong, 0)
    confused = wrong[:, :classes].sum(axis=0) + wrong[:, :classes].sum(axis=1)
    most = np.lexsort((-wrong[:, classes], -confused))[:MOST_CLASSES]
    return np.append(np.sort(most), classes)


def _shares(matrix: NDArray[np.int64]) -> NDArray[np.float64]:
    """Part of the objects of each row; of the row of background, part of the detections of each column."""
    shares: NDArray[np.float64] = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    shares[-1] = matrix[-1] / np.maximum(matrix.sum(axis=0), 1)
    return shares


def _table(
    matrix: NDArray[np.int64],
    pairs: Sequence[tuple[int, int]],
    names: Sequence[str],
    links: dict[tuple[int, int], str],
) -> Table:
    shares, rows = _shares(matrix), []
    for true, found in pairs:
        name, key = names[found], links.get((true, found))
        shown = name if key is None else Cell(element("a", name, href=f"#{key}"), name)
        rows.append((names[true], shown, int(matrix[true, found]), float(shares[true, found])))
    columns = [
        Column("annotated", "text name"),
        Column("detected", "text name"),
        Column("number", "number"),
        Column("part", "share", "of the objects of the annotated class; of the detections, where nothing is annotated"),
    ]
    return Table("Pairs that are confused most", columns, rows, shown=12)


def _crops(
    confusion: Confusion,
    pairs: Sequence[tuple[int, int]],
    names: Sequence[str],
    inputs: AnalysisInputs,
    thumbnails: Thumbnails,
) -> tuple[list[Markup], dict[tuple[int, int], str]]:
    """Galleries of pairs, and the addresses of those that have one."""
    boxes = Boxes(inputs)
    galleries: list[Markup] = []
    links: dict[tuple[int, int], str] = {}
    for pair in pairs:
        pictures = []
        for example in confusion.examples.get(pair, ()):
            drawn = _drawn(example, boxes)
            around = drawn[-1].box
            picture = thumbnails.crop(example.image, around, drawn, inputs.file_name(example.image))
            if picture is not None:
                pictures.append(picture)
        if pictures:
            true, found = pair
            key = links[pair] = f"confusion-{true}-{found}"
            title = element("h4", element("bdi", names[true]), " → ", element("bdi", names[found]))
            galleries.append(element("div", title, gallery(pictures, small=True), id=key))
    return galleries, links


def _drawn(example: Example, boxes: Boxes) -> list[DrawnBox]:
    found = [] if example.detection_row is None else boxes.detections([example.detection_row], "detected")
    annotated = [] if example.object_row is None else boxes.objects([example.object_row], "annotated")
    return [*found, *annotated]
