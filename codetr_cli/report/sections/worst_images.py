"""The images with most errors: what is annotated beside what is detected."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from codetr_cli.analysis.classes import known
from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.analysis.worst_images import HOW_RANKED, WorstImage
from codetr_cli.report.markup import element
from codetr_cli.report.page import Cell, Column, Section, Table
from codetr_cli.report.pictures import gallery, legend
from codetr_cli.report.sections.drawn import Boxes
from codetr_cli.report.thumbnails import Thumbnails

LEAD = (
    "Look for what these images have in common: a kind of object, light, size, or labels that are wrong. Left is what "
    "is annotated, right what is detected from the suggested threshold of each class on."
)


def worst_images_section(
    worst: Sequence[WorstImage], inputs: AnalysisInputs, thumbnails: Thumbnails, *, shown: int = 12
) -> Section:
    """The section of the images with most errors; the first ones are open, the others come with a click."""
    boxes = Boxes(inputs)
    pictures, rows = [], []
    for number, each in enumerate(worst):
        key = f"image-{number + 1}"
        name = each.file_name
        drawn = thumbnails.pair(
            each.image,
            (
                "annotated",
                [
                    *boxes.objects(each.crowd_rows, "crowded"),
                    *boxes.objects(each.found_rows, "hit"),
                    *boxes.objects(each.missed_rows, "miss"),
                ],
            ),
            ("detected", [*boxes.detections(each.alarm_rows, "alarm"), *boxes.detections(each.hit_rows, "hit")]),
            f"{number + 1}. {name}: {_counted(each)}",
            key=key,
        )
        rows.append(
            (
                name if drawn is None else Cell(element("a", name, href=f"#{key}"), name),
                known(each.f1),
                each.hits,
                each.misses,
                each.false_alarms,
            )
        )
        if drawn is not None:
            pictures.append(drawn)
    columns = [
        Column("image", "text name"),
        Column("F1", "score", "of this image, at the suggested thresholds and IoU 0.50"),
        Column("found", "number"),
        Column("missed", "number"),
        Column("false alarms", "number"),
    ]
    parts: list[Table | Markup] = [element("p", HOW_RANKED, class_="hint")]
    parts += [Table("Images with most errors", columns, rows, shown=10)]
    if pictures:
        parts += [legend(["hit", "miss", "alarm", "crowded"]), gallery(pictures[:shown])]
    if len(pictures) > shown:
        summary = element("summary", f"The next {len(pictures) - shown} images")
        parts.append(element("details", summary, gallery(pictures[shown:])))
    if not worst:
        parts = [element("p", "No image has an error at the suggested thresholds.")]
    return Section("worst", "Worst images", LEAD, parts)


def _counted(each: WorstImage) -> str:
    alarms = "1 false alarm" if each.false_alarms == 1 else f"{each.false_alarms} false alarms"
    return f"{each.hits} found, {each.misses} missed, {alarms}"
