"""A training command resolved before anything is built: classes, batch sizes, number of steps, data and weights.

The classes come from the annotations of the training images.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from codetr_cli.annotations.cache import content_digest, source_of
from codetr_cli.annotations.objects import Annotations, check_kind, dataset_of, read_annotations, unmatched_classes
from codetr_cli.config.data_settings import DatasetName
from codetr_cli.config.overrides import replace_settings
from codetr_cli.config.schema import Settings
from codetr_cli.errors import ConfigError, DatasetError, listed
from codetr_cli.formats.resolve import DataPaths, find_data, unused_roots
from codetr_cli.inference.loading import find_checkpoint
from codetr_cli.runs.folder import RunInputs
from codetr_cli.training.auto_recipe import Recipe, fit_recipe
from codetr_cli.training.trainable_objects import count_trainable
from codetr_cli.weights.checkpoint import refuse_exported


@dataclass(frozen=True)
class BatchSizes:
    """Images of an optimizer step: micro_batch * accumulation * world_size = batch_size."""

    batch_size: int
    micro_batch: int
    accumulation: int
    world_size: int

    def describe(self) -> str:
        """The arithmetic as a phrase."""
        return (
            f"{self.batch_size} images per step = {self.world_size} process{'es' if self.world_size > 1 else ''} x "
            f"{self.micro_batch} at a time x {self.accumulation} accumulated"
        )


def batch_sizes(batch_size: int, micro_batch: int, world_size: int) -> BatchSizes:
    """Divides the images of a step over processes and micro batches.

    A process with fewer images than `micro_batch` processes them in one micro batch.

    Raises:
        ConfigError: the numbers do not divide; the message has the nearest that do.
    """
    if batch_size % world_size:
        sizes = _either(_multiples_near(batch_size, world_size))
        counts = _either([count for count in range(1, world_size) if batch_size % count == 0][-2:])
        raise ConfigError(
            f"train.batch_size {batch_size} cannot be divided equally among {world_size} processes: use "
            f"--set train.batch_size={sizes}, or another number of processes: {counts}"
        )
    share = batch_size // world_size
    micro_batch = min(micro_batch, share)
    if share % micro_batch:
        divisors = [size for size in range(1, share + 1) if share % size == 0]
        near = [
            max(size for size in divisors if size < micro_batch),
            min(size for size in divisors if size > micro_batch),
        ]
        raise ConfigError(
            f"{share} images per step and process (train.batch_size {batch_size} / {world_size}) cannot be divided "
            f"into micro batches of {micro_batch}: use --set train.micro_batch={_either(near)}, or --set "
            f"train.batch_size={_either(_multiples_near(batch_size, micro_batch * world_size))}"
        )
    return BatchSizes(batch_size, micro_batch, share // micro_batch, world_size)


@dataclass(frozen=True)
class TrainJob:
    """A training command with everything resolved that does not need the network.

    Attributes:
        settings: with the data's number of classes and folder.
        class_names: by label.
        category_ids: original id of each label.
        inputs: data files and weights.
        run: the requested run folder.
        restart: never continue a run.
        auto_fit: change settings until the worst batch fits into memory.
        warnings: sentences to log as warnings.
        notes: sentences to log as notes.
    """

    settings: Settings
    class_names: list[str]
    category_ids: list[int]
    inputs: RunInputs
    run: Path | None = None
    restart: bool = False
    auto_fit: bool = False
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def plan_job(
    settings: Settings,
    *,
    data: str | Sequence[str] | None = None,
    weights: str | None = None,
    evaluate: bool = True,
    run: Path | None = None,
    restart: bool = False,
    chosen: Collection[str] | None = None,
) -> TrainJob:
    """Reads the annotations and resolves classes and paths.

    Args:
        settings: of the preset and the command line.
        data: folders given on the command line; the classes of several are merged by name.
        weights: checkpoint or run folder to start from.
        evaluate: whether validation data is needed.
        run: see `TrainJob`.
        restart: see `TrainJob`.
        chosen: dotted names of the settings that the user set, which the automatic recipe must not change; None: all.

    Raises:
        CheckpointError: there is no checkpoint at `weights`.
        DatasetError: no data, no class with an object, or validation classes that differ from the training ones.
    """
    settings, found, notes = _find_training_data(settings, [data] if isinstance(data, str) else data)
    path, source = found.annotations_path, source_of(found.annotations_path.absolute())
    annotations = read_annotations(path)
    if "data.dataset" not in (chosen or ()) and dataset_of(annotations.is_lvis, settings.data.dataset) == "lvis":
        settings = _by_rules_of(settings, "lvis", source.name, notes)
    check_kind(annotations, settings.data.dataset, path)
    counts = count_trainable(annotations, path, min_side=settings.data.min_side, max_images=settings.data.max_images)
    warnings = list(found.warnings)
    absent = [name for name, count in zip(annotations.class_names, counts, strict=True) if count == 0]
    if absent:
        warnings.append(
            f"{len(absent)} of {len(counts)} classes have no object in {source.name} and cannot be learned: "
            f"{listed(absent, 8)}"
        )
    if settings.train.early_stop_patience is not None and not evaluate:
        warnings.append("train.early_stop_patience has no effect without evaluations")
    val_path = None
    if evaluate:
        val = find_data(settings.data, None, "val")
        val_path = val.annotations_path
        val_annotations = read_annotations(val_path)
        check_kind(val_annotations, settings.data.dataset, val_path)
        _check_same_classes(annotations, val_annotations, path, val_path)
        notes += [note for note in val.notes if note not in notes]
        warnings += [warning for warning in val.warnings if warning not in warnings]
    images = min(len(annotations.image_ids), settings.data.max_images or len(annotations.image_ids))
    if len(counts) != settings.model.num_classes:
        notes.append(
            f"{len(counts)} classes from {source.name} ({settings.name} has {settings.model.num_classes}); class heads "
            "load by class name, others are initialized randomly"
        )
    recipe = Recipe()
    if chosen is not None:
        recipe = fit_recipe(settings, images=images, from_weights=weights is not None, chosen=chosen)
    if recipe.sentences:
        notes.append(" ".join(recipe.sentences))
    return TrainJob(
        settings=replace_settings(settings, {"model.num_classes": len(counts), **recipe.changes}),
        class_names=annotations.class_names,
        category_ids=annotations.category_ids,
        inputs=RunInputs(
            train_annotations=source.name,
            train_digest=content_digest(path),
            val_annotations=source_of(val_path.absolute()).name if val_path else None,
            val_digest=content_digest(val_path) if val_path else None,
            weights=_find_weights(weights),
        ),
        run=run,
        restart=restart,
        warnings=warnings,
        notes=notes,
    )


def _find_training_data(settings: Settings, data: Sequence[str] | None) -> tuple[Settings, DataPaths, list[str]]:
    """The training images, settings with their folders, and notes for the user.

    Raises:
        DatasetError: they are not found.
    """
    unused: tuple[str, ...] = ()
    if data:
        unused = unused_roots(settings.data, data)
        root, *more = [str(Path(folder).absolute()) for folder in data]
        settings = replace_settings(settings, {"data.root": root, "data.extra_roots": more, "data.annotations": None})
    elif settings.data.annotations:
        places = {f"data.{key}": value for key in ("annotations", "images") if (value := getattr(settings.data, key))}
        places = {key: str(Path(value).absolute()) for key, value in places.items()}
        settings = replace_settings(settings, {**places, "data.extra_roots": ()})
    config = settings.data
    found = find_data(config, None, "train", any_dataset=config.dataset == "coco")
    found = replace(found, warnings=(*found.warnings, *unused))
    notes = list(found.notes)
    if found.dataset != config.dataset and (config.dataset == "coco" or config.extra_roots):
        settings = _by_rules_of(settings, found.dataset or "coco", source_of(found.annotations_path).name, notes)
    return settings, found, notes


def _by_rules_of(settings: Settings, dataset: DatasetName, name: str, notes: list[str]) -> Settings:
    """The settings for another data set, with a note on it if they change."""
    if settings.data.dataset == dataset:
        return settings
    hint = (
        "; presets made for LVIS, e.g. co_dino_r50_lvis, also show rare classes more often and keep 300 detections an "
        "image"
    )
    notes.append(
        f"{name} is read, and scored, by the rules of {dataset} (data.dataset={dataset}){hint * (dataset == 'lvis')}"
    )
    return replace_settings(settings, {"data.dataset": dataset})


def total_steps(settings: Settings, steps_per_epoch: int) -> int:
    """Optimizer steps of a whole run: train.max_steps where it is set, else train.epochs."""
    return settings.train.max_steps or settings.train.epochs * steps_per_epoch


def steps_per_epoch(micro_batches: int, accumulation: int) -> int:
    """Optimizer steps of an epoch; the last one may hold fewer micro batches."""
    return math.ceil(micro_batches / accumulation)


def _find_weights(weights: str | None) -> str | None:
    if weights is None:
        return None
    path = find_checkpoint(weights)
    if path is None:
        raise ConfigError(f"--weights {weights} is a preset without published weights: give a checkpoint")
    refuse_exported(path)
    return str(path.absolute())


def _check_same_classes(train: Annotations, val: Annotations, train_path: Path, val_path: Path) -> None:
    """Training and validation must have the same classes, by name; ids and order may differ."""
    train_name, val_name = source_of(train_path).name, source_of(val_path).name
    unknown, lacking = unmatched_classes((train.class_names, train.category_ids), (val.class_names, val.category_ids))
    if unknown:
        raise DatasetError(
            f"{val_name} has categories that {train_name} does not have, so that the model cannot detect them: "
            f"{listed(unknown, 8)}. Add them to the training annotations or remove them, or train with --no-eval."
        )
    if lacking:
        raise DatasetError(
            f"{val_name} does not list categories that {train_name} has: {listed(lacking, 8)}. List the same "
            "categories in both files (they need no objects), or train with --no-eval."
        )


def _multiples_near(value: int, step: int) -> list[int]:
    """The positive multiples of `step` next below and above `value`."""
    below = value // step * step
    return [multiple for multiple in (below, below + step) if multiple > 0]


def _either(numbers: Sequence[int]) -> str:
    return " or ".join(str(number) for number in numbers)
