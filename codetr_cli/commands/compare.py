"""`codetr compare`: which of several runs is better, by how much, and whether that is more than chance."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codetr_cli import console
from codetr_cli.commands import _options as opt
from codetr_cli.commands._data import show_notes
from codetr_cli.commands._defaults import Invocation
from codetr_cli.commands._option_values import data_settings, is_given, refuse_both
from codetr_cli.commands._weights import resolve_weights
from codetr_cli.errors import CodetrError, ConfigError, ResourceError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from codetr_cli.analysis.differences import Difference
    from codetr_cli.analysis.run_comparison import RunComparison
    from codetr_cli.formats.resolve import DataPaths
    from codetr_cli.report.compared_runs import ComparedRuns
    from codetr_cli.report.result_sources import ResultSource

EXAMPLES = (
    "codetr compare runs/co_dino_r50/1 runs/co_dino_r50/2",
    "codetr compare runs/co_dino_r50/1 theirs.json --data /path/to/coco --html compared.html",
    "codetr compare before/report.html after/report.html --json",
)
SHOWN = 10
"""Classes and images that are printed."""
FEWEST_SAMPLES, MOST_SAMPLES = 50, 10_000


def compare(
    context: typer.Context,
    results: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RESULT",
            help="Run folders, checkpoints, files of detections, folders of `codetr eval`, or reports.",
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        opt.option("--data", "DIR", "Score all on this data. Default: what each was evaluated on.", opt.INPUT),
    ] = None,
    format: opt.FormatOption = None,
    val_fraction: opt.ValFractionOption = None,
    split: opt.SplitOption = "val",
    images: opt.ImagesOption = None,
    annotations: opt.AnnotationsOption = None,
    boxes_only: opt.BoxesOnlyOption = False,
    samples: Annotated[
        int,
        opt.option("--samples", "N", "Resamples of the images.", opt.PROTOCOL, min=FEWEST_SAMPLES, max=MOST_SAMPLES),
    ] = 300,
    per_class: opt.PerClassOption = False,
    html: Annotated[
        Path | None, opt.option("--html", "FILE", "Also write a page, with the images that changed most.", opt.OUTPUT)
    ] = None,
    device: opt.DeviceOption = "auto",
    batch: opt.BatchOption = None,
    force: opt.ReplaceOption = False,
    json_output: opt.JsonOption = False,
    quiet: opt.QuietOption = False,
    overrides: opt.SetOption = None,
) -> None:
    """Compare the results of runs: which is better, and is it more than chance?

    The difference of AP with its 95 % interval, from resamples of the images that are the same for all runs; by class,
    size and type of error; and the images that changed most. All are compared with the first.

    A checkpoint stands for its evaluation by `codetr eval`; if there is none yet, it is evaluated. Results must be of
    the same images and annotations: those that they were evaluated on, or those of --data for all.
    """
    console.set_mode(json=json_output, quiet=quiet)
    if results is None or len(results) < 2:
        raise ConfigError("give at least two results: codetr compare A B")
    refuse_both(annotations, data)
    _check_page(html, force=force)
    settings = data_settings(
        format=format, val_fraction=val_fraction, annotations=annotations, images=images, overrides=overrides
    )
    words = [resolve_weights(each) or each for each in results]
    typed = [name for name in ("data", "annotations", "images", "split") if is_given(context, name)]
    wanted_split = split if "split" in typed else None

    from codetr_cli.report.compared_runs import compare_results, comparison_table, steps
    from codetr_cli.report.result_sources import check_distinct, find_source

    chosen = _data(data, wanted_split, settings) if typed else None
    sources = [find_source(each, chosen[0].annotations_path if chosen else None) for each in words]
    check_distinct(sources)
    lacking = next((source for source in sources if not source.is_evaluated), None)
    if chosen and lacking:  # its training may have used a part of a single annotation file
        chosen = _data(data, wanted_split, settings, str(lacking.weights))
        sources = [find_source(each, chosen[0].annotations_path) for each in words]
    found = chosen or _recorded_data(sources)
    if found is None and any(source.report is None for source in sources):
        found = _data(data, None, settings, str(lacking.weights) if lacking else None)
    paths, name = found or (None, "")
    if paths is not None:
        show_notes(paths)
    sources = [
        source
        if source.is_evaluated or paths is None
        else _evaluated(source, paths, name, settings, device=device, batch=batch, masks=not boxes_only)
        for source in sources
    ]
    with console.progress("comparing", steps(sum(source.report is None for source in sources))) as advance:
        compared = compare_results(
            sources, paths, chosen=chosen is not None, masks=not boxes_only, samples=samples, done=advance
        )
    invocation: Invocation = context.obj
    unwritten = _write_page(compared, html, invocation.command, force=force)
    _show(compared, per_class=per_class)
    if unwritten is not None:
        raise unwritten
    if html is not None:
        console.result(f"Page: {html}")
    console.result_json({**comparison_table(compared), "html": html and str(html)})


def _write_page(compared: ComparedRuns, html: Path | None, command: str, *, force: bool) -> CodetrError | None:
    """Writes the page, before anything is printed: the reader of a pipe may end. An error comes after the numbers."""
    from codetr_cli.report.comparison_report import comparison_page
    from codetr_cli.result_files import write_result

    if html is None:
        return None
    text = comparison_page(compared, command)
    try:
        html.parent.mkdir(parents=True, exist_ok=True)
        with write_result(html, by="compare", force=force) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        return ResourceError(f"cannot write {html}: {error.strerror}")
    except CodetrError as error:
        return error
    return None


def _check_page(html: Path | None, *, force: bool) -> None:
    """Raises a ConfigError if the page cannot be written: before anything is computed."""
    from codetr_cli.result_files import refuse_taken

    if html is not None:
        if html.suffix.lower() not in (".html", ".htm"):
            raise ConfigError(f"--html {html}: the name of a page ends with .html")
        refuse_taken([html], force=force)


def _data(
    data: Sequence[str] | None, split: opt.Split | None, settings: Sequence[str], checkpoint: str | None = None
) -> tuple[DataPaths, str]:
    """Images and annotations as `codetr eval` finds them, and a name; without a checkpoint, images may lack."""
    from codetr_cli.evaluation.data_choice import choose_data, data_config

    config, named = data_config(settings)
    if data:
        config = config.model_copy(update={"root": data[0], "extra_roots": tuple(data[1:]), "annotations": None})
    return choose_data(config, named, split, checkpoint)


def _recorded_data(sources: Sequence[ResultSource]) -> tuple[DataPaths, str] | None:
    """The data that results were evaluated on; None: it is not recorded, or not needed for reports alone."""
    from codetr_cli.report.compared_inputs import pictured_paths, recorded_annotations

    reports = [source for source in sources if source.report is not None]
    others = [source for source in sources if source.report is None]
    if not others:
        return None
    present = [each for each in reports if each.annotations is not None and each.annotations.is_file()]
    annotations = recorded_annotations([*others, *present])
    if annotations is None:
        return None
    splits = [source.protocol.get("split") for source in sources if source.annotations == annotations]
    return pictured_paths(annotations), next((split for split in splits if isinstance(split, str)), annotations.stem)


def _evaluated(
    source: ResultSource,
    paths: DataPaths,
    name: str,
    settings: Sequence[str],
    *,
    device: str,
    batch: int | None,
    masks: bool,
) -> ResultSource:
    """Evaluates a checkpoint, as `codetr eval` does, and writes the same files."""
    from dataclasses import replace

    from codetr_cli.evaluation.job import EvalJob, run_evaluation
    from codetr_cli.report.result_sources import find_source
    from codetr_cli.runtime.devices import choose_device

    console.info(f"{source.given} is not evaluated on {paths.annotations_path} yet: evaluating it now")
    job = EvalJob(
        checkpoint=str(source.weights), paths=paths, split=name, overrides=list(settings), batch=batch, masks=masks
    )
    outcome = run_evaluation(
        job,
        device=choose_device(device),
        show=lambda total, done: console.progress("evaluating", total, done=done),
        report=lambda outcome: console.warn(outcome.warning) if outcome.warning else None,
    )
    assert outcome is not None  # of the only process
    if outcome.unwritten:
        raise ResourceError(outcome.unwritten)
    console.info(f"its evaluation is in {Path(outcome.summary['detections']).parent}")
    return replace(find_source(outcome.summary["detections"]), given=source.given, weights=source.weights)


# ------------------------------------------------------------------------------------------------------------ printing


def _show(compared: ComparedRuns, *, per_class: bool) -> None:
    for name, source in zip(compared.names, compared.sources, strict=True):
        console.result(f"{name}: {source.given}")
    for note in compared.notes:
        console.info(note)
    for warning in compared.warnings:
        console.warn(warning)
    for pair, protocol, cautions in zip(compared.pairs, compared.protocol, compared.cautions, strict=True):
        console.result("")
        for sentence in (*pair.verdict, *cautions):
            console.result(sentence)
        if protocol:
            console.warn(f"the detections were made differently: {'; '.join(protocol)}.")
    if len(compared.pairs) > 1:
        _show_overview(compared)
    for pair, name in zip(compared.pairs, compared.names[1:], strict=True):
        _show_pair(pair, (compared.names[0], name), per_class=per_class)


def _show_overview(compared: ComparedRuns) -> None:
    from codetr_cli.report.comparison_report import between, conclusion, points

    first, ap = compared.names[0], compared.pairs[0].metrics["AP"]
    rows: list[list[object]] = [[first, points(ap.first), "", "", ""]]
    for name, pair in zip(compared.names[1:], compared.pairs, strict=True):
        ap = pair.metrics["AP"]
        rows.append([name, points(ap.second), points(ap.value, signed=True), between(ap), conclusion(ap)])
    console.result("")
    console.table("AP of all, in points", ["run", "AP", f"beside {first}", "95 % interval", "it is"], _aligned(rows))


def _show_pair(pair: RunComparison, names: tuple[str, str], *, per_class: bool) -> None:
    from codetr_cli.analysis.run_comparison import METRICS, class_caution

    first, second = names
    values = [first, second, "change", "95 % interval", f"{second} is"]
    console.result("")
    rows = [[METRICS[name], *_cells(each)] for name, each in pair.metrics.items() if each.conclusion != "unknown"]
    console.table(f"{second} beside {first}, in points", ["metric", *values], _aligned(rows))
    classes = pair.classes if per_class else pair.classes[:SHOWN]
    some = (
        f"the {len(classes)} of {len(pair.classes)} that differ most clearly"
        if len(classes) < len(pair.classes)
        else "all"
    )
    rows = [[each.name, each.objects, *_cells(each.ap, is_clear=each.is_clear)] for each in classes]
    console.result("")
    console.table(f"AP of classes, in points ({some})", ["class", "objects", *values], _aligned(rows))
    if caution := class_caution(pair.classes):
        console.result(caution)
    for title, of in (("Errors per 100 images", "per_100_images"), ("AP50 that errors cost, in points", "ap")):
        if all(getattr(each, of).conclusion == "unknown" for each in pair.errors):
            continue
        rows = [[each.name, *_cells(getattr(each, of), is_ap=of == "ap")] for each in pair.errors]
        console.result("")
        console.table(title, ["error", *values], _aligned(rows))
    _show_images(pair, names)


def _cells(difference: Difference, *, is_ap: bool = True, is_clear: bool = True) -> list[object]:
    """First and second value, the difference, its interval, and what it shows."""
    from codetr_cli.report.comparison_report import between, conclusion, number, points

    shown = points if is_ap else number
    values = [shown(difference.first), shown(difference.second), shown(difference.value, signed=True)]
    return [*values, between(difference, shown), conclusion(difference, is_clear=is_clear)]


def _aligned(rows: Sequence[Sequence[object]]) -> list[list[object]]:
    """Rows whose texts of numbers, all between the first column and the verdict, end below each other."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    for column in columns[1:]:
        if all(isinstance(text, str) and (not text or text[0] in "+-0123456789") for text in column):
            width = max(len(str(text)) for text in column)
            column[:] = [str(text).rjust(width) for text in column]
    return [list(row) for row in zip(*columns, strict=True)]


def _show_images(pair: RunComparison, names: tuple[str, str]) -> None:
    if not pair.has_images:
        return
    better = [each for each in pair.changed if each.change < 0][: SHOWN // 2]
    worse = [each for each in pair.changed if each.change > 0][: SHOWN // 2]
    console.result(
        f"{names[1]} has fewer errors in {pair.better_images:,} of {pair.images:,} images, more in "
        f"{pair.worse_images:,}."
    )
    rows = [
        [each.file_name, *(text for counts in (each.first, each.second) for text in (counts.misses, counts.alarms)),
         each.change]
        for each in (*better, *worse)
    ]  # fmt: skip
    if rows:
        columns = [f"{name}: {what}" for name in names for what in ("missed", "false alarms")]
        console.result("")
        console.table("Images that changed most", ["image", *columns, "more errors"], rows)
