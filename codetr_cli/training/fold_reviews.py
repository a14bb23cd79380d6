"""Trainings for a review of labels in which no image is judged by a network that has seen it.

The images are divided into folds, similar ones together; a network is trained on all folds but one and detects in that.
Every fold has a folder: `train.json` and `held_out.json`, the run, and the detections. Each is kept, and the same
command continues where it stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codetr_cli.annotations.annotation_json import UnusableFileError, part_of_table, read_json_file
from codetr_cli.annotations.file_names import NameRule
from codetr_cli.annotations.objects import Annotations
from codetr_cli.config.overrides import apply_overrides, replace_settings, user_set
from codetr_cli.config.presets import load_preset, preset_names
from codetr_cli.config.schema import Settings
from codetr_cli.errors import ConfigError, DatasetError
from codetr_cli.evaluation.job import EvalJob
from codetr_cli.evaluation.result_folder import DETECTIONS_NAME, METRICS_NAME
from codetr_cli.files import WEIGHTS_NAME
from codetr_cli.formats.resolve import DataPaths
from codetr_cli.formats.similar import similar_groups
from codetr_cli.inference.loading import find_checkpoint
from codetr_cli.reading import parse_json, read_bytes
from codetr_cli.result_files import ResultRecord, write_result
from codetr_cli.runs.folder import RunFolder
from codetr_cli.training.plan import TrainJob, plan_job
from codetr_cli.weights.checkpoint import content_id, refuse_exported, stored_settings

TRAIN_NAME, HELD_OUT_NAME = "train.json", "held_out.json"
MAX_SHARE = 1.5
"""Images of a group of similar ones, as a multiple of a fold's, from which it is divided: one video may be all."""
NOT_TAKEN = (
    *("data.format", "data.root", "data.extra_roots", "data.annotations", "data.images", "data.train_images"),
    *("data.train_annotations", "data.val_images", "data.val_annotations", "data.bad_files", "data.allow_outside"),
    *("data.max_images", "data.max_pixels", "data.workers", "train.loggers", "train.compile", "train.fsdp"),
    *("train.backbone_weights", "train.timeout_minutes", "train.max_nonfinite_steps", "model.attention_backend"),
)
"""Settings of a checkpoint that a training does not take over: where data is, and what runs on this machine."""
MAX_METRICS_BYTES = 1 << 28


@dataclass(frozen=True)
class Fold:
    """A part of the images.

    Attributes:
        number: from 1.
        count: of all folds.
        folder: of its files.
        images_dir: of the images.
        held_out: paths of the part.
    """

    number: int
    count: int
    folder: Path
    images_dir: Path
    held_out: DataPaths

    @property
    def run(self) -> Path:
        """The run folder of the training on the other parts."""
        return self.folder / "run"

    @property
    def detections_folder(self) -> Path:
        """Of the detections in this part."""
        return self.folder / "eval"

    @cached_property
    def weights(self) -> Path:
        """The weights that its training ends with."""
        return RunFolder(self.run).last / WEIGHTS_NAME

    def is_trained(self) -> bool:
        """Whether the training has ended."""
        return RunFolder(self.run).status() == "finished" and self.weights.is_file()

    def detections(self) -> Path | None:
        """The file of detections of these weights, if it is there and as it was written."""
        return finished_detections(self.detections_folder, self.weights)

    def eval_job(self, *, batch: int | None, precision: str) -> EvalJob:
        """The evaluation of this part."""
        return EvalJob(
            checkpoint=str(self.weights),
            paths=self.held_out,
            split=f"fold {self.number} of {self.count}",
            precision=precision,
            batch=batch,
            masks=False,
            out=self.detections_folder,
            force=True,
        )


@dataclass(frozen=True)
class FoldStart:
    """What the trainings of all folds start from.

    Attributes:
        settings: of the trainings.
        weights: a checkpoint to fine-tune; None: as the preset starts.
        note: a sentence for the user.
        chosen: of a preset, the settings that the user has set; None: all are kept, as those of a checkpoint.
    """

    settings: Settings
    weights: str | None
    note: str
    chosen: frozenset[str] | None = None


def finished_detections(folder: Path, weights: Path) -> Path | None:
    """The detections of a checkpoint in an output folder of an evaluation; None: it is not complete, or of others."""
    path = folder / DETECTIONS_NAME
    record = ResultRecord(folder)
    if not (record.is_own(path) and record.is_own(folder / METRICS_NAME)):
        return None
    try:
        metrics = parse_json(read_bytes(folder / METRICS_NAME, MAX_METRICS_BYTES))
    except (OSError, ValueError):
        return None
    same = isinstance(metrics, dict) and metrics.get("weights") == content_id(weights)
    return path if same else None


def choose_start(
    checkpoint: str, weights: str | None, trained: int | None, overrides: Sequence[str], *, dataset: str
) -> FoldStart:
    """Where the trainings of the folds start.

    A checkpoint that has seen the images must not be fine-tuned, since it would bring what it knows of them.

    Args:
        checkpoint: a file, a run folder or a preset.
        weights: the checkpoint to fine-tune that the user has named; None: a rule decides.
        trained: number of the reviewed images that the checkpoint was trained on; None: not known.
        overrides: of the user.
        dataset: whose rules apply.

    Raises:
        ConfigError: an invalid override, or an exported file.
        CheckpointError: there is no such checkpoint.
    """
    path = find_checkpoint(checkpoint) if not _is_preset(checkpoint) else None
    if path is not None:
        refuse_exported(path)
    stored = None if path is None else stored_settings(path)
    if path is not None and stored is None:
        raise ConfigError(
            f"{checkpoint} has no settings that a training could use: give a preset in its place, e.g. "
            f"codetr review co_dino_r50 --weights {checkpoint} --folds 5"
        )
    chosen: frozenset[str] | None = None
    if stored is None:
        settings = load_preset(checkpoint, list(overrides))
        chosen = frozenset(user_set(settings))
    else:
        defaults = Settings(name="folds")
        kept = {key: _value(defaults, key) for key in NOT_TAKEN}
        settings = apply_overrides(replace_settings(stored, kept), list(overrides))
    settings = replace_settings(settings, {"data.dataset": dataset, "train.early_stop_patience": None})
    if weights is not None:
        return FoldStart(settings, weights, f"each fold is fine-tuned from {weights}", chosen)
    if path is not None and not trained:
        known = "it was trained on other images" if trained == 0 else "as far as is known, it has not seen the images"
        return FoldStart(settings, str(path), f"each fold is fine-tuned from {checkpoint}: {known}")
    why = "" if path is None else f", since {checkpoint} has seen the images; --weights FILE fine-tunes another one"
    note = f"each fold is trained as the preset {settings.name} starts{why}"
    return FoldStart(settings, None, note, chosen)


def divide_into_folds(truth: Annotations, paths: DataPaths, count: int) -> NDArray[np.int64]:
    """(I,) number of the fold of each image, from 0: similar images together, and folds of about equal size.

    The division depends on the names and pixels of the images only.

    Raises:
        DatasetError: there are fewer images, or groups of copies, than folds.
    """
    names = truth.file_names
    similar = similar_groups([paths.images_dir / name for name in names])
    limit = MAX_SHARE * len(names) / count
    sizes = np.bincount(np.array(similar.frames), minlength=len(names))
    # Of a video that is larger than a fold, frames are divided, but copies never.
    groups = [
        frame if sizes[frame] <= limit else copy for frame, copy in zip(similar.frames, similar.copies, strict=True)
    ]
    members: dict[int, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    if len(members) < count:
        raise DatasetError(
            f"--folds {count}: there are {len(names):,} images, {len(members):,} of them different. Give more images "
            "or fewer folds"
        )
    folds = np.zeros(len(names), np.int64)
    filled = np.zeros(count, np.int64)
    for unit in sorted(members.values(), key=lambda indices: (-len(indices), _hash(names[indices[0]]))):
        fold = int(filled.argmin())
        folds[unit] = fold
        filled[fold] += len(unit)
    return folds


def write_folds(folder: Path, truth: Annotations, paths: DataPaths, count: int, *, request: str) -> list[Fold]:
    """Divides the images and writes the annotations of each fold, where they are not there yet.

    Args:
        folder: of all folds.
        truth: all annotations.
        paths: of the images and annotations.
        count: number of folds, at least 2.
        request: see `result_files.Result`.

    Raises:
        DatasetError: images cannot be divided, or their names lead out of the data set.
        ConfigError: other files are in the way.
    """
    paths.names.check(truth.file_names, paths.images_dir, str(paths.annotations_path))
    folds = [
        Fold(
            number,
            count,
            folder / str(number),
            paths.images_dir,
            replace(paths, annotations_path=folder / str(number) / HELD_OUT_NAME, notes=(), warnings=()),
        )
        for number in range(1, count + 1)
    ]
    if all(ResultRecord(fold.folder).is_own(fold.held_out.annotations_path, request=request) for fold in folds):
        return folds
    assigned = divide_into_folds(truth, paths, count)
    try:
        table = read_json_file(paths.annotations_path)
    except UnusableFileError as error:
        raise DatasetError(f"{paths.annotations_path} has changed while it was read: {error.detail}") from error
    for fold in folds:
        held_out = set(truth.image_ids[assigned == fold.number - 1].tolist())
        fold.folder.mkdir(parents=True, exist_ok=True)
        # The held-out part is last: where it is, the other one is, too.
        for name, keep in ((TRAIN_NAME, False), (HELD_OUT_NAME, True)):
            with write_result(fold.folder / name, by="review", request=request) as temporary:
                temporary.write_text(json.dumps(part_of_table(table, held_out, keep=keep)), encoding="utf-8")
    return folds


def fold_job(fold: Fold, start: FoldStart, truth: Annotations) -> TrainJob:
    """The training of a fold.

    Raises:
        DatasetError: a class has no object, or the annotations cannot be read.
    """
    # `write_folds` has checked the names by the rule of the data set, whose folders may be several.
    leads_outside = any(True for _ in NameRule.of(fold.images_dir).outside(truth.file_names, fold.images_dir))
    settings = replace_settings(
        start.settings,
        {
            "data.train_images": str(fold.images_dir.absolute()),
            "data.train_annotations": str((fold.folder / TRAIN_NAME).absolute()),
            "data.allow_outside": start.settings.data.allow_outside or leads_outside,
        },
    )
    return plan_job(settings, weights=start.weights, evaluate=False, run=fold.run, chosen=start.chosen)


def _is_preset(name: str) -> bool:
    return Path(name).suffix == ".toml" or name in preset_names()


def _value(settings: Settings, key: str) -> Any:
    value: Any = settings
    for name in key.split("."):
        value = getattr(value, name)
    return value


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
