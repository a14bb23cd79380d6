"""`codetr eval`: evaluates a checkpoint on a dataset: box and mask AP with their protocol, detections and speed."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from codetr_cli import console
from codetr_cli.commands import _options as opt
from codetr_cli.commands._defaults import Invocation
from codetr_cli.commands._launch import refuse_launch_options, requested, run_placed, worker_output
from codetr_cli.commands._report import RequestedReport, requested_report
from codetr_cli.commands._submit import submit_command
from codetr_cli.commands._weights import place_exported, resolve_weights
from codetr_cli.errors import ConfigError
from codetr_cli.files import check_folder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from codetr_cli.distributed.topology import Request
    from codetr_cli.evaluation.job import EvalJob, EvalOutcome
    from codetr_cli.evaluation.scoring import ClassScore
    from codetr_cli.formats.resolve import DataPaths

EXAMPLES = (
    "codetr eval runs/co_dino_r50/1",
    "codetr eval co_dino_r50.safetensors --data /path/to/coco --gpus 8",
    "codetr eval --detections eval/val/detections.json --data /path/to/coco --report",
)
CLASS_COLUMNS = {
    "name": "class",
    "category_id": "category id",
    "frequency": "frequency",
    "objects": "objects",
    "AP": "AP",
    "AP50": "AP50",
    "mask_AP": "mask AP",
    "mask_AP50": "mask AP50",
}
"""Columns of the table of classes -> their titles; a column that no class has a value for is not shown."""


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
    opt.refuse_both(annotations, data)
    tile_options = opt.tile_options(tiles, overlap, tta=tta)
    overrides = opt.data_settings(
        format=format, val_fraction=val_fraction, annotations=annotations, images=images, overrides=overrides
    )
    checkpoint = opt.argument_or_option(context, "checkpoint", "checkpoint_option")
    if (checkpoint is None) == (detections is None):
        raise ConfigError(
            "give a checkpoint to evaluate, or --detections detections.json to score a file"
            + ("; not both" if checkpoint else ": codetr eval CHECKPOINT")
        )
    request = requested(context)
    wanted = requested_report(context, report, force=force)
    if checkpoint is None and tiles is not None:
        raise ConfigError("--tiles is for a checkpoint: the detections of a file are there already")
    if checkpoint is None:
        refuse_launch_options(context, "scoring a file")
    else:
        checkpoint = resolve_weights(checkpoint) or checkpoint
        overrides = [*place_exported(context, checkpoint), *overrides]
        request = requested(context)
        _check_early(checkpoint, request.device)
    source = context.get_parameter_source("split")
    is_chosen = source is not None and source.name != "DEFAULT"
    paths, name = evaluated_data(data, split if is_chosen else None, overrides or [], checkpoint)
    if detections is not None:
        show_notes(paths)
        _score_file(
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
        tiles=tile_options,
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


def _check_early(checkpoint: str, device: str) -> None:
    """Reports a missing GPU or checkpoint before any data is read."""
    from codetr_cli.inference.loading import find_checkpoint
    from codetr_cli.runtime.devices import choose_device

    choose_device(device)
    find_checkpoint(checkpoint)


def show_notes(paths: DataPaths) -> None:
    """Prints how data were found, and warnings about them."""
    for note in paths.notes:
        console.info(note)
    for warning in paths.warnings:
        console.warn(warning)


def evaluated_data(
    data: Sequence[str] | None, split: opt.Split | None, overrides: Sequence[str], checkpoint: str | None
) -> tuple[DataPaths, str]:
    """Where images and annotations are, and a name for them; no checkpoint: images are not needed.

    The data that the checkpoint was trained on plays no part, except that the same images are reserved for validation.
    """
    from codetr_cli.evaluation.data_choice import choose_data, data_config
    from codetr_cli.formats.resolve import unused_roots

    config, chosen = data_config(overrides)
    unused: tuple[str, ...] = ()
    if data:
        unused = unused_roots(config, data)
        config = config.model_copy(update={"root": data[0], "extra_roots": tuple(data[1:]), "annotations": None})
    found, name = choose_data(config, chosen, split, checkpoint)
    return replace(found, warnings=(*found.warnings, *unused)), name


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
    _show(outcome.metrics, outcome.per_class if per_class else [], f"{job.split}, {outcome.images} images")
    if protocol:
        console.result(f"Protocol: {summary['protocol']}.")
    if outcome.published is not None:
        console.result(outcome.published.sentence(outcome.metrics))
    scoring = f"scoring {console.seconds_text(speed['scoring_seconds'])}"
    by = f"by {speed['processes']} processes " if speed["processes"] > 1 else ""
    if speed["images"]:
        console.result(
            f"Speed: {speed['images_per_second']:.2f} images/s {by}on {speed['device']}, batch {speed['batch']}; per "
            f"image {speed['data_ms']:.1f} ms waiting for data, {speed['model_ms']:.1f} ms network, "
            f"{speed['postprocess_ms']:.1f} ms post-processing; {scoring}."
        )
    else:
        console.result(f"Speed: all images were done before; {scoring}.")


def _score_file(
    file: Path,
    paths: DataPaths,
    *,
    overrides: Sequence[str],
    masks: bool,
    max_images: int | None,
    scorer: opt.ScorerName | None,
    protocol: bool,
    per_class: bool,
    report: RequestedReport | None,
) -> None:
    """Scores a file of detections by the rules of the dataset that the annotations belong to."""
    from codetr_cli.annotations.objects import check_kind, read_annotations
    from codetr_cli.evaluation.backends import choose_backend, scorer_version
    from codetr_cli.evaluation.data_choice import data_config
    from codetr_cli.evaluation.detection_files import read_detection_file
    from codetr_cli.evaluation.detection_records import has_masks, match_detections
    from codetr_cli.evaluation.protocol import metric_names
    from codetr_cli.evaluation.scoring import score_detections

    config, named = data_config(overrides)
    content = read_detection_file(file)
    masks = masks and has_masks(content)
    ground_truth = read_annotations(paths.annotations_path, with_outlines=masks)
    if "data.dataset" in named:
        check_kind(ground_truth, config.dataset, paths.annotations_path)
    matched = match_detections(content, ground_truth, str(paths.annotations_path), with_masks=masks)
    del content  # gigabytes
    detections = matched.table
    for note in matched.notes:
        console.info(f"{note}.")
    for hint in matched.hints:
        console.warn(f"{hint}.")
    chosen = choose_backend(scorer, len(detections))
    image_ids = ground_truth.image_ids[:max_images].tolist()
    scores = score_detections(ground_truth, detections, image_ids, where=str(paths.annotations_path), scorer=chosen)
    metrics, convention = metric_names(lvis=ground_truth.is_lvis, masks=masks)
    described = (
        f"{len(detections)} detections of {file}; {paths.annotations_path.stem}, {scores.images} images; {metrics} "
        f"metrics by {scorer_version(chosen)}: {convention}"
    )
    _show(scores.metrics, scores.per_class if per_class else [], f"{file.name}, {scores.images} images")
    if protocol:
        console.result(f"Protocol: {described}.")
    written: dict[str, Any] = {}
    if report is not None:
        written["report"] = report.of_file(
            file,
            detections,
            scores,
            ground_truth,
            paths,
            image_ids=image_ids,
            protocol=described,
            notes=[f"{note}." for note in (*matched.notes, *matched.hints)],
        )
        console.result(f"Report: {written['report']['html']}")
    console.result_json(
        {
            **scores.metrics,
            "annotations": str(paths.annotations_path),
            "images": scores.images,
            "objects": scores.objects,
            "protocol": described,
            "per_class": [score.as_dict() for score in scores.per_class],
            "detections": str(file),
            "notes": matched.notes,
            "warnings": matched.hints,
            **written,
        }
    )


def _show(metrics: Mapping[str, float], per_class: Sequence[ClassScore], what: str) -> None:
    for subject, prefix in (("Box", ""), ("Mask", "mask_")):
        for kind, start in (("precision", "AP"), ("recall", "AR")):
            names = [name.removeprefix(prefix) for name in metrics if name.startswith(prefix + start)]
            if names:
                values = [_metric_text(metrics[prefix + name]) for name in names]
                console.table(f"{subject} {kind} ({what})", names, [values])
    if per_class:
        tables = [score.as_dict() for score in per_class]
        columns = [name for name in CLASS_COLUMNS if any(name in table for table in tables)]
        rows = [
            [_metric_text(table[name]) if "AP" in name and name in table else table.get(name) for name in columns]
            for table in tables
        ]
        console.table("Per class", [CLASS_COLUMNS[name] for name in columns], rows)


def _metric_text(value: float) -> str:
    """Three digits as in COCO's tables; a dash where there are no objects."""
    return "-" if value < 0 else f"{value:.3f}"
