"""The report of one evaluation: its numbers as a page for people and as a file for programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from codetr_cli.analysis.analysis import Analysis
from codetr_cli.analysis.data.statistics import DataStatistics
from codetr_cli.report.data_section import data_sections
from codetr_cli.report.facts import ReportFacts
from codetr_cli.report.markup import element, joined
from codetr_cli.report.page import Section, Table, render_page
from codetr_cli.report.report_file import write_report_files
from codetr_cli.report.sections.calibration import calibration_section
from codetr_cli.report.sections.classes import classes_section
from codetr_cli.report.sections.confusion import confusion_section
from codetr_cli.report.sections.curves import curves_section
from codetr_cli.report.sections.errors import errors_section
from codetr_cli.report.sections.label_errors import label_errors_section
from codetr_cli.report.sections.lvis import lvis_section
from codetr_cli.report.sections.masks import masks_section
from codetr_cli.report.sections.overall import overall_section, summary_text
from codetr_cli.report.sections.protocol import protocol_section
from codetr_cli.report.sections.queries import queries_section
from codetr_cli.report.sections.slices import slices_section
from codetr_cli.report.sections.training import training_section
from codetr_cli.report.sections.worst_images import worst_images_section
from codetr_cli.report.stored_numbers import report_table
from codetr_cli.report.thumbnails import Thumbnails

PICTURE_BYTES = 9_000_000
"""Of all pictures of a page, which has at most 15 MB for COCO val."""


def write_report(analysis: Analysis, facts: ReportFacts, html: Path, *, by: str = "eval", force: bool = False) -> None:
    """Writes the page, and `report.json` beside it under the page's name.

    Args:
        analysis: all numbers.
        facts: what they are of.
        html: path of the page.
        by: the verb.
        force: replace own files.

    Raises:
        ConfigError: a file that may not be replaced is in the way.
        ResourceError: no space left, or the folder cannot be written.
    """
    write_report_files(html, report_page(analysis, facts), report_table(analysis, facts), by=by, force=force)


def report_page(analysis: Analysis, facts: ReportFacts) -> str:
    """The page as text of at most 15 MB for 5,000 images."""
    thumbnails = Thumbnails(analysis.inputs, PICTURE_BYTES)
    sections = report_sections(analysis, facts, thumbnails)
    sections.append(_last_section(analysis, facts, thumbnails))
    summary = summary_text(facts, analysis.ap_interval, analysis.counts.objects)
    return render_page(facts.title, facts=_head(analysis, facts), summary=summary, sections=sections)


def report_sections(analysis: Analysis, facts: ReportFacts, thumbnails: Thumbnails) -> list[Section]:
    """The sections that apply, in order; without the last one, on protocol and command."""
    inputs = analysis.inputs
    sections = [overall_section(facts, analysis.ap_interval, analysis.ap50_interval)]
    sections.append(classes_section(analysis.classes, analysis.curves))
    if analysis.overall_curve is not None and analysis.curves is not None:
        sections.append(curves_section(analysis.overall_curve, analysis.curves))
    if analysis.errors is not None:
        sections.append(errors_section(analysis.errors))
    if analysis.confusion is not None:
        sections.append(confusion_section(analysis.confusion, inputs, thumbnails))
    if analysis.calibration is not None:
        sections.append(calibration_section(analysis.calibration))
    if analysis.slices:
        sections.append(slices_section(analysis.slices))
    if analysis.worst_images is not None:
        sections.append(worst_images_section(analysis.worst_images, inputs, thumbnails))
    if analysis.label_errors is not None:
        sections.append(label_errors_section(analysis.label_errors, inputs, thumbnails))
    if analysis.queries is not None:
        sections.append(queries_section(analysis.queries))
    if analysis.groups is not None:
        sections.append(lvis_section(analysis.groups))
    if analysis.masks is not None:
        sections.append(masks_section(analysis.masks, inputs, thumbnails))
    if analysis.data is not None:
        sections.append(_data_section(analysis.data))
    if (training := training_section(facts.checkpoint)) is not None:
        sections.append(training)
    return sections


def _data_section(statistics: DataStatistics) -> Section:
    """What the evaluated data are, in one section."""
    lead = (
        "What the detector was asked to find: few objects of a class, or sizes that are rare, explain wide intervals "
        "and low APs. codetr stats compares the splits of a data set, and says what follows for a training."
    )
    parts: list[Table | Markup] = []
    for each in data_sections([statistics]):
        if each.key == "data-advice":  # it is about a training, and needs the split that is trained on
            continue
        parts += [element("h3", each.title), element("p", each.lead, class_="hint"), *each.parts]
    return Section("data", "Data", lead, parts)


def _last_section(analysis: Analysis, facts: ReportFacts, thumbnails: Thumbnails) -> Section:
    """Protocol and command, and what does not apply."""
    section = protocol_section(facts)
    reasons = [f"{name}: {reason}" for name, reason in analysis.reasons.items()]
    remark = thumbnails.remark()
    absent = [*reasons, *([remark] if remark else [])]
    if not absent:
        return section
    notes: list[Any] = [
        element("h3", "What is not shown"),
        element("ul", joined(element("li", each) for each in absent)),
    ]
    return Section(section.key, section.title, section.lead, [*section.parts, *notes])


def _head(analysis: Analysis, facts: ReportFacts) -> dict[str, str | Markup]:
    """What the page is about, at its head."""
    counts = analysis.counts
    head = {
        "Checkpoint": facts.checkpoint,
        "sha256 of its content": facts.weights,
        "Annotations": facts.annotations,
        "Images": facts.images_dir,
        "sha256 of the annotations, first 16 digits": facts.data,
        "Evaluated": f"{counts.images:,} images, {counts.objects:,} objects, {counts.detections:,} detections",
        "Machine": ", ".join(value for name, value in facts.machine.items() if value != "none"),
        "Versions": ", ".join(f"{name} {version}" for name, version in facts.versions.items()),
        "Written": facts.written,
        "Command": facts.command,
    }
    return {name: value for name, value in head.items() if value}
