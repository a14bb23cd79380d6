"""`codetr review`: suspected label errors of a data set, ranked, with pictures and proposals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codetr_cli import console
from codetr_cli.commands import _options as opt
from codetr_cli.commands._data import show_notes
from codetr_cli.commands._defaults import Invocation
from codetr_cli.commands._option_values import argument_or_option, data_settings, refuse_both, separated
from codetr_cli.commands._review_findings import show_review, shown_facts
from codetr_cli.commands._review_inputs import (
    DetectionRun,
    check_weights,
    detect,
    detect_in_folds,
    find_reviewed,
    fold_start,
    place_review,
    read_inputs,
    seen_images,
    weights_file,
)
from codetr_cli.commands._weights import place_exported, resolve_weights
from codetr_cli.errors import ConfigError, nearest
from codetr_cli.files import check_folder

if TYPE_CHECKING:
    from codetr_cli.training.fold_reviews import FoldStart

EXAMPLES = (
    "codetr review runs/co_dino_r50/1 --data my_data --split val",
    "codetr review runs/co_dino_r50/1 --data my_data --folds 5",
    "codetr review --detections detections.json --data my_data --format cvat",
)
REVIEW = "Review"
WEAK = 0.8
"""Share of the surest detections that are annotated objects, below which findings are few.

With errors of each kind in 5 % of the objects, a network with AP50 0.43 had 0.79 and found 7 % of the missing boxes;
made-up detectors that found 42 to 81 % of them had 0.87 to 0.88."""


def review(
    context: typer.Context,
    checkpoint: opt.CheckpointArgument = None,
    checkpoint_option: opt.SameCheckpointOption = None,
    data: opt.DataSetsOption = None,
    split: Annotated[
        opt.Split | None, opt.option("--split", "NAME", "Default: val; with --folds train.", opt.INPUT)
    ] = None,
    images: opt.ImagesOption = None,
    annotations: opt.EvalAnnotationsOption = None,
    detections: Annotated[
        Path | None, opt.option("--detections", "FILE", "JSON of any detector, instead of a checkpoint.", opt.INPUT)
    ] = None,
    folds: Annotated[
        int | None,
        opt.option(
            "--folds", "K", "Train K models, so that none judges images that it has seen.", REVIEW, min=2, max=100
        ),
    ] = None,
    weights: Annotated[
        str | None,
        opt.option("--weights", "FILE", "With --folds: fine-tune this checkpoint, which has not seen them.", REVIEW),
    ] = None,
    kinds: Annotated[
        list[str] | None,
        opt.option(
            "--kinds", "KIND", "missing, class, loose, duplicate, crowd, spurious. Several: missing,class.", REVIEW
        ),
    ] = None,
    suspicion: Annotated[
        float, opt.option("--suspicion", "S", "The lowest that is listed, 0 to 1.", REVIEW, min=0, max=1)
    ] = 0.4,
    limit: Annotated[int, opt.option("--limit", "N", "The N most suspicious findings.", REVIEW, min=1)] = 200,
    format: Annotated[
        list[str] | None,
        opt.option(
            "--format", "FMT", "Of the proposals: coco (default), cvat, labelme. Several: coco,cvat.", opt.OUTPUT
        ),
    ] = None,
    out: Annotated[
        Path | None, opt.option("--out", "DIR", "Default: review/NAME, or the next free one.", opt.OUTPUT)
    ] = None,
    force: opt.ForceOption = False,
    json_output: opt.JsonOption = False,
    quiet: opt.QuietOption = False,
    gpus: opt.GpusOption = None,
    device: opt.DeviceOption = "auto",
    procs: opt.ProcsOption = None,
    precision: opt.InferencePrecisionOption = "auto",
    batch: opt.BatchOption = None,
    overrides: opt.SetOption = None,
) -> None:
    """List suspected label errors of a data set, the most suspicious first.

    Missing, loose and spurious boxes, wrong classes, duplicates and crowds, by what a model detects: in the terminal,
    as a page with pictures, and as proposals for a labelling tool. Annotations are never changed. A model repeats
    errors that it was trained on: --folds trains models for this. The same command continues an interrupted one.
    """
    console.set_mode(json=json_output, quiet=quiet)
    check_folder(out, "--out")
    refuse_both(annotations, data)
    checkpoint = argument_or_option(context, "checkpoint", "checkpoint_option")
    _check_sources(checkpoint, detections, folds, weights)
    chosen_kinds, formats = _kinds(kinds), _formats(format)
    overrides = data_settings(annotations=annotations, images=images, overrides=overrides)
    if checkpoint is not None:
        checkpoint = resolve_weights(checkpoint) or checkpoint
        overrides = [*place_exported(context, checkpoint), *overrides]
    weights = resolve_weights(weights)
    judged_by = checkpoint if folds is None else None  # the data that it was trained on decides which images it judges
    paths, name = find_reviewed(data, split, overrides, judged_by, folds=folds)

    from codetr_cli.annotations.objects import read_annotations
    from codetr_cli.distributed.part_files import request_digest
    from codetr_cli.prediction.labels.layouts import check_class_names
    from codetr_cli.report.review_files import open_review_folder

    show_notes(paths)
    truth = read_annotations(paths.annotations_path, with_outlines=True)
    check_class_names(formats, truth.class_names)  # before hours of training
    trained, warnings = seen_images(checkpoint, paths, truth, folds)
    asked: dict[str, Any] = {
        "checkpoint": checkpoint,
        "detections": detections,
        "annotations": paths.annotations_path,
        "images_dir": "" if paths.images_dir == Path() else str(paths.images_dir.absolute()),
        "folds": folds,
        "weights": weights,
        "overrides": overrides,
    }
    request = request_digest(**asked, state=weights_file(checkpoint))
    # What fails is found before there is a folder.
    inputs = None if detections is None else read_inputs([detections], paths, truth)
    start: FoldStart | None = None
    if checkpoint is not None and folds is not None:
        start = fold_start(checkpoint, weights, trained, overrides, paths, truth)
    elif checkpoint is not None:
        check_weights(checkpoint)
    folder = open_review_folder(out or Path("review") / name, request, asked, force=force)
    if inputs is None:
        assert checkpoint is not None
        run = DetectionRun(place_review(device, gpus, procs, folds), precision, batch, (json_output, quiet))
        if start is None or folds is None:
            files = [detect(checkpoint, paths, name, folder, overrides, run)]
        else:
            files = detect_in_folds(start, folder, paths, truth, count=folds, request=request, run=run)
        if None in files:  # a process without the results
            return
        inputs = read_inputs([file for file in files if file is not None], paths, truth)

    from codetr_cli.analysis.label_errors import find_label_errors
    from codetr_cli.analysis.label_evidence import gather_evidence
    from codetr_cli.report.review_files import write_review

    evidence = gather_evidence(inputs)
    found = find_label_errors(inputs, kinds=chosen_kinds, listed_from=suspicion, evidence=evidence)
    warnings += _weakness(evidence.presence.surest, len(inputs.detections))
    invocation: Invocation = context.obj
    facts = {**asked, "trained_on": trained, "command": invocation.command}
    written = write_review(
        folder,
        found[:limit],
        inputs,
        formats=formats,
        facts={key: str(value) if isinstance(value, Path) else value for key, value in facts.items()},
        shown_facts=shown_facts(facts, inputs),
        warnings=warnings,
        total=len(found),
        request=request,
        force=force,
    )
    show_review(found[:limit], len(found), inputs, written, warnings, facts)


def _check_sources(checkpoint: str | None, detections: Path | None, folds: int | None, weights: str | None) -> None:
    """Raises a ConfigError for options that exclude or need each other."""
    if (checkpoint is None) == (detections is None):
        raise ConfigError(
            "give a checkpoint whose detections are compared with the annotations, or --detections detections.json"
            + ("; not both" if checkpoint else ": codetr review CHECKPOINT --data DIR")
        )
    if detections is not None and folds is not None:
        raise ConfigError("--folds trains models for a checkpoint's settings; --detections has no model to train")
    if weights is not None and folds is None:
        raise ConfigError("--weights is what --folds fine-tunes: give --folds, or the checkpoint as the argument")


def _weakness(surest: float, detections: int) -> list[str]:
    """A warning where few of the surest detections are annotated objects, so that no finding says little."""
    if detections == 0:
        warning = "there are no detections: only annotations that overlap each other can be found"
    elif surest < WEAK:
        warning = (
            f"only {100 * surest:.0f} % of the surest detections are annotated objects: a model that agrees so little "
            "with the annotations finds few of their errors. Train it longer, or review the data with another model."
        )
    else:
        return []
    console.warn(warning)
    return [warning]


def _kinds(given: Sequence[str] | None) -> list[Any]:
    """The kinds of findings of the option, each by a word of its name.

    Raises:
        ConfigError: there is no such kind.
    """
    from codetr_cli.analysis.label_errors import KINDS

    by_word = {word: kind for kind in KINDS for word in (kind, *kind.split()) if word != "box"}
    words = separated(given, "")
    if words == [""]:
        return list(KINDS)
    for word in words:
        if word not in by_word:
            raise ConfigError(f"--kinds {word}: there is no such kind of label error; {nearest(word, sorted(by_word))}")
    return [kind for kind in KINDS if kind in {by_word[word] for word in words}]


def _formats(given: Sequence[str] | None) -> list[Any]:
    """The formats of proposals.

    Raises:
        ConfigError: there is no such format.
    """
    from codetr_cli.report.review_proposals import FORMATS

    words = separated(given, "coco")
    for word in words:
        if word not in FORMATS:
            raise ConfigError(f"--format {word}: there is no such format of proposals; {nearest(word, list(FORMATS))}")
    return list(dict.fromkeys(words))
