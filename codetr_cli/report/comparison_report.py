"""The page of a comparison: verdict, metrics, classes, types of errors, and the images that changed most."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup, escape

from codetr_cli.analysis.differences import Difference
from codetr_cli.analysis.run_comparison import METRICS, ChangedImage, Counts, RunComparison, class_caution
from codetr_cli.analysis.run_numbers import RunNumbers
from codetr_cli.report.charts import Axis, Interval, interval_chart
from codetr_cli.report.compared_runs import ComparedRuns
from codetr_cli.report.markup import element, joined
from codetr_cli.report.page import Cell, Column, Section, Table, render_page
from codetr_cli.report.pictures import DrawnBox, gallery, legend
from codetr_cli.report.sections.drawn import Boxes
from codetr_cli.report.thumbnails import Thumbnails

LONGEST_TITLE = 80
PICTURE_BYTES = 8_000_000
CHARTED_CLASSES = 20
SHOWN_CLASSES = 20
PICTURES_OF_MANY = 8
"""Changed images that are drawn of each pair, where there are several pairs."""

WORDS = {"better": "better", "worse": "worse", "equal": "equal", "unclear": "not clear", "unknown": ""}
METRICS_LEAD = (
    "AP in points from 0 to 100. An interval without zero is a difference that other images of the same kind would "
    "probably show as well; one with zero may be chance."
)
CLASSES_LEAD = (
    "AP of each class, those that differ most clearly first. Of many classes, some have an interval without zero by "
    'chance: those with "better?" or "worse?" may be among them, "better" and "worse" hold given their number.'
)
ERRORS_LEAD = (
    "Which errors became rarer. Each run is judged at its own best threshold of each class, as it would be used. The "
    "cost of a type of error is the AP50 that would be gained without it (TIDE)."
)
IMAGES_LEAD = (
    "Images with fewer errors in the second run, then those with more: misses and false alarms at IoU 0.50, each "
    "run at its own best threshold of each class. Objects that were missed are drawn where they are annotated."
)
NO_IMAGES = "The images that changed most are found from the detections, which are not there."
NO_PICTURES = "Images are not drawn: they need the detections of both runs, and those of a report are not there."
METHOD = (
    "The images are resampled with replacement, the same ones for all runs, and the difference is measured in each "
    "resample: the middle 95 %, shifted until the mean of all is the difference on all images, are the interval. What "
    "is hard in an image is hard for both runs, so the interval of "
    "the difference is narrower than those of the two APs suggest."
)


def comparison_page(compared: ComparedRuns, command: str) -> str:
    """The text of the page.

    Args:
        compared: the comparison.
        command: that makes the page again.
    """
    names = compared.names
    several = len(compared.pairs) > 1
    thumbnails = None if compared.inputs is None else Thumbnails(compared.inputs, PICTURE_BYTES)
    sections: list[Section] = [_overview(compared)] if several else []
    for pair, number in zip(compared.pairs, range(1, len(names)), strict=True):
        runs = (compared.numbers[0], compared.numbers[number])
        parts = _sections(pair, runs, (names[0], names[number]), thumbnails, several=several)
        sections += [_together(parts, (names[0], names[number]))] if several else parts
    sections.append(_method(compared))
    given = " and ".join(source.given for source in compared.sources)
    shown = given if len(names) == 2 and len(given) <= LONGEST_TITLE else f"{', '.join(names[:-1])} and {names[-1]}"
    return render_page(
        f"Comparison of {shown}",
        facts=_facts(compared, command),
        summary=joined(map(_verdict, compared.pairs, compared.protocol, compared.cautions)),
        sections=sections,
    )


def points(value: float, *, signed: bool = False) -> str:
    """AP in points: one digit, a minus sign only where it is not zero."""
    if math.isnan(value):
        return "-"
    rounded = round(100 * value, 1) + 0.0
    return f"{rounded:+.1f}" if signed and rounded else f"{rounded:.1f}"


def number(value: float, *, signed: bool = False) -> str:
    """A number of errors, with one digit."""
    return points(value / 100, signed=signed)


def between(difference: Difference, shown: Callable[[float], str] = points) -> str:
    """The interval of a difference as text; a dash without one."""
    return "-" if math.isnan(difference.low) else f"{shown(difference.low)} to {shown(difference.high)}"


def conclusion(difference: Difference, *, is_clear: bool = True) -> str:
    """What the interval of a difference shows, in a word; one that may be chance among many gets a question mark.

    Without an interval, the objects are in too few images, or one side has not been resampled.
    """
    if difference.conclusion == "unclear" and math.isnan(difference.low):
        return "too few" if difference.is_sampled else "no interval"
    word = WORDS[difference.conclusion]
    return word if is_clear or difference.conclusion not in ("better", "worse") else f"{word}?"


# ----------------------------------------------------------------------------------------------------- what is compared


def _facts(compared: ComparedRuns, command: str) -> dict[str, str]:
    facts = {}
    for name, source, numbers in zip(compared.names, compared.sources, compared.numbers, strict=True):
        ap = points(numbers.scores.metrics["AP"]) if numbers.scores.metrics["AP"] >= 0 else "-"
        file = source.detections or (source.report and source.report.path)
        detections = "" if str(file) == source.given else f"\n{file}"
        limit = "" if numbers.max_detections is None else f", up to {numbers.max_detections:,} detections per image"
        facts[name] = f"{source.given}{detections}\nAP {ap}{limit}"
    facts["Data"] = (
        f"{compared.annotations}\n{compared.images:,} images, {compared.numbers[0].scores.objects:,} objects"
    )
    if compared.fingerprint:
        facts["Fingerprint of the data"] = compared.fingerprint[:16]
    facts["Command"] = command
    return facts


def _verdict(pair: RunComparison, protocol: Sequence[str], cautions: Sequence[str]) -> Markup:
    kind = {"better": "verdict good", "worse": "verdict bad"}.get(pair.metrics["AP"].conclusion, "verdict")
    first, *others = pair.verdict
    paragraphs = [element("p", element("strong", first)), *(element("p", each) for each in others)]
    if protocol:
        differences = element("bdi", "; ".join(protocol))
        paragraphs.append(
            element("p", "The detections were made differently, which may be the reason: ", differences, ".")
        )
    paragraphs += [element("p", each, class_="hint") for each in cautions]
    return element("div", joined(paragraphs), class_=kind)


def _overview(compared: ComparedRuns) -> Section:
    columns = [Column("run"), Column("AP", "number"), Column("difference", "number"), Column("95 % interval", "number")]
    columns += [Column("verdict", "text word"), Column("AP50", "number"), Column("better images", "number")]
    columns.append(Column("worse images", "number"))
    first = compared.numbers[0].scores.metrics
    rows: list[list[object]] = [
        [compared.names[0], _points(first["AP"]), None, None, "first", _points(first["AP50"]), None, None]
    ]
    for name, pair in zip(compared.names[1:], compared.pairs, strict=True):
        ap, ap50 = pair.metrics["AP"], pair.metrics["AP50"]
        counts = [pair.better_images, pair.worse_images]
        rows.append([name, *_cells(ap)[1:], conclusion(ap), _points(ap50.second), *counts])
    lead = f"Every run beside {compared.names[0]}, in points of AP."
    return Section("overview", "Overview", lead, [Table("Runs", columns, rows)])


def _sections(
    pair: RunComparison,
    runs: tuple[RunNumbers, RunNumbers],
    names: tuple[str, str],
    thumbnails: Thumbnails | None,
    *,
    several: bool,
) -> list[Section]:
    limit = PICTURES_OF_MANY if several else len(pair.changed)
    return [
        Section("metrics", "Metrics", METRICS_LEAD, _metrics(pair, names)),
        Section("classes", "Classes", CLASSES_LEAD, _classes(pair, names)),
        Section("errors", "Types of errors", ERRORS_LEAD, _errors(pair, names)),
        Section("images", "Images that changed most", IMAGES_LEAD, _images(pair, runs, names, thumbnails, limit)),
    ]


def _together(sections: Sequence[Section], names: tuple[str, str]) -> Section:
    """The sections of a pair as one, where there are several pairs."""
    parts: list[Table | Markup] = []
    for section in sections:
        parts += [element("h3", section.title), element("p", section.lead, class_="lead"), *section.parts]
    return Section(f"pair-{names[1]}", f"{names[1]} beside {names[0]}", "", parts)


def _method(compared: ComparedRuns) -> Section:
    parts: list[Table | Markup] = []
    remarks = [*compared.notes, *compared.warnings]
    if remarks:
        parts.append(element("ul", joined(element("li", element("bdi", each)) for each in remarks)))
    count = min(len(each.samples.get("AP", ())) for each in compared.numbers)
    resamples = f"Resamples: {count:,}."
    return Section("method", "How this was measured", METHOD, [*parts, element("p", resamples, class_="hint")])


# -------------------------------------------------------------------------------------------------------------- tables


def _points(value: float) -> Cell | None:
    if math.isnan(value) or value < 0:
        return None
    return Cell(escape(points(value)), round(value, 6))


def _cells(difference: Difference, shown: Callable[..., str] = points) -> list[object]:
    """First and second value, the difference and its interval."""

    def cell(value: float, *, signed: bool = False) -> Cell | None:
        return None if math.isnan(value) else Cell(escape(shown(value, signed=signed)), round(value, 6))

    interval = None if math.isnan(difference.low) else Cell(escape(between(difference, shown)), difference.low)
    return [cell(difference.first), cell(difference.second), cell(difference.value, signed=True), interval]


def _columns(names: tuple[str, str], unit: str = "AP") -> list[Column]:
    return [
        Column(f"{unit} {names[0]}".strip(), "number"),
        Column(f"{unit} {names[1]}".strip(), "number"),
        Column("difference", "number", f"{names[1]} minus {names[0]}"),
        Column("95 % interval", "number", "of the difference"),
    ]


def _metrics(pair: RunComparison, names: tuple[str, str]) -> list[Table | Markup]:
    rows = [
        [METRICS[name], *_cells(difference), conclusion(difference)]
        for name, difference in pair.metrics.items()
        if difference.conclusion != "unknown"
    ]
    columns = [Column("metric"), *_columns(names, ""), Column(f"{names[1]} is", "text word")]
    chart = _chart(
        f"{names[1]} minus {names[0]}, with 95 % intervals",
        [(METRICS[name], difference) for name, difference in pair.metrics.items()],
    )
    return [Table("Metrics", columns, rows), *chart]


def _classes(pair: RunComparison, names: tuple[str, str]) -> list[Table | Markup]:
    caution = class_caution(pair.classes)
    parts: list[Table | Markup] = [element("p", caution)] if caution else []
    rows = [
        [each.name, each.objects, *_cells(each.ap), conclusion(each.ap, is_clear=each.is_clear)]
        for each in pair.classes
    ]
    columns = [Column("class", "text name"), Column("objects", "number"), *_columns(names)]
    columns.append(Column(f"{names[1]} is", "text word", '"better?" and "worse?" may be chance among so many classes'))
    parts.append(Table("Classes", columns, rows, shown=SHOWN_CLASSES))
    charted = [(each.name, each.ap) for each in pair.classes[:CHARTED_CLASSES]]
    title = "AP of the classes that differ most clearly" if len(pair.classes) > CHARTED_CLASSES else "AP of the classes"
    return [*parts, *_chart(f"{title}: {names[1]} minus {names[0]}, with 95 % intervals", charted)]


def _chart(title: str, rows: Sequence[tuple[str, Difference]]) -> list[Markup]:
    intervals = [
        Interval(name, 100 * each.value, 100 * each.low, 100 * each.high)
        for name, each in rows
        if not math.isnan(each.low)
    ]
    if not intervals:
        return []
    # Zero is always on the axis: it is what the intervals are compared with.
    low, high = min(0.0, *(each.low for each in intervals)), max(0.0, *(each.high for each in intervals))
    return [interval_chart(title, intervals, Axis("points of AP", low, high))]


def _errors(pair: RunComparison, names: tuple[str, str]) -> list[Table | Markup]:
    counts = [(each.name, each.per_100_images) for each in pair.errors]
    costs = [(each.name, each.ap) for each in pair.errors]
    columns = [Column("error"), *_columns(names, ""), Column(f"{names[1]} is", "text word")]
    parts: list[Table | Markup] = []
    for title, found, shown in (
        ("Errors per 100 images", counts, number),
        ("AP50 that errors cost, in points: less is better", costs, points),
    ):
        if any(each.conclusion != "unknown" for _, each in found):
            rows = [[name, *_cells(each, shown), conclusion(each)] for name, each in found]
            parts.append(Table(title, columns, rows))
    return parts


# -------------------------------------------------------------------------------------------------------------- images


def _images(
    pair: RunComparison,
    runs: tuple[RunNumbers, RunNumbers],
    names: tuple[str, str],
    thumbnails: Thumbnails | None,
    limit: int,
) -> list[Table | Markup]:
    total = pair.images
    if any(run.images is None for run in runs):
        return [element("p", NO_IMAGES)]
    counts = (
        f"{names[1]} has fewer errors in {pair.better_images:,} of {total:,} images, more in {pair.worse_images:,}, "
        f"and as many in {total - pair.better_images - pair.worse_images:,}."
    )
    parts: list[Table | Markup] = [element("p", counts)]
    rows: list[list[object]] = []
    drawn: dict[str, list[Markup]] = {"fewer": [], "more": []}
    of_each = {"fewer": 0, "more": 0}
    for each in pair.changed:
        kind = "fewer" if each.change < 0 else "more"
        of_each[kind] += 1
        key = f"image-{names[1]}-{each.image}"
        shown = _picture(each, runs, names, thumbnails, key) if of_each[kind] <= limit // 2 else None
        name: object = each.file_name
        if shown is not None:
            drawn[kind].append(shown)
            name = Cell(element("a", each.file_name, href=f"#{key}"), each.file_name)
        rows.append([name, *_counts(each.first), *_counts(each.second), each.change])
    if not rows:
        return parts
    columns = [Column("image", "text name")]
    columns += [Column(f"{name}: {what}", "number") for name in names for what in ("found", "missed", "false alarms")]
    columns.append(Column("more errors", "number", f"{names[1]} minus {names[0]}; below zero: fewer"))
    parts.append(Table("Images that changed most", columns, rows, shown=10))
    if any(drawn.values()):
        parts.append(legend(["hit", "miss", "alarm", "crowded"]))
    for kind, pictures in drawn.items():
        if pictures:
            parts += [element("h3", f"{names[1]} has {kind} errors"), gallery(pictures)]
    if any(run.inputs is None for run in runs):
        parts.append(element("p", NO_PICTURES, class_="hint"))
    elif thumbnails is not None and (remark := thumbnails.remark()):
        parts.append(element("p", remark, class_="hint"))
    return parts


def _counts(counts: Counts) -> list[int]:
    return [counts.hits, counts.misses, counts.alarms]


def _picture(
    changed: ChangedImage,
    runs: tuple[RunNumbers, RunNumbers],
    names: tuple[str, str],
    thumbnails: Thumbnails | None,
    key: str,
) -> Markup | None:
    if thumbnails is None or any(run.inputs is None for run in runs):
        return None
    sides = [
        (f"{name}: {counts.misses} missed, {counts.alarms} false alarms", _boxes(run, changed.image))
        for run, name, counts in zip(runs, names, (changed.first, changed.second), strict=True)
    ]
    return thumbnails.pair(changed.image, sides[0], sides[1], changed.file_name, key=key)


def _boxes(run: RunNumbers, image: int) -> list[DrawnBox]:
    """Truth and detections of a run in an image: errors are drawn over what is right."""
    assert run.inputs is not None
    assert run.outcomes is not None
    boxes, rows = Boxes(run.inputs), run.outcomes.rows_of(image)
    return [
        *boxes.objects(rows.crowds, "crowded"),
        *boxes.detections(rows.hits, "hit"),
        *boxes.detections(rows.alarms, "alarm"),
        *boxes.objects(rows.misses, "miss"),
    ]
