"""`codetr review`: suspected label errors of a data set, ranked, with pictures and proposals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codetr_cli import console
from codetr_cli.commands import _options as opt
from codetr_cli.commands._defaults import Invocation
from codetr_cli.commands._review_inputs import (
    DetectionRun,
    check_weights,
    detect,
    detect_in_folds,
    find_reviewed,
    fold_start,
    place_review,
    read_inputs,
)
from codetr_cli.commands._weights import place_exported, resolve_weights
from codetr_cli.commands.eval import show_notes
from codetr_cli.errors import ConfigError, nearest
from codetr_cli.files import check_folder

if TYPE_CHECKING:
    from codetr_cli.analysis.inputs import AnalysisInputs
    from codetr_cli.analysis.label_errors import LabelError
    from codetr_cli.annotations.objects import Annotations
    from codetr_cli.formats.resolve import DataPaths
    from codetr_cli.report.review_files import ReviewFiles
    from codetr_cli.training.fold_reviews import FoldStart

EXAMPLES = (
    "codetr review runs/co_dino_r50/1 --data my_data --split val",
    "codetr review runs/co_dino_r50/1 --data my_data --folds 5",
    "codetr review --detections detections.json --data my_data --format cvat",
)
REVIEW = "Review"
SHOWN = 20
"""Findings in the terminal; all are in the files."""
WEAK = 0.7
"""Share of the surest detections that are annotated objects, below which findings are few."""
WIDE = 100
"""Characters of a line from which the reasons are in the table of the terminal."""


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
        opt.option("--kinds", "KIND", "missing, class, loose, duplicate, crowd. Several: missing,class.", REVIEW),
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

    Missing boxes, wrong classes, loose boxes, duplicates and crowds, by what a model detects: in the terminal, as a
    page with pictures, and as proposals for a labelling tool. Annotations are never changed. A model repeats errors
    that it was trained on: --folds trains models for this. The same command continues an interrupted one.
    """
    console.set_mode(json=json_output, quiet=quiet)
    check_folder(out, "--out")
    opt.refuse_both(annotations, data)
    checkpoint = opt.argument_or_option(context, "checkpoint", "checkpoint_option")
    _check_sources(checkpoint, detections, folds, weights)
    chosen_kinds, formats = _kinds(kinds), _formats(format)
    overrides = opt.data_settings(annotations=annotations, images=images, overrides=overrides)
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
    trained, warnings = _seen(checkpoint, paths, truth, folds)
    asked: dict[str, Any] = {
        "checkpoint": checkpoint,
        "detections": detections,
        "annotations": paths.annotations_path,
        "images_dir": str(paths.images_dir.absolute()),
        "folds": folds,
        "weights": weights,
        "overrides": overrides,
    }
    request = request_digest(**asked, state=_state(checkpoint))
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
        shown_facts=_shown_facts(facts, inputs),
        warnings=warnings,
        total=len(found),
        request=request,
        force=force,
    )
    _report(found[:limit], len(found), inputs, written, warnings, facts)


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

    if not given:
        return list(KINDS)
    by_word = {word: kind for kind in KINDS for word in (kind, *kind.split()) if word != "box"}
    words = [word.strip() for text in given for word in text.split(",")]
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

    words = [word.strip() for text in given or ["coco"] for word in text.split(",")]
    for word in words:
        if word not in FORMATS:
            raise ConfigError(f"--format {word}: there is no such format of proposals; {nearest(word, list(FORMATS))}")
    return list(dict.fromkeys(words))


def _state(checkpoint: str | None) -> Path | None:
    """The file of a checkpoint, whose content a request depends on."""
    from codetr_cli.config.presets import preset_names
    from codetr_cli.inference.loading import find_checkpoint

    return None if checkpoint is None or checkpoint in preset_names() else find_checkpoint(checkpoint)


def _seen(
    checkpoint: str | None, paths: DataPaths, truth: Annotations, folds: int | None
) -> tuple[int | None, list[str]]:
    """How many of the images a checkpoint was trained on, and a warning if there are any; None: not known."""
    from codetr_cli.evaluation.trained_images import count_trained

    path = _state(checkpoint)
    trained = None if path is None else count_trained(path, paths, truth.file_names)
    if not trained or folds is not None:
        return trained, []
    warning = (
        f"{checkpoint} was trained on {trained:,} of these {len(truth.file_names):,} images: a model repeats errors of "
        "annotation that it has learned, so that fewer are found. --folds 5 trains models that have not seen the "
        "images that they judge."
    )
    console.warn(warning)
    return trained, [warning]


def _shown_facts(facts: Mapping[str, Any], inputs: AnalysisInputs) -> dict[str, str]:
    """What the page says at its head."""
    from codetr_cli.annotations.cache import source_of

    shown = {
        "Checkpoint": facts["checkpoint"],
        "Detections": facts["detections"],
        "Folds": facts["folds"] and f"{facts['folds']}: each image is judged by a model that has not seen it",
        "Annotations": source_of(facts["annotations"]).name,
        "Images": f"{len(inputs.image_ids):,} in {facts['images_dir']}",
        "Command": facts["command"],
    }
    return {name: str(value) for name, value in shown.items() if value}


def _report(
    errors: Sequence[LabelError],
    total: int,
    inputs: AnalysisInputs,
    written: ReviewFiles,
    warnings: Sequence[str],
    facts: Mapping[str, Any],
) -> None:
    """Prints the findings and where the files are."""
    from codetr_cli.report.review_report import counts_of, review_json

    files = {
        "page": str(written.page),
        "table": str(written.table),
        "proposals": {layout: str(path) for layout, path in written.proposals.items()},
    }
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in facts.items()}
    console.result_json(
        {**review_json(errors, inputs, {**plain, "warnings": list(warnings)}, total=total), "files": files}
    )
    listed = "" if total == len(errors) else f", the {len(errors):,} most suspicious listed"
    objects, images = len(inputs.object_rows), len(inputs.image_ids)
    console.result(f"{total:,} suspected label errors in {objects:,} annotations of {images:,} images{listed}.")
    if errors:
        counts = counts_of(errors)
        console.table("By kind", list(counts), [list(counts.values())])
        _show_findings(errors, inputs)
    console.result(f"Page: {written.page}")
    for layout, path in written.proposals.items():
        console.result(f"Proposals ({layout}): {path}")


def _show_findings(errors: Sequence[LabelError], inputs: AnalysisInputs) -> None:
    from codetr_cli.report.review_report import PROPOSALS

    truth = inputs.ground_truth
    names = dict(zip(truth.category_ids, truth.class_names, strict=True))
    is_wide = console.columns() >= WIDE
    rows = []
    for number, error in enumerate(errors[:SHOWN], 1):
        annotated = None if error.object_row is None else truth.class_names[truth.labels[error.object_row]]
        proposed = None if error.action == "remove" else names[error.category_id]
        cells = [number, error.kind, f"{error.score:.2f}", inputs.file_name(error.image), annotated, proposed]
        rows.append([*cells, error.explanation if is_wide else PROPOSALS[error.action]])
    more = f", all {len(errors):,} are in the files" if len(errors) > SHOWN else ""
    columns = ["", "kind", "suspicion", "image", "annotated", "proposed", "why" if is_wide else "proposal"]
    console.table(f"The most suspicious{more}", columns, rows)
