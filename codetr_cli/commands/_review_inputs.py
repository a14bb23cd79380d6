"""The data of `codetr review`, and detections: of a checkpoint, or of a model for each fold that is trained here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from codetr_cli import console
from codetr_cli.commands import _options as opt
from codetr_cli.commands._data import evaluated_data, named_data, show_matching
from codetr_cli.commands._launch import run_placed, worker_output
from codetr_cli.commands.train import train_here
from codetr_cli.errors import ConfigError, ResourceError

if TYPE_CHECKING:
    import torch

    from codetr_cli.analysis.inputs import AnalysisInputs
    from codetr_cli.annotations.objects import Annotations
    from codetr_cli.distributed.topology import Placement
    from codetr_cli.evaluation.job import EvalJob, EvalOutcome
    from codetr_cli.formats.resolve import DataPaths
    from codetr_cli.training.fold_reviews import Fold, FoldStart


def find_reviewed(
    data: Sequence[str] | None,
    split: opt.Split | None,
    overrides: Sequence[str],
    checkpoint: str | None,
    *,
    folds: int | None,
) -> tuple[DataPaths, str]:
    """Where images and annotations are, and a name for them; no checkpoint: none that judges them all."""
    from codetr_cli.evaluation.data_choice import choose_reviewed

    overrides = [each for each in overrides if each.strip().startswith("data.")]
    if checkpoint is not None:
        return evaluated_data(data, split, overrides, checkpoint)
    config, chosen, unused = named_data(data, overrides)
    default: opt.Split = "train" if folds else "val"
    found, name = choose_reviewed(config, chosen, split, default=default, needs_images=folds is not None)
    return replace(found, warnings=(*found.warnings, *unused)), name


@dataclass(frozen=True)
class DetectionRun:
    """How detections are made.

    Attributes:
        placement: of the processes.
        precision: of inference.
        batch: images at once; None: the settings'.
        mode: whether to print JSON, and whether to print results only.
    """

    placement: Placement
    precision: str
    batch: int | None
    mode: tuple[bool, bool]


def place_review(device: str, gpus: int | None, procs: int | None, folds: int | None) -> Placement:
    from codetr_cli.distributed.topology import Request, place
    from codetr_cli.distributed.worker_errors import EVALUATION, TRAINING

    return place(Request(device=device, gpus=gpus, procs=procs), TRAINING if folds else EVALUATION)


def check_weights(checkpoint: str) -> None:
    """Raises a ConfigError for a preset without weights on this machine."""
    from codetr_cli.inference.loading import find_checkpoint

    if find_checkpoint(checkpoint) is None:
        raise ConfigError(
            f"{checkpoint} is a preset without weights here, whose detections mean nothing: give a checkpoint, or "
            "--folds 5, which trains it"
        )


def fold_start(
    checkpoint: str,
    weights: str | None,
    trained: int | None,
    overrides: Sequence[str],
    paths: DataPaths,
    truth: Annotations,
) -> FoldStart:
    """What the trainings of the folds start from; says so."""
    from codetr_cli.annotations.objects import dataset_of
    from codetr_cli.training.fold_reviews import choose_start

    dataset = dataset_of(truth.is_lvis, paths.dataset or "coco")
    start = choose_start(checkpoint, weights, trained, overrides, dataset=dataset)
    console.info(f"{start.note}.")
    return start


def detect(
    checkpoint: str, paths: DataPaths, name: str, folder: Path, overrides: Sequence[str], run: DetectionRun
) -> Path | None:
    """The file of detections of a checkpoint, made now unless it is there; None in a process without it."""
    from codetr_cli.evaluation.job import EvalJob
    from codetr_cli.inference.loading import find_checkpoint
    from codetr_cli.training.fold_reviews import finished_detections

    path = find_checkpoint(checkpoint)
    assert path is not None  # `check_weights`
    done = finished_detections(folder / "eval", path)
    if done is not None:
        console.info(f"detections are there already: {done}")
        return done
    job = EvalJob(
        checkpoint=checkpoint,
        paths=paths,
        split=name,
        overrides=overrides,
        precision=run.precision,
        batch=run.batch,
        masks=False,
        out=folder / "eval",
        force=True,
    )
    return _evaluated(job, run)


def _detect_here(job: EvalJob, device: torch.device, json_output: bool, quiet: bool) -> EvalOutcome | None:
    """Detects in this process, alone or as one of several."""
    from codetr_cli.evaluation.job import run_evaluation

    def report(outcome: EvalOutcome) -> None:
        if outcome.warning:
            console.warn(outcome.warning)
        console.info(f"AP {outcome.metrics['AP']:.3f} with these annotations ({job.split}, {outcome.images:,} images)")

    with worker_output(json=json_output, quiet=quiet):
        return run_evaluation(
            job,
            device=device,
            show=lambda total, done: console.progress("detecting", total, done=done),
            report=report,
        )


def _evaluated(job: EvalJob, run: DetectionRun) -> Path | None:
    """The file of detections of an evaluation.

    Raises:
        ResourceError: it could not be written.
    """
    outcome: EvalOutcome | None = run_placed(_detect_here, (job, run.placement.device, *run.mode), run.placement)
    if outcome is None:
        return None
    if outcome.unwritten:
        raise ResourceError(outcome.unwritten)
    return Path(outcome.summary["detections"])


def detect_in_folds(
    start: FoldStart,
    folder: Path,
    paths: DataPaths,
    truth: Annotations,
    *,
    count: int,
    request: str,
    run: DetectionRun,
) -> list[Path | None]:
    """The detections of each fold by a model that was trained on the others."""
    from codetr_cli.training.fold_reviews import write_folds

    folds = write_folds(folder / "folds", truth, paths, count, request=request)
    files: list[Path | None] = []
    for fold in folds:
        if not fold.is_trained():
            _train(fold, start, truth, run)
        done = fold.detections()
        if done is None:
            console.info(f"fold {fold.number} of {count}: detecting in its images")
            done = _evaluated(fold.eval_job(batch=run.batch, precision=run.precision), run)
        files.append(done)
    return files


def _train(fold: Fold, start: FoldStart, truth: Annotations, run: DetectionRun) -> None:
    """Trains on all folds but one, or continues that."""
    from codetr_cli.training.fold_reviews import fold_job
    from codetr_cli.training.preview import check_settings
    from codetr_cli.training.setup import choose_for

    job = fold_job(fold, start, truth)
    check_settings(job.settings, run.placement.device, run.placement.world_size)
    console.info(f"fold {fold.number} of {fold.count}: training on the other images, in {fold.run}")
    choice = None if run.placement.agreed else choose_for(job)
    run_placed(train_here, (job, run.placement.device, choice, *run.mode), run.placement)


def read_inputs(files: Sequence[Path], paths: DataPaths, truth: Annotations) -> AnalysisInputs:
    """What is compared: the detections of some files, and the annotations."""
    from codetr_cli.analysis.inputs import AnalysisInputs
    from codetr_cli.evaluation.detection_files import read_detection_file
    from codetr_cli.evaluation.detection_records import match_detections
    from codetr_cli.inference.detections import DetectionTable

    tables = []
    for file in files:
        matched = match_detections(read_detection_file(file), truth, str(paths.annotations_path), with_masks=False)
        show_matching(matched)
        tables.append(matched.table)
    return AnalysisInputs.of(truth, DetectionTable.join(tables), paths)


def weights_file(checkpoint: str | None) -> Path | None:
    """The file of a checkpoint, whose content a request depends on."""
    from codetr_cli.config.presets import preset_names
    from codetr_cli.inference.loading import find_checkpoint

    return None if checkpoint is None or checkpoint in preset_names() else find_checkpoint(checkpoint)


def seen_images(
    checkpoint: str | None, paths: DataPaths, truth: Annotations, folds: int | None
) -> tuple[int | None, list[str]]:
    """How many of the images a checkpoint was trained on, and a warning if there are any; None: not known."""
    from codetr_cli.evaluation.trained_images import count_trained

    path = weights_file(checkpoint)
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
