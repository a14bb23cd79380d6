"""The images, settings and submission of a job that detects objects, as `predict` and `label` both have them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from codetr_cli import console
from codetr_cli.commands._defaults import Invocation
from codetr_cli.commands._labels import scores_of
from codetr_cli.commands._launch import requested
from codetr_cli.commands._option_values import batch_of, tile_options
from codetr_cli.commands._submit import submit_command
from codetr_cli.commands._weights import place_exported

if TYPE_CHECKING:
    from collections.abc import Sequence

    from codetr_cli.images.image_files import Skipped
    from codetr_cli.inference.options import DetectOptions
    from codetr_cli.prediction.inputs import InputList
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


def given_images(sources: Sequence[str], column: str | None = None) -> tuple[InputList, Skipped]:
    """The images of a command, as `find_images` finds them, and what was skipped, which is printed."""
    from codetr_cli.images.image_files import Skipped
    from codetr_cli.prediction.inputs import find_images

    skipped = Skipped()
    images = find_images(sources, column=column, skipped=skipped)
    for sentence in skipped.sentences():
        console.warn(f"{sentence}.")
    return images, skipped


def model_settings(context: typer.Context, weights: str) -> list[str]:
    """The overrides of a command with those of `--head` and of the file that runs, which count less."""
    head, overrides = context.params["head"], context.params["overrides"]
    return [*([f"test.head={head}"] if head else []), *place_exported(context, weights), *(overrides or [])]


def submit_job(job: PredictJob, context: typer.Context, *, name: str) -> None:
    """Writes and submits the SLURM script of a command, with the output folder that it will have."""
    invocation: Invocation = context.obj
    request = requested(context)
    device_type = "cuda" if request.device == "auto" else request.device.partition(":")[0]  # of the job
    submit_command(invocation.words, job.choose_folder(job.digest(device_type)), request, name=name)
