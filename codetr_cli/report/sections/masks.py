"""Masks beside their boxes: AP of both, and how well masks fit where the box was found."""

from __future__ import annotations

from markupsafe import Markup

from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.analysis.masks import Masks
from codetr_cli.report.charts import Axis, bar_chart
from codetr_cli.report.markup import element
from codetr_cli.report.page import Column, Section, Table
from codetr_cli.report.pictures import gallery, legend
from codetr_cli.report.sections.drawn import Boxes
from codetr_cli.report.thumbnails import Thumbnails

LEAD = (
    "Mask AP is usually a little below box AP. Where it is far below, outlines are too coarse: a higher resolution of "
    "the masks, or outlines that are drawn with more care, may help."
)


def masks_section(masks: Masks, inputs: AnalysisInputs, thumbnails: Thumbnails) -> Section:
    """The section of the masks."""
    parts: list[Table | Markup] = []
    metrics = [
        (name, masks.box_metrics.get(name), value) for name, value in masks.metrics.items() if name.startswith("A")
    ]
    parts.append(
        Table("Boxes and masks", [Column("metric"), Column("boxes", "score"), Column("masks", "score")], metrics)
    )
    if masks.hits:
        of = f" (a sample of {masks.of_hits:,})" if masks.hits < masks.of_hits else ""
        least = f"half of their masks have an IoU of {masks.median_iou:.2f} or more"
        text = f"{masks.hits:,} boxes that find an object{of}; {least}."
        parts.append(element("p", text))
        names = [f"{low:.2f}" for low in masks.iou_edges[:-1].tolist()]
        counts = [float(count) for count in masks.iou_counts.tolist()]
        parts.append(bar_chart("Masks of these boxes by IoU", names, counts, Axis("masks", 0.0)))
    columns = [
        Column("class", "text name"),
        Column("box AP", "score"),
        Column("mask AP", "score"),
        Column("difference", "score", "box AP minus mask AP"),
        Column("median IoU", "score", "of the masks of boxes that find an object"),
        Column("compared", "number", "masks"),
    ]
    rows = [
        (
            each.name,
            each.box_ap,
            each.mask_ap,
            None if each.box_ap is None or each.mask_ap is None else each.box_ap - each.mask_ap,
            each.median_iou,
            each.hits,
        )
        for each in masks.classes
    ]
    parts.append(Table("Boxes and masks of each class", columns, rows, shown=20))
    boxes = Boxes(inputs)
    pictures = []
    for hit in masks.worst:
        drawn = [*boxes.detections([hit.detection_row], "detected"), *boxes.objects([hit.object_row], "annotated")]
        caption = f"mask IoU {hit.mask_iou:.2f}, box IoU {hit.box_iou:.2f}: {inputs.file_name(hit.image)}"
        picture = thumbnails.crop(hit.image, drawn[-1].box, drawn, caption)
        if picture is not None:
            pictures.append(picture)
    if pictures:
        parts += [element("h3", "Boxes that are right with masks that are not"), legend(["annotated", "detected"])]
        parts.append(gallery(pictures, small=True))
    return Section("masks", "Masks", LEAD, parts)
