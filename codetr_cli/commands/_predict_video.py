"""`codetr predict` with videos: what its options mean for them, and what it prints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from codetr_cli import console
from codetr_cli.commands._launch import refuse_launch_options, requested, worker_output
from codetr_cli.commands._option_values import is_given
from codetr_cli.commands._weights import place_exported
from codetr_cli.errors import ConfigError, DatasetError, StoppedError, listed

if TYPE_CHECKING:
    from codetr_cli.inference.options import DetectOptions
    from codetr_cli.prediction.video.inputs import VideoInput
    from codetr_cli.prediction.video.run import VideosOutcome

VIDEO_ONLY = ("stride", "start", "end", "track", "fps")
SHARED = (
    *("sources", "checkpoint", "score", "max_dets", "nms", "head", "tta", "out", "no_draw", "force", "json_output"),
    *("quiet", "device", "precision", "overrides", "batch", "exact", "workers", "tiles", "overlap"),
    *("labels", "thickness", "font_size"),
)
"""Parameters that videos have, too; all others of `predict` are for images."""
MAX_CLASSES = 6


def predict_videos(context: typer.Context, options: DetectOptions, *, weights: Callable[[], str]) -> bool:
    """Predicts the videos among the sources of the command; False if there are none.

    Args:
        context: of `codetr predict`.
        options: how images are detected.
        weights: finds the checkpoint.

    Raises:
        ConfigError: videos beside images, or options that do not fit.
    """
    from codetr_cli.prediction.video.inputs import split_inputs

    given = context.params
    videos, others = split_inputs(given["sources"])
    used = [name for name in given if is_given(context, name)]
    if not videos:
        if wrong := [name for name in used if name in VIDEO_ONLY]:
            raise ConfigError(f"{_option(context, wrong[0])} is for videos, and {listed(others)} is none")
        return False
    if others:
        raise ConfigError(
            f"{listed([video.label for video in videos])} beside {listed(others)}: give videos and images to separate "
            "commands"
        )
    refuse_launch_options(context, "a video, whose frames come in order,")
    if wrong := [name for name in used if name not in (*SHARED, *VIDEO_ONLY)]:
        raise ConfigError(
            f"{_option(context, wrong[0])} is for images: videos give a JSON Lines file and a drawn video"
        )
    _refuse_endless(videos, given)
    _run(context, videos, options, weights)
    return True


def _refuse_endless(videos: Sequence[VideoInput], given: Mapping[str, Any]) -> None:
    cameras = [video.label for video in videos if video.kind == "camera"]
    if cameras and len(videos) > 1 and given["end"] is None:
        raise ConfigError(f"{cameras[0]} has no end, and the next video would wait for it: start a command for each")
    if given["fps"] is not None and (timed := [video.label for video in videos if video.kind != "sequence"]):
        raise ConfigError(f"--fps is for numbered image sequences: {listed(timed)} has timestamps of its own")


def _option(context: typer.Context, name: str) -> str:
    """As the user writes a parameter."""
    (parameter,) = [each for each in context.command.params if each.name == name]
    return max(parameter.opts, key=len)


def _run(
    context: typer.Context, videos: Sequence[VideoInput], options: DetectOptions, weights: Callable[[], str]
) -> None:
    from codetr_cli.distributed.topology import place
    from codetr_cli.distributed.worker_errors import PREDICTION
    from codetr_cli.inference.draw_options import DrawOptions
    from codetr_cli.prediction.video.inputs import parse_rate, parse_time
    from codetr_cli.prediction.video.job import VideoJob
    from codetr_cli.prediction.video.run import run_videos

    given = context.params
    start, end = (given[name] and parse_time(given[name], f"--{name}") for name in ("start", "end"))
    if end is not None and end <= (start or 0):
        raise ConfigError(f"--end {given['end']} is not after --start {given['start'] or 0}")
    checkpoint = weights()
    job = VideoJob(
        videos=videos,
        weights=checkpoint,
        overrides=[
            *([f"test.head={given['head']}"] if given["head"] else []),
            *place_exported(context, checkpoint),
            *(given["overrides"] or []),
        ],
        precision=given["precision"],
        tta=given["tta"],
        options=options,
        draw=not given["no_draw"],
        drawing=DrawOptions(**{name: given[name] for name in ("labels", "thickness", "font_size")}),
        stride=given["stride"],
        start=start,
        end=end,
        track=given["track"],
        rate=parse_rate(given["fps"] or "25"),
        out=given["out"],
        force=given["force"],
    )
    job.check()
    device = place(requested(context), PREDICTION).device
    with worker_output(json=given["json_output"], quiet=given["quiet"]):
        outcome = run_videos(
            job,
            device=device,
            show=lambda name, total, done: console.progress(f"predicting {name}", total, done=done),
            warn=console.warn,
        )
    _show(outcome, json_output=given["json_output"])


def _show(outcome: VideosOutcome, *, json_output: bool) -> None:
    rows: list[Sequence[object]] = []
    for video in outcome.videos:
        for sentence in video.sentences():
            console.warn(f"{sentence}.")
        named = list(video.objects.items())
        objects = ", ".join(f"{name} {count}" for name, count in named[:MAX_CLASSES]) or "nothing"
        more = f" and {len(named) - MAX_CLASSES} more classes" if len(named) > MAX_CLASSES else ""
        time = f"{video.first_time:.2f} to {video.last_time:.2f}"
        tracks = "-" if video.tracks is None else video.tracks
        rows.append([video.lines.stem, video.frames, time, objects + more, tracks])
    if rows:
        columns = ["video", "frames", "time [s]", "detections", "tracks"]
        console.table(f"Detections (on {outcome.device})", columns, rows)
    for video in outcome.videos:
        drawn = f" and {video.video} ({video.codec})" if video.video else ""
        console.result(f"{video.frames} frames: {video.lines}{drawn}")
    if json_output:
        console.result_json(outcome.summary())
    broken = [*outcome.failed, *(video.source for video in outcome.videos if not video.is_whole)]
    if outcome.stopped is not None:
        raise StoppedError(f"stopped: the results so far are complete and in {outcome.folder}", outcome.stopped)
    if broken:
        console.error(
            f"{listed(broken)} cannot be read as a whole; what could be read of the videos is in {outcome.folder}"
        )
        raise typer.Exit(DatasetError.exit_code)
