"""`codetr predict`: detects objects in images; writes drawn images and files of results, prints a table."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codetr_cli import console
from codetr_cli.commands import _options as opt
from codetr_cli.commands._detection import detect_options, given_images, model_settings, submit_job
from codetr_cli.commands._labels import label_options
from codetr_cli.commands._launch import requested, run_placed, worker_output
from codetr_cli.commands._option_values import separated
from codetr_cli.commands._pictures import comparison_columns, picture_options, show_comparison
from codetr_cli.commands._predict_video import predict_videos
from codetr_cli.commands._weights import refuse_secrets, resolve_weights
from codetr_cli.errors import ConfigError, DatasetError, ResourceError, listed
from codetr_cli.files import check_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from codetr_cli.images.image_files import Skipped
    from codetr_cli.prediction.job import PredictJob
    from codetr_cli.prediction.outcome import PredictOutcome

EXAMPLES = (
    "codetr predict photo.jpg",
    "codetr predict images/ --checkpoint co_dino_r50.safetensors --score 0.5",
    "codetr predict images/ --checkpoint runs/co_dino_r50/1 --gpus 8 --format jsonl",
    "codetr predict street.mp4 --stride 2 --track",
)
MAX_ROWS = 40


def predict(
    context: typer.Context,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SRC",
            help="Images, folders, quoted patterns such as 'a/*.jpg', lists (.txt, .csv, .parquet), .tar archives, "
            "addresses (s3://, https://), or videos.",
        ),
    ],
    checkpoint: opt.CheckpointOption = None,
    column: opt.ColumnOption = None,
    score: opt.ScoreOption = None,
    max_dets: opt.MaxDetsOption = None,
    nms: opt.NmsOption = None,
    head: opt.HeadOption = None,
    tta: opt.TtaOption = False,
    tiles: opt.TilesOption = None,
    overlap: opt.OverlapOption = None,
    stride: opt.StrideOption = 1,
    start: opt.StartOption = None,
    end: opt.EndOption = None,
    track: opt.TrackOption = False,
    fps: opt.FpsOption = None,
    out: opt.PredictOutOption = Path("predictions"),
    result_formats: opt.ResultFormatOption = None,
    class_map: opt.ClassMapOption = None,
    review: opt.ReviewOption = None,
    outlines: opt.OutlinesOption = False,
    crops: opt.CropsOption = False,
    no_draw: opt.NoDrawOption = False,
    force: opt.ForceOption = False,
    labels: opt.LabelsOption = "score",
    thickness: opt.ThicknessOption = None,
    font_size: opt.FontSizeOption = None,
    image_format: opt.ImageFormatOption = "same",
    quality: opt.QualityOption = 92,
    grid: opt.GridOption = None,
    against: opt.AgainstOption = None,
    against_view: opt.AgainstViewOption = "side",
    json_output: opt.JsonOption = False,
    quiet: opt.QuietOption = False,
    gpus: opt.GpusOption = None,
    device: opt.DeviceOption = "auto",
    procs: opt.ProcsOption = None,
    batch: opt.PredictBatchOption = "auto",
    exact: opt.ExactOption = False,
    workers: opt.PredictWorkersOption = None,
    precision: opt.InferencePrecisionOption = "auto",
    nodes: opt.NodesOption = None,
    rdzv_endpoint: opt.EndpointOption = None,
    node_rank: opt.NodeRankOption = None,
    max_restarts: opt.MaxRestartsOption = None,
    slurm: opt.SlurmOption = False,
    shard_size: opt.ShardSizeOption = 10_000,
    overrides: opt.SetOption = None,
) -> None:
    """Detect objects in images and draw them.

    Without --checkpoint the newest run in runs/ is used: its best checkpoint, or else its last. Several processes give
    the same files as one. The same command continues an interrupted prediction.
    """
    console.set_mode(json=json_output, quiet=quiet)
    check_folder(out, "--out")
    options = detect_options(context)
    if against is None and against_view != "side":
        raise ConfigError(f"--against-view {against_view} is of comparisons: give --against PATH, too")

    from codetr_cli.prediction.job import PredictJob
    from codetr_cli.prediction.outputs import check_formats

    if predict_videos(context, options, weights=lambda: resolve_weights(checkpoint) or str(newest_run())):
        return
    formats = check_formats(separated(result_formats, "coco"))
    images, skipped = given_images(sources, column)
    weights = resolve_weights(checkpoint) or str(newest_run())
    job = PredictJob(
        images=images,
        weights=weights,
        overrides=model_settings(context, weights),
        precision=precision,
        tta=tta,
        options=options,
        pictures=picture_options(
            draw=not no_draw,
            look={"labels": labels, "thickness": thickness, "font_size": font_size},
            file={"image_format": image_format, "quality": quality},
            grid=grid,
            against=against,
            view=against_view,
        ),
        formats=formats,
        labels=label_options(class_map, review, outlines=outlines, crops=crops),
        shard_size=shard_size,
        out=out,
        force=force,
    )
    if slurm:
        refuse_secrets(sources)
        submit_job(job, context, name="predict")
        return
    outcome = run_job(job, context)
    if outcome is None:
        return
    _show(outcome)
    if outcome.unwritten:
        error = ResourceError(outcome.unwritten)
        console.result_json({**_summary(outcome, skipped), "error": str(error), "exit_code": error.exit_code})
        raise error
    if json_output:
        console.result_json(_summary(outcome, skipped))
    if outcome.tally.failures:
        names = listed([name for name, _ in outcome.tally.failed], 5, count=outcome.tally.failures)
        console.error(
            f"{outcome.tally.failures} of {len(images)} images cannot be read: {names}. Replace or remove them; the "
            f"results of the others are in {outcome.folder}"
        )
        raise typer.Exit(DatasetError.exit_code)


def newest_run() -> Path:
    """The checkpoint of the newest run in runs/.

    Raises:
        ConfigError: there is none.
    """
    from codetr_cli.inference.loading import newest_checkpoint

    found = newest_checkpoint(Path("runs"))
    if found is None:
        raise ConfigError(
            "which checkpoint? runs/ holds none: give one with --checkpoint FILE, train one with `codetr train`, or "
            "download a published one with `codetr download`"
        )
    console.info(f"Using {found}")
    return found


def run_job(job: PredictJob, context: typer.Context) -> PredictOutcome | None:
    """Predicts in as many processes as requested; None where another process has the outcome."""
    from codetr_cli.distributed.topology import place
    from codetr_cli.distributed.worker_errors import PREDICTION

    placement = place(requested(context), PREDICTION)
    if not placement.agreed:
        # A folder that cannot be used is an error before processes start.
        job.choose_folder(job.digest(placement.device.type))
    mode = (context.params["json_output"], context.params["quiet"])
    outcome: PredictOutcome | None = run_placed(_predict_here, (job, placement.device, *mode), placement)
    return outcome


def _predict_here(job: PredictJob, device: torch.device, json_output: bool, quiet: bool) -> PredictOutcome | None:
    """Predicts in this process, alone or as one of several, and shows the progress of all."""
    from codetr_cli.prediction.job import run_prediction

    with worker_output(json=json_output, quiet=quiet):
        return run_prediction(
            job,
            device=device,
            show=lambda total, done: console.progress("predicting", total, done=done),
            warn=console.warn,
        )


def _summary(outcome: PredictOutcome, skipped: Skipped) -> dict[str, Any]:
    """What `--json` prints; of many images only the numbers and the names of the files."""
    from codetr_cli.prediction.outputs import PREDICTIONS_NAME

    path = next((path for path in outcome.files if path.name == PREDICTIONS_NAME), None)
    detections = None
    if path is not None and not outcome.is_large:
        detections = json.loads(path.read_text(encoding="utf-8"))
    return {
        "checkpoint": outcome.checkpoint,
        "out": str(outcome.folder),
        "predictions": path and str(path),
        "files": [str(path) for path in outcome.files],
        "images": None if outcome.is_large else outcome.tally.images,
        "detections": detections,
        "failed": [{"file": name, "error": error} for name, error in outcome.tally.failed],
        "notes": outcome.notes,
        "skipped": asdict(skipped),
        "summary": outcome.summary,
    }


def _show(outcome: PredictOutcome) -> None:
    images, done = outcome.tally.images, outcome.tally.done
    rows: list[Sequence[object]] = []
    columns, compared = comparison_columns(outcome)
    for image in images[:MAX_ROWS]:
        objects = ", ".join(f"{name} {count}" for name, count in image["objects"].items()) or "nothing"
        rows.append([image["file_name"], objects, *compared(image), round(image["seconds"] * 1000, 1)])
    if rows:
        console.table(f"Detections (on {outcome.device})", ["image", "objects", *columns, "time [ms]"], rows)
    if done > MAX_ROWS:
        console.result(f"... and {done - MAX_ROWS} more images.")
    for note in outcome.notes:
        console.info(f"{note}.")
    if outcome.tally.reviews:
        console.result(f"{outcome.tally.reviews} of {done} images are to be reviewed.")
    where = f": {listed(outcome.files)}" if outcome.files else ""
    console.result(f"{outcome.tally.detections} detections in {done} images{where}")
    show_comparison(outcome)
    if rate := outcome.summary["images_per_second"]:
        processes = len(outcome.summary["processes"])
        console.info(f"{rate:.3g} images/s" + (f" by {processes} processes" if processes > 1 else ""))
