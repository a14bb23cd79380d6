"""`codetr browse`: a dataset, and detections on it, in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codetr_cli import console
from codetr_cli.commands import _options as opt
from codetr_cli.commands._data import located, show_matching
from codetr_cli.commands._defaults import Invocation
from codetr_cli.commands._option_values import argument_or_option, data_settings, refuse_both

if TYPE_CHECKING:
    from codetr_cli.analysis.data.splits import DataSplit
    from codetr_cli.inference.detections import DetectionTable

EXAMPLES = (
    "codetr browse my_dataset",
    "codetr browse my_dataset --split train --port 9000 --no-open",
    "codetr browse my_dataset --detections eval/val/detections.json",
)


def browse(
    context: typer.Context,
    path: opt.DatasetArgument = None,
    data: opt.SameDataOption = None,
    format: opt.FormatOption = None,
    val_fraction: opt.ValFractionOption = None,
    annotations: opt.AnnotationsOption = None,
    images: opt.ImagesOption = None,
    split: Annotated[
        opt.Split | None, opt.option("--split", "NAME", "val, train or test. Default: val, else train.", opt.INPUT)
    ] = None,
    detections: Annotated[
        Path | None,
        opt.option(
            "--detections", "FILE", "Also show the detections of this file, as `codetr eval` reads it.", opt.INPUT
        ),
    ] = None,
    boxes_only: Annotated[bool, opt.flag("--boxes-only", "Do not read outlines of objects.", opt.INPUT)] = False,
    port: opt.DemoPortOption = None,
    no_open: Annotated[bool, opt.flag("--no-open", "Print the address only; open no browser.", opt.SERVER)] = False,
    json_output: opt.JsonOption = False,
    quiet: opt.QuietOption = False,
    overrides: opt.SetOption = None,
) -> None:
    """Look at a dataset in the browser, with its boxes and outlines.

    Filter images by class, and with --detections by hits, misses and false alarms, and see curves and errors. The page
    is hotcoco's, is only for this machine, and loads nothing from elsewhere. Ctrl-C ends it.
    """
    console.set_mode(json=json_output, quiet=quiet)
    named = argument_or_option(context, "path", "data")
    refuse_both(annotations, named)
    from codetr_cli.serving.browse_app import check_installed

    check_installed()
    overrides = data_settings(
        format=format, val_fraction=val_fraction, annotations=annotations, images=images, overrides=overrides
    )
    chosen = _read_split(named, split, overrides, context.obj, with_outlines=not boxes_only, note=not json_output)
    found = None if detections is None else _detections(detections, chosen)
    from codetr_cli.serving.browse_app import serve_browser
    from codetr_cli.serving.browse_data import browse_data

    with console.progress("preparing the page", 1) as advance:
        shown = browse_data(chosen, found)
        advance(1)
    for note in shown.notes:
        console.warn(note)

    def ready(address: str) -> None:
        number = "" if found is None else f" with {len(found):,} detections"
        console.result(
            f"{address} shows {len(shown.images):,} images of {shown.split}{number}: open it in a browser. "
            "Ctrl-C ends it."
        )
        console.result_json({"address": address, "split": shown.split, "images": len(shown.images)})

    serve_browser(shown, port=port, open_browser=not no_open, ready=ready)


def _read_split(
    named: str | None,
    split: opt.Split | None,
    overrides: list[str],
    invocation: Invocation,
    *,
    with_outlines: bool,
    note: bool,
) -> DataSplit:
    from codetr_cli.analysis.data.splits import read_splits, split_names
    from codetr_cli.config.overrides import apply_overrides
    from codetr_cli.config.schema import Settings

    config = apply_overrides(Settings(name="browse"), overrides).data
    config = located(config, named, invocation, verb="browse", note=note)
    if split is None:
        names = split_names(config)
        split = "val" if "val" in names else names[0] if names else "train"
    return read_splits(config, only=split, with_outlines=with_outlines, progress=console.progress)[0]


def _detections(file: Path, split: DataSplit) -> DetectionTable:
    from codetr_cli.evaluation.detection_files import read_detection_file
    from codetr_cli.evaluation.detection_records import match_detections

    matched = match_detections(read_detection_file(file), split.annotations, str(split.paths.annotations_path))
    show_matching(matched)
    return matched.table
