"""`codetr stats`: what is in a dataset, and what that suggests to set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codetr_cli import console
from codetr_cli.commands import _options as opt
from codetr_cli.commands._data import located
from codetr_cli.commands._defaults import Invocation
from codetr_cli.commands._option_values import argument_or_option, data_settings, refuse_both
from codetr_cli.commands._text_plots import bar_text, spark_text
from codetr_cli.errors import ConfigError, counted
from codetr_cli.files import check_folder

if TYPE_CHECKING:
    from codetr_cli.analysis.data.image_copies import CopiedImages
    from codetr_cli.analysis.data.statistics import DataStatistics, Histogram
    from codetr_cli.analysis.data.summary import DataSummary
    from codetr_cli.config.data_settings import DataConfig
    from codetr_cli.config.schema import Settings

EXAMPLES = (
    "codetr stats my_dataset",
    "codetr stats my_dataset --preset co_dino_swin_l --html stats.html",
    "codetr stats /path/to/coco --no-images --json",
)
DEFAULT_PRESET = "co_dino_r50"
BAR = 24
"""Characters of the longest bar."""
SHORT_BAR = 8
"""Where a terminal is narrow."""
CLASSES_SHOWN = 12
"""Classes in the terminal: half of them the most frequent, half the rarest. `--all-classes` shows all."""


def stats(
    context: typer.Context,
    path: opt.DatasetArgument = None,
    data: opt.SameDataOption = None,
    format: opt.FormatOption = None,
    val_fraction: opt.ValFractionOption = None,
    annotations: opt.AnnotationsOption = None,
    images: opt.ImagesOption = None,
    preset: Annotated[
        str | None,
        opt.option("--preset", "NAME", f"Network that the advice is for. Default: {DEFAULT_PRESET}.", opt.INPUT),
    ] = None,
    no_images: Annotated[
        bool, opt.flag("--no-images", "Read the annotations only; do not look for copies of images.", opt.INPUT)
    ] = False,
    all_classes: Annotated[bool, opt.flag("--all-classes", "Print all classes, not only some.", opt.OUTPUT)] = False,
    html: Annotated[Path | None, opt.option("--html", "FILE", "Also write a page with charts.", opt.OUTPUT)] = None,
    force: opt.ReplaceOption = False,
    json_output: opt.JsonOption = False,
    quiet: opt.QuietOption = False,
    overrides: opt.SetOption = None,
) -> None:
    """Count what is in a dataset, compare its splits, and advise on settings.

    Sizes, shapes, classes, crowding, what is together, copies of images, and how large objects are at the input of
    the network that --preset and --set choose. Advice on tiles, queries, resolution, rare classes and splits states
    the counts that it comes from. `codetr prepare` checks for errors; this does not.
    """
    console.set_mode(json=json_output, quiet=quiet)
    if html is not None:
        check_folder(html.parent, "--html")
    named = argument_or_option(context, "path", "data")
    refuse_both(annotations, named)
    from codetr_cli.analysis.data.summary import summarize_data
    from codetr_cli.analysis.jsonable import jsonable

    overrides = data_settings(
        format=format, val_fraction=val_fraction, annotations=annotations, images=images, overrides=overrides
    )
    settings = _settings(preset, overrides)
    invocation: Invocation = context.obj
    config = located(settings.data, named, invocation, verb="stats", note=not json_output)
    _check_html(html, force)
    summary = summarize_data(config, settings, with_images=not no_images, progress=console.progress)
    for note in summary.notes:
        console.info(note)
    _show(summary, classes=None if all_classes else CLASSES_SHOWN)
    if html is not None:
        _write_page(summary, config, html, words=invocation.words, force=force)
        console.result(f"page written to {html}")
    console.result_json({**jsonable(summary), "html": html})


def _settings(preset: str | None, overrides: list[str]) -> Settings:
    from codetr_cli.config.presets import load_preset

    return load_preset(preset or DEFAULT_PRESET, overrides)


def _check_html(path: Path | None, force: bool) -> None:
    """Raises a ConfigError for a page that could not be written, before a data set is read for it."""
    from codetr_cli.result_files import ResultRecord, refuse_taken

    if path is None:
        return
    if path.is_dir():
        raise ConfigError(f"--html {path} is a folder: give the name of a file in it")
    refuse_taken([path], force=force, record=ResultRecord(path.parent))


def _write_page(summary: DataSummary, config: DataConfig, path: Path, *, words: Sequence[str], force: bool) -> None:
    from codetr_cli.report.data_section import data_page, data_sections
    from codetr_cli.report.facts import command_text
    from codetr_cli.result_files import write_result

    sections = data_sections(
        summary.splits, advice=summary.advice, differences=summary.differences, copies=summary.copies
    )
    name = Path(config.annotations or config.root or "").name
    seen = summary.splits[0].at_input
    facts = {
        "Data": str(config.annotations or config.root),
        **{f"Annotations of {split}": str(file) for split, (file, _) in summary.places.items()},
        "Advice for": f"{summary.preset}: input {seen.input_size}, {seen.num_queries:,} queries",
        "Command": command_text(words),
    }
    with write_result(path, by="stats", force=force) as temporary:
        temporary.write_text(
            data_page(f"Data set {name}", facts, sections, summary.splits), "utf-8", errors="backslashreplace"
        )


# -------------------------------------------------------------------------------------------------------- what is shown


def _show(summary: DataSummary, *, classes: int | None) -> None:
    columns = ["split", "images", "no objects", "objects", "crowds", "excluded", "classes", "most"]
    rows = [
        [*each.counts, f"{len(each.used_classes)} of {len(each.classes)}", each.most_in_image]
        for each in summary.splits
    ]
    _table("Splits", columns, rows)
    _show_classes(summary.splits, classes)
    first = summary.splits[0]
    _show_bins(f"Sides of objects at the input size {first.at_input.input_size} [px]", summary, "sides at the input")
    _show_bins("Sides of objects in the images [px]", summary, "sides")
    _show_bins("Width over height of objects", summary, "aspects")
    _show_bins("Objects per image", summary, "per image")
    _show_bins("Largest IoU of an object with another one of its image", summary, "overlaps")
    _show_sizes(summary.splits)
    _show_pairs(first)
    _show_differences(summary)
    if summary.copies is not None:
        _show_copies(summary.copies)
    _show_advice(summary)


def _show_classes(splits: Sequence[DataStatistics], limit: int | None) -> None:
    first = splits[0]
    used = first.used_classes
    shown = used
    title = f"Classes of {first.split}"
    if limit is not None and len(used) > limit:
        shown = [*used[: limit // 2], *used[-limit // 2 :]]
        title += f": the {limit // 2} most frequent and the {limit // 2} rarest of {len(used):,} (--all-classes: all)"
    others = [{each.name: each for each in split.classes} for split in splits[1:]]
    most = max((each.objects for each in used), default=1)
    others_wide = max((len(each.name) for each in shown), default=0) + 34 + 10 * len(others)
    bar = min(max(console.columns() - others_wide, SHORT_BAR), BAR)
    rows = [
        [
            each.name,
            each.objects,
            each.images,
            *(split[each.name].objects if each.name in split else None for split in others),
            round(100 * each.objects / max(first.objects, 1), 1),
            bar_text(each.objects / most, bar),
        ]
        for each in shown
    ]
    columns = ["class", "objects", "images", *(f"in {split.split}" for split in splits[1:]), "share [%]", ""]
    if rows:
        _table(title, columns, rows)
    unused = [each.name for each in first.classes if not each.objects]
    if unused:
        from codetr_cli.errors import listed

        console.info(f"Classes without objects in {first.split}: {listed(unused, 10)}.")


def _show_bins(title: str, summary: DataSummary, what: str) -> None:
    """A histogram of all splits: shares in percent, and bars of the first split."""
    found = [(each.split, _histogram(each, what)) for each in summary.splits]
    first = found[0][1]
    if not any(each.total for _, each in found):
        return
    largest = max(first.counts) / max(first.total, 1)
    bar = min(max(console.columns() - 16 - 12 * len(found), SHORT_BAR), BAR)
    rows = [
        [
            label,
            *(round(100 * each.counts[index] / max(each.total, 1), 1) for _, each in found),
            bar_text(first.counts[index] / max(first.total, 1) / max(largest, 1e-9), bar),
        ]
        for index, label in enumerate(first.labels)
        if any(each.counts[index] for _, each in found)
    ]
    _table(title, ["", *(f"{split} [%]" for split, _ in found), ""], rows)


def _histogram(statistics: DataStatistics, what: str) -> Histogram:
    return {
        "sides at the input": statistics.at_input.sides,
        "sides": statistics.object_sides,
        "aspects": statistics.object_aspects,
        "per image": statistics.per_image,
        "overlaps": statistics.overlaps,
    }[what]


def _show_sizes(splits: Sequence[DataStatistics]) -> None:
    from codetr_cli.analysis.data.statistics import sizes_text

    rows = [
        [
            each.split,
            sizes_text(each),
            "-" if each.at_input.scales is None else f"{each.at_input.scales.median:.3g}",
            spark_text(each.image_aspects.counts),
        ]
        for each in splits
    ]
    _table("Images", ["split", "most frequent sizes", "resized by", "upright to wide"], rows)


def _show_pairs(first: DataStatistics) -> None:
    pairs = first.together.pairs[:8]
    if pairs:
        rows = [
            [f"{each.first} + {each.second}", each.images, round(100 * each.share), round(each.lift, 1)]
            for each in pairs
        ]
        columns = ["classes", "images with both", "of the second's [%]", "times chance"]
        _table(f"Classes that are together in {first.split}", columns, rows)


def _show_differences(summary: DataSummary) -> None:
    rows: list[list[object]] = []
    for each in summary.differences:
        for what, distance in each.distances:
            values = [round(distance.value, 3), round(distance.by_chance, 3)]
            rows.append([each.second, what, *values, distance.verdict])
    if rows:
        first = summary.differences[0].first
        columns = ["split", "of", "distance", "by chance", "verdict"]
        _table(f"Splits compared with {first} (total variation: 0 alike, 1 nothing in common)", columns, rows)


def _show_copies(copies: CopiedImages) -> None:
    console.info(
        f"Copies: of {copies.images:,} images {copies.across:,} are copies of one in another split, "
        f"{copies.within:,} of one in the same split."
        + (
            ""
            if copies.is_compared
            else " Only names were compared, because these are very many; `codetr prepare` finds equal files."
        )
    )
    if copies.unreadable:
        console.warn(f"{counted(copies.unreadable, 'image')} could not be read, and may be copies or not.")


def _show_advice(summary: DataSummary) -> None:
    seen = summary.splits[0].at_input
    about = f"for {summary.preset}, input {seen.input_size}, {seen.num_queries:,} queries"
    if not summary.advice:
        console.result(f"No advice {about}: none of the rules applies.")
        return
    console.result(f"Advice {about}:")
    for each in summary.advice:
        console.result(f"- {each.text}")
        console.result(f"    because {each.because}.")


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    console.table(title, columns, rows)
    console.result("")
