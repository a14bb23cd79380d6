"""How images are detected, and the submission of such a job, as `predict` and `label` both have it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from codetr_cli.commands._defaults import Invocation
from codetr_cli.commands._labels import scores_of
from codetr_cli.commands._launch import requested
from codetr_cli.commands._option_values import batch_of, tile_options
from codetr_cli.commands._submit import submit_command

if TYPE_CHECKING:
    from codetr_cli.inference.options import DetectOptions
    from codetr_cli.prediction.job import PredictJob


def detect_options(context: typer.Context) -> DetectOptions:
    """The options of detection of a command that has all of them under the same names.

    Raises:
        ConfigError: a value that is none of its option, or options that exclude each other.
    """
    given = context.params
    lowest, class_scores = scores_of(given["score"])
    tiles = tile_options(given["tiles"], given["overlap"], tta=given["tta"])

    from codetr_cli.inference.options import NO_TILES, DetectOptions

    return DetectOptions(
        score=lowest,
        class_scores=class_scores,
        max_dets=given["max_dets"],
        nms=given["nms"],
        tiles=tiles,
        whole_images=given["tiles"] == NO_TILES,
        batch=batch_of(given["batch"]),
        exact=given["exact"],
        workers=given["workers"],
    )


def submit_job(job: PredictJob, context: typer.Context, *, name: str) -> None:
    """Writes and submits the SLURM script of a command, with the output folder that it will have."""
    invocation: Invocation = context.obj
    request = requested(context)
    device_type = "cuda" if request.device == "auto" else request.device.partition(":")[0]  # of the job
    submit_command(invocation.words, job.choose_folder(job.digest(device_type)), request, name=name)
