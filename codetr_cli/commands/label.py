"""`codetr label`: a data set of a folder of images, with the labels that a model gives them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from codetr_cli import console
from codetr_cli.commands import _options as opt
from codetr_cli.commands._detection import detect_options, given_images, model_settings, submit_job
from codetr_cli.commands._labels import label_options
from codetr_cli.commands._weights import resolve_weights
from codetr_cli.commands.predict import newest_run, run_job
from codetr_cli.errors import ConfigError, DatasetError, ResourceError, listed
from codetr_cli.files import check_folder
from codetr_cli.formats.layout_names import LISTED, LayoutName

if TYPE_CHECKING:
    from codetr_cli.images.image_files import Skipped
    from codetr_cli.prediction.outcome import PredictOutcome

EXAMPLES = (
    "codetr label photos --checkpoint co_dino_r50.safetensors --format yolo --out photos_yolo",
    "codetr label photos --checkpoint runs/co_dino_r50/1 --score 0.4 --score person=0.6 --review 0.2:0.6 --out new",
)
SaveImages = Literal["copy", "link", "symlink"]


def label(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of images, with those below it.")],
    checkpoint: opt.CheckpointOption = None,
    score: opt.ScoreOption = None,
    max_dets: opt.MaxDetsOption = None,
    nms: opt.NmsOption = None,
    head: opt.HeadOption = None,
    tta: opt.TtaOption = False,
    tiles: opt.TilesOption = None,
    overlap: opt.OverlapOption = None,
    layout: Annotated[LayoutName, opt.option("--format", "NAME", f"{LISTED}.", opt.OUTPUT)] = "coco",
    out: Annotated[Path | None, opt.option("--out", "DIR", "A new folder for the data set.", opt.OUTPUT)] = None,
    save_images: Annotated[
        SaveImages, opt.option("--save-images", "HOW", "copy, link or symlink. Also: --images.", opt.OUTPUT)
    ] = "copy",
    val_fraction: Annotated[
        float,
        opt.option(
            "--val-fraction", "SHARE", "Reserved for validation unless folders divide.", opt.OUTPUT, min=0, max=0.9
        ),
    ] = 0.2,
    keep_empty: Annotated[
        bool, opt.flag("--keep-empty/--drop-empty", "Images without objects. Default: kept.", opt.OUTPUT)
    ] = True,
    class_map: opt.ClassMapOption = None,
    review: opt.ReviewOption = None,
    outlines: opt.OutlinesOption = False,
    force: opt.ReplaceOption = False,
    json_output: opt.JsonOption = False,
    quiet: opt.QuietOption = False,
    gpus: opt.GpusOption = None,
    device: opt.DeviceOption = "auto",
    procs: opt.ProcsOption = None,
    precision: opt.InferencePrecisionOption = "auto",
    batch: opt.PredictBatchOption = "auto",
    exact: opt.ExactOption = False,
    workers: opt.PredictWorkersOption = None,
    nodes: opt.NodesOption = None,
    rdzv_endpoint: opt.EndpointOption = None,
    node_rank: opt.NodeRankOption = None,
    max_restarts: opt.MaxRestartsOption = None,
    slurm: opt.SlurmOption = False,
    overrides: opt.SetOption = None,
) -> None:
    """Label a folder of images: a complete data set with a card.

    Labels are a model's detections. The data set is divided for training and validation, README.md says what made it,
    and `codetr prepare` and `codetr train` open it. The same command continues an interrupted one.
    """
    console.set_mode(json=json_output, quiet=quiet)
    if out is None:
        raise ConfigError("where to? Give a new folder: codetr label DIR --out NEW")
    check_folder(out, "--out")
    options = detect_options(context)

    from codetr_cli.data.writers.folder import check_outside
    from codetr_cli.prediction.job import PredictJob
    from codetr_cli.prediction.labels.options import DatasetOptions
    from codetr_cli.prediction.outputs import DATASET
    from codetr_cli.prediction.pictures import PictureOptions

    labels = label_options(class_map, review, outlines=outlines)
    if not folder.is_dir():
        if folder.exists():
            raise DatasetError(f"{folder} is no folder: give the folder of the images; unpack an archive first")
        raise DatasetError(f"there is no folder {folder}: give the folder of the images")
    check_outside(out, folder)
    images, skipped = given_images([str(folder)])
    weights = resolve_weights(checkpoint) or str(newest_run())
    job = PredictJob(
        images=images,
        weights=weights,
        overrides=model_settings(context, weights),
        precision=precision,
        tta=tta,
        options=options,
        pictures=PictureOptions(draw=False),
        formats=(DATASET,),
        labels=labels,
        dataset=DatasetOptions(
            layout=layout,
            source=str(folder),
            images=save_images,
            val_fraction=val_fraction,
            keep_empty=keep_empty,
        ),
        out=out,
        force=force,
    )
    if slurm:
        submit_job(job, context, name="label")
        return
    outcome = run_job(job, context)
    if outcome is not None:
        _report(outcome, skipped)


def _report(outcome: PredictOutcome, skipped: Skipped) -> None:
    """Prints what is in the data set.

    Raises:
        ResourceError: it could not be written.
        typer.Exit: images cannot be read.
    """
    from codetr_cli.data.writers.folder import receipt_of

    contents: dict[str, Any] = {} if outcome.unwritten else receipt_of(outcome.folder).get("contents", {})
    report = {
        "checkpoint": outcome.checkpoint,
        "out": str(outcome.folder),
        **contents,
        "notes": outcome.notes,
        "failed": [{"file": name, "error": error} for name, error in outcome.tally.failed],
        "skipped": asdict(skipped),
        "summary": outcome.summary,
    }
    if outcome.unwritten:
        error = ResourceError(outcome.unwritten)
        console.result_json({**report, "error": str(error), "exit_code": error.exit_code})
        raise error
    rows = [[split, found["images"], found["objects"]] for split, found in contents["splits"].items()]
    console.table(f"Labels of {outcome.folder}", ["split", "images", "objects"], rows)
    if not outcome.tally.detections:
        console.warn("no detection has the lowest score: the data set has no object. Lower --score.")
    for note in outcome.notes:
        console.info(f"{note}.")
    if outcome.tally.reviews:
        console.result(f"{outcome.tally.reviews} images are to be reviewed: {outcome.folder / 'review.txt'}")
    console.result(f"data set {outcome.folder}, described in {outcome.folder / 'README.md'}")
    console.result_json(report)
    if outcome.tally.failures:
        console.error(
            f"{outcome.tally.failures} images cannot be read and are not in the data set: "
            f"{listed([name for name, _ in outcome.tally.failed], 5)}. Replace or remove them"
        )
        raise typer.Exit(DatasetError.exit_code)
