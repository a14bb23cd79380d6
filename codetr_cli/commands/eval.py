"""`codetr eval`: evaluates a checkpoint on a dataset: box and mask AP with their protocol, detections and speed."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from codetr_cli import console
from codetr_cli.commands import _options as opt
from codetr_cli.commands._data import evaluated_data, show_notes
from codetr_cli.commands._defaults import Invocation
from codetr_cli.commands._launch import refuse_launch_options, requested, run_placed, worker_output
from codetr_cli.commands._option_values import argument_or_option, data_settings, is_given, refuse_both, tile_options
from codetr_cli.commands._report import RequestedReport, requested_report
from codetr_cli.commands._score_file import score_file
from codetr_cli.commands._scores import show_scores
from codetr_cli.commands._submit import submit_command
from codetr_cli.commands._weights import place_exported, resolve_weights
from codetr_cli.errors import ConfigError
from codetr_cli.files import check_folder
from codetr_cli.number_text import seconds_text

if TYPE_CHECKING:
    import torch

    from codetr_cli.distributed.topology import Request
    from codetr_cli.evaluation.job import EvalJob, EvalOutcome

EXAMPLES = (
    "codetr eval runs/co_dino_r50/1",
    "codetr eval co_dino_r50.safetensors --data /path/to/coco --gpus 8",
    "codetr eval --detections eval/val/detections.json --data /path/to/coco --report",
)
NETWORK_OPTIONS = ("head", "tta", "tiles", "precision", "batch")
"""Of how a network runs."""


def eval(
    context: typer.Context,
    checkpoint: opt.CheckpointArgument = None,
    checkpoint_option: opt.SameCheckpointOption = None,
    data: opt.DataSetsOption = None,
    format: opt.FormatOption = None,
    val_fraction: opt.ValFractionOption = None,
    split: opt.SplitOption = "val",
    images: opt.ImagesOption = None,
    annotations: opt.EvalAnnotationsOption = None,
    detections: opt.DetectionsOption = None,
    head: opt.HeadOption = None,
    tta: opt.TtaOption = False,
    tiles: opt.TilesOption = None,
    overlap: opt.OverlapOption = None,
    boxes_only: opt.BoxesOnlyOption = False,
    scorer: opt.ScorerOption = None,
    protocol: opt.ProtocolOption = True,
    per_class: opt.PerClassOption = False,
    gpus: opt.GpusOption = None,
    device: opt.DeviceOption = "auto",
    procs: opt.ProcsOption = None,
    precision: opt.InferencePrecisionOption = "auto",
    batch: opt.BatchOption = None,
    out: opt.EvalOutOption = None,
    report: opt.EvalReportOption = None,
    force: opt.ForceOption = False,
    json_output: opt.JsonOption = False,
    quiet: opt.QuietOption = False,
    nodes: opt.NodesOption = None,
    rdzv_endpoint: opt.EndpointOption = None,
    node_rank: opt.NodeRankOption = None,
    max_restarts: opt.MaxRestartsOption = None,
    slurm: opt.SlurmOption = False,
    max_images: opt.MaxImagesOption = None,
    overrides: opt.SetOption = None,
) -> None:
    """Evaluate a checkpoint, or score a file of detections.

    Reports box AP, and mask AP if the network predicts masks, by the published protocol: COCO's rules with 100
    detections per image, or LVIS's rules on LVIS. Several processes give the same files as one. The same command
    continues an interrupted evaluation.
    """
    console.set_mode(json=json_output, quiet=quiet)
    check_folder(out, "--out")
    refuse_both(annotations, data)
    cut = tile_options(tiles, overlap, tta=tta)
    overrides = data_settings(
        format=format, val_fraction=val_fraction, annotations=annotations, images=images, overrides=overrides
    )
    checkpoint = argument_or_option(context, "checkpoint", "checkpoint_option")
    if (checkpoint is None) == (detections is None):
        raise ConfigError(
            "give a checkpoint to evaluate, or --detections detections.json to score a file"
            + ("; not both" if checkpoint else ": codetr eval CHECKPOINT")
            + (
                f". {checkpoint} is taken for a checkpoint: names of reports end with .html"
                if checkpoint and report == ""
                else ""
            )
        )
    request = requested(context)
    wanted = requested_report(context, report, folder=None if checkpoint else out, force=force)
    if checkpoint is None:
        refuse_launch_options(context, "scoring a file")
        _check_file_options(context, out, report)
    else:
        checkpoint = resolve_weights(checkpoint) or checkpoint
        overrides = [*place_exported(context, checkpoint), *overrides]
        request = requested(context)
        _check_early(checkpoint, request.device)
    chosen = split if is_given(context, "split") else None
    paths, name = evaluated_data(data, chosen, overrides or [], checkpoint)
    if detections is not None:
        show_notes(paths)
        score_file(
            detections,
            paths,
            overrides=overrides or [],
            masks=not boxes_only,
            max_images=max_images,
            scorer=scorer,
            protocol=protocol,
            per_class=per_class,
            report=wanted,
        )
        return
    assert checkpoint is not None
    from codetr_cli.evaluation.data_choice import data_config
    from codetr_cli.evaluation.job import EvalJob, submitted_folder

    job = EvalJob(
        checkpoint=checkpoint,
        paths=paths,
        split=name,
        overrides=[*([f"test.head={head}"] if head else []), *(overrides or [])],
        precision=precision,
        batch=batch,
        max_images=max_images,
        masks=not boxes_only,
        tta=tta,
        tiles=cut,
        scorer=scorer,
        out=out,
        force=force,
    )
    if slurm:
        invocation: Invocation = context.obj
        config, _ = data_config(overrides or [])
        submit_command(invocation.words, submitted_folder(job), request, name="eval", workers=config.workers)
        return
    outcome = _evaluate(job, request, mode=(json_output, quiet), shown=(protocol, per_class), wanted=wanted)
    if outcome is not None:
        _finish(outcome)


def _check_file_options(context: typer.Context, out: Path | None, report: str | None) -> None:
    """Raises a ConfigError for options that scoring a file of detections would ignore."""
    given = [name for name in NETWORK_OPTIONS if is_given(context, name)]
    if given:
        raise ConfigError(f"--{given[0]} is for a checkpoint: the detections of a file are there already")
    if out is not None and report != "":
        raise ConfigError(
            f"--out {out} is for a report without a name: scoring a file writes nothing else. Add --report, or give "
            "--report FILE alone"
        )


def _check_early(checkpoint: str, device: str) -> None:
    """Reports a missing GPU or checkpoint before any data is read."""
    from codetr_cli.inference.loading import find_checkpoint
    from codetr_cli.runtime.devices import choose_device

    choose_device(device)
    find_checkpoint(checkpoint)


def _evaluate(
    job: EvalJob,
    request: Request,
    *,
    mode: tuple[bool, bool],
    shown: tuple[bool, bool],
    wanted: RequestedReport | None,
) -> EvalOutcome | None:
    """Evaluates in as many processes as requested; None where another process has the outcome.

    `mode` is whether to print JSON, and whether to print results only; `shown` whether to print the protocol, and the
    results of each class; `wanted` is the report.
    """
    from codetr_cli.distributed.process_group import launched_rank
    from codetr_cli.distributed.topology import place
    from codetr_cli.distributed.worker_errors import EVALUATION

    placement = place(request, EVALUATION)
    if launched_rank() == 0:
        show_notes(job.paths)
    outcome: EvalOutcome | None = run_placed(_evaluate_here, (job, placement.device, *mode, *shown, wanted), placement)
    return outcome


def _evaluate_here(
    job: EvalJob,
    device: torch.device,
    json_output: bool,
    quiet: bool,
    protocol: bool,
    per_class: bool,
    wanted: RequestedReport | None,
) -> EvalOutcome | None:
    """Evaluates in this process, alone or as one of several; shows the progress of all, and the numbers."""
    from codetr_cli.evaluation.job import run_evaluation

    with worker_output(json=json_output, quiet=quiet):
        return run_evaluation(
            job,
            device=device,
            show=lambda total, done: console.progress("evaluating", total, done=done),
            report=lambda outcome: _report(outcome, job, protocol=protocol, per_class=per_class),
            finish=None if wanted is None else partial(wanted.of_outcome, job),
        )


def _finish(outcome: EvalOutcome) -> None:
    """Prints where the files are.

    Raises:
        ResourceError: they, or the report, could not be written.
    """
    from codetr_cli.errors import ResourceError

    if outcome.unwritten:
        error = ResourceError(outcome.unwritten)
        failed = {"detections": None, "error": str(error), "exit_code": error.exit_code}
        console.result_json({**outcome.summary, **failed})
        raise error
    console.result(f"Detections: {outcome.summary['detections']}")
    if outcome.unreported:
        error = ResourceError(f"the evaluation is done, but there is no report: {outcome.unreported}")
        failed = {"report": None, "error": str(error), "exit_code": error.exit_code}
        console.result_json({**outcome.summary, **failed})
        raise error
    if "report" in outcome.summary:
        console.result(f"Report: {outcome.summary['report']['html']}")
    console.result_json(outcome.summary)


def _report(outcome: EvalOutcome, job: EvalJob, *, protocol: bool, per_class: bool) -> None:
    """Prints the numbers of an evaluation."""
    summary, speed = outcome.summary, outcome.summary["speed"]
    if outcome.warning:
        console.warn(outcome.warning)
    show_scores(outcome.metrics, outcome.per_class if per_class else [], f"{job.split}, {outcome.images} images")
    if protocol:
        console.result(f"Protocol: {summary['protocol']}.")
    if outcome.published is not None:
        console.result(outcome.published.sentence(outcome.metrics))
    scoring = f"scoring {seconds_text(speed['scoring_seconds'])}"
    by = f"by {speed['processes']} processes " if speed["processes"] > 1 else ""
    if speed["images"]:
        console.result(
            f"Speed: {speed['images_per_second']:.2f} images/s {by}on {speed['device']}, batch {speed['batch']}; per "
            f"image {speed['data_ms']:.1f} ms waiting for data, {speed['model_ms']:.1f} ms network, "
            f"{speed['postprocess_ms']:.1f} ms post-processing; {scoring}."
        )
    else:
        console.result(f"Speed: all images were done before; {scoring}.")
