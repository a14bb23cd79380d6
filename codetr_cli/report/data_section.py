"""A data set in a report: advice, classes, sizes, crowding, what is together, splits compared, copies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup

from codetr_cli.analysis.data.advice import Advice
from codetr_cli.analysis.data.image_copies import CopiedImages
from codetr_cli.analysis.data.split_differences import SplitDifference
from codetr_cli.analysis.data.statistics import DataStatistics, Histogram, Spread, aspect_text, number_text, sizes_text
from codetr_cli.errors import counted
from codetr_cli.report.charts import Axis, grouped_bar_chart, heat_map
from codetr_cli.report.markup import element, joined
from codetr_cli.report.page import Column, Section, Table, render_page

SHARE = Axis("share", low=0.0, is_share=True)


def data_sections(
    statistics: Sequence[DataStatistics],
    *,
    advice: Sequence[Advice] = (),
    differences: Sequence[SplitDifference] = (),
    copies: CopiedImages | None = None,
) -> list[Section]:
    """The sections about a data set.

    Args:
        statistics: of its splits, or of the evaluated one alone.
        advice: that follows from them.
        differences: of other splits from the first.
        copies: of images; None: not looked for, and there is no section about them.
    """
    sections = [
        _advice(advice, statistics),
        _overview(statistics),
        _classes(statistics),
        _sizes(statistics),
        _crowding(statistics),
        _together(statistics),
    ]
    if differences:
        sections.append(_compared(differences))
    if copies is not None:
        sections.append(_copies(copies))
    return sections


def data_page(
    title: str, facts: Mapping[str, str], sections: Sequence[Section], statistics: Sequence[DataStatistics]
) -> str:
    """A page about a data set alone.

    Args:
        title: of the page.
        facts: where the data are, and which network the advice is about.
        sections: of `data_sections`.
        statistics: of the splits, for the summary.
    """
    numbers = [
        (f"images of {each.split}", f"{each.images:,}") for each in statistics
    ] + [
        ("objects", f"{sum(each.objects for each in statistics):,}"),
        ("classes", f"{max((len(each.classes) for each in statistics), default=0):,}"),
    ]  # fmt: skip
    tiles = [element("li", element("b", value), name) for name, value in numbers]
    return render_page(title, facts=facts, summary=element("ul", joined(tiles), class_="tiles"), sections=sections)


def _advice(advice: Sequence[Advice], statistics: Sequence[DataStatistics]) -> Section:
    seen = statistics[0].at_input if statistics else None
    network = "" if seen is None else f" for the input size {seen.input_size} and {seen.num_queries:,} queries"
    table = Table(
        "What the numbers suggest",
        [Column("advice"), Column("because"), Column("rule", hint="where the threshold comes from")],
        [[each.text, each.because, each.source] for each in advice],
    )
    nothing = element("p", "No advice: none of the rules applies.")
    return Section(
        "data-advice",
        "Advice",
        f"Computed from the counts below{network}; each line states the numbers that it comes from.",
        [table] if advice else [nothing],
    )


def _overview(statistics: Sequence[DataStatistics]) -> Section:
    columns = [
        Column("split"),
        Column("images", "number"),
        Column("without objects", "number"),
        Column("objects", "number", "trained on and evaluated"),
        Column("crowds", "number", "regions of several objects"),
        Column("excluded", "number", "marked ignore, without area, thinner than a pixel, or outside the image"),
        Column("classes", "number", "with objects"),
        Column("most in an image", "number"),
        Column("sizes of images", hint="the most frequent ones"),
    ]
    rows = [[*each.counts, len(each.used_classes), each.most_in_image, sizes_text(each)] for each in statistics]
    return Section("data-splits", "Splits", "What is in each part of the data set.", [Table("Splits", columns, rows)])


def _classes(statistics: Sequence[DataStatistics]) -> Section:
    counts = [{each.name: each for each in split.classes} for split in statistics]
    names = dict.fromkeys(name for split in counts for name in split)
    first = counts[0] if counts else {}
    order = sorted(names, key=lambda name: -(first[name].objects if name in first else 0))
    has_frequency = any(each.frequency for split in statistics for each in split.classes)
    columns = [Column("class", "text name"), *([Column("frequency", hint="of LVIS")] if has_frequency else [])]
    for split in statistics:
        columns += [Column(f"{what}, {split.split}", "number") for what in ("objects", "images")]
    columns.append(Column(f"share, {statistics[0].split}", "share", "of the objects"))
    columns.append(Column("median side", "number", "square root of the area in pixels of the image"))
    rows = []
    for name in order:
        row: list[object] = [name]
        found = [split.get(name) for split in counts]
        if has_frequency:
            row.append(next((each.frequency for each in found if each), None))
        for each in found:
            row += [None, None] if each is None else [each.objects, each.images]
        of_first = found[0].objects if found[0] else 0
        row.append(of_first / max(statistics[0].objects, 1))
        median = next((each.median_side for each in found if each and each.median_side is not None), None)
        rows.append([*row, None if median is None else round(median, 1)])
    return Section(
        "data-classes",
        "Classes",
        "Objects of each class, and images with at least one. A class in few images is learned from few.",
        [Table("Classes", columns, rows, shown=40)],
    )


def _sizes(statistics: Sequence[DataStatistics]) -> Section:
    seen = statistics[0].at_input
    charts = [
        _chart(f"Sides of objects at the input size {seen.input_size}, pixels", statistics, lambda s: s.at_input.sides),
        _chart("Sides of objects in the images, pixels", statistics, lambda s: s.object_sides),
        _chart("Width over height of objects", statistics, lambda s: s.object_aspects),
        _chart("Longer sides of images, pixels", statistics, lambda s: s.image_sides),
        _chart("Width over height of images", statistics, lambda s: s.image_aspects),
    ]
    rows = []
    for each in statistics:
        below = f"{each.at_input.tiny_below:g} pixels"
        rows += [
            [f"side of an object, {each.split}", *_spread(each.object_sides.spread)],
            [f"side at the input, {each.split}", *_spread(each.at_input.sides.spread)],
            [
                f"share of the image, {each.split}",
                *_spread(
                    each.object_shares,
                    lambda value: f"{100 * value:.3f} %" if value < 0.001 else f"{100 * value:.1f} %",
                ),
            ],
            [f"aspect of an object, {each.split}", *_spread(each.object_aspects.spread, aspect_text)],
            [f"resize factor, {each.split}", *_spread(each.at_input.scales)],
        ]
    tiny = sum(each.at_input.tiny for each in statistics)
    objects = sum(each.objects for each in statistics)
    return Section(
        "data-sizes",
        "Sizes and shapes",
        f"The side of an object is the square root of its box's area. At the input {tiny:,} of {objects:,} objects are "
        f"under {below}, two cells of the finest map of the network: hard to find.",
        [
            element("div", joined(charts), class_="charts"),
            Table("Spread", [Column("what"), *SPREAD_COLUMNS], rows),
            element("div", joined(map(_centres, statistics)), class_="charts"),
        ],
    )


SPREAD_COLUMNS = [
    Column("least"),
    Column("5 %", hint="5 % of the values are below"),
    Column("median"),
    Column("95 %", hint="5 % of the values are above"),
    Column("most"),
]


def _crowding(statistics: Sequence[DataStatistics]) -> Section:
    charts = [
        _chart("Objects per image", statistics, lambda each: each.per_image),
        _chart("Largest IoU of an object with another one of its image", statistics, lambda each: each.overlaps),
    ]
    columns = [
        Column("split"),
        Column("most objects", "number"),
        Column("in image", "text name"),
        Column("over queries", "number", "images with more objects than queries: the others cannot be found"),
        Column("over detections", "number", "images with more objects than detections are kept"),
        Column("over AP's limit", "number", "images with more than 100 objects of a class"),
        Column(
            "over NMS", "number", "objects that overlap another one of their class by more than the threshold of NMS"
        ),
    ]
    rows = [
        [
            each.split,
            each.most_in_image,
            each.most_objects[0] if each.most_objects else None,
            each.at_input.over_queries,
            each.at_input.over_detections,
            each.at_input.over_counted,
            each.at_input.over_nms,
        ]
        for each in statistics
    ]
    return Section(
        "data-crowding",
        "Crowding",
        "Objects that share an image, and space: many need queries and tiles, close ones are lost to NMS.",
        [element("div", joined(charts), class_="charts"), Table("Limits", columns, rows)],
    )


def _together(statistics: Sequence[DataStatistics]) -> Section:
    first = statistics[0]
    found = first.together
    chart = heat_map(
        f"Images of the row's class that have the column's, {first.split}",
        found.class_names,
        found.class_names,
        found.shares,
        rows_are="class",
        columns_are="also in its images",
    )
    columns = [
        Column("class", "text name"),
        Column("with", "text name"),
        Column("images with both", "number"),
        Column("share", "share", "of the images of the second class, those with the first"),
        Column("lift", "number", "times as many images as if the two were independent"),
    ]
    rows = [[each.first, each.second, each.images, each.share, round(each.lift, 2)] for each in found.pairs]
    return Section(
        "data-together",
        "Classes that are together",
        "A detector learns that such classes come together, and may expect it of images where they do not.",
        [chart, Table("Pairs in most images", columns, rows)] if found.class_names else [],
    )


def _compared(differences: Sequence[SplitDifference]) -> Section:
    rows, classes = [], []
    for each in differences:
        for what, distance in each.distances:
            names = f"{each.first} and {each.second}"
            rows.append([names, what, distance.value, distance.by_chance, distance.verdict])
        classes += [[each.second, row.name, row.first, row.second, row.second - row.first] for row in each.shares]
    missing = [
        [each.second, name, f"{count:,} objects in {each.first}, none in {each.second}"]
        for each in differences
        for name, count in each.missing
    ] + [
        [each.second, name, f"{count:,} objects in {each.second}, none in {each.first}"]
        for each in differences
        for name, count in each.extra
    ]  # fmt: skip
    columns = [
        Column("splits"),
        Column("of"),
        Column("distance", "score", "total variation: 0 alike, 1 nothing in common"),
        Column("by chance", "score", "what 95 % of random divisions of the same images do not exceed"),
        Column("verdict"),
    ]
    parts: list[Table | Markup] = [Table("Differences of the splits", columns, rows)]
    if classes:
        shares = [
            Column("split"),
            Column("class", "text name"),
            *(Column(name, "share") for name in ("share in the first", "share here", "difference")),
        ]
        parts.append(Table("Classes whose shares differ most", shares, classes, shown=10))
    if missing:
        parts.append(
            Table(
                "Classes of one split only", [Column("split"), Column("class", "text name"), Column("objects")], missing
            )
        )
    return Section(
        "data-compared",
        "Splits compared",
        "Total variation distance: the share of objects that would have to be others for the splits to be alike. A "
        "small split differs by chance, too.",
        parts,
    )


def _copies(copies: CopiedImages) -> Section:
    how = "" if copies.is_compared else " Only names were compared, because there are very many images."
    if copies.unreadable:
        how += f" {counted(copies.unreadable, 'image')} could not be read, and may be copies or not."
    parts = []
    if copies.examples:
        rows = [[each.split, each.name, each.first_split, each.first_name] for each in copies.examples]
        columns = [
            Column("split"),
            Column("image", "text name"),
            Column("is a copy of, in split"),
            Column("image", "text name"),
        ]
        parts = [Table("Copies", columns, rows, shown=20)]
    return Section(
        "data-copies",
        "Copies",
        f"Of {copies.images:,} images {copies.across:,} are copies of one in another split, and {copies.within:,} of "
        f"one in the same split: equal files, or pictures that look the same.{how}",
        parts,
    )


def _chart(title: str, statistics: Sequence[DataStatistics], of: Callable[[DataStatistics], Histogram]) -> Markup:
    found = [(each.split, of(each)) for each in statistics]
    shares = [(name, [count / max(each.total, 1) for count in each.counts]) for name, each in found]
    return grouped_bar_chart(title, found[0][1].labels, shares, SHARE)


def _centres(statistics: DataStatistics) -> Markup:
    most = max(int(statistics.centres.max()), 1)
    names = [str(number + 1) for number in range(len(statistics.centres))]
    return heat_map(
        f"Centres of objects in {statistics.split}: shares of the fullest cell",
        names,
        names,
        (statistics.centres / most).tolist(),
        rows_are="from above",
        columns_are="from the left",
    )


def _spread(spread: Spread | None, text: Callable[[float], str] = number_text) -> list[str | None]:
    if spread is None:
        return [None] * 5
    return [text(value) for value in (spread.minimum, spread.low, spread.median, spread.high, spread.maximum)]
