"""What a training command amounts to before anything is built: classes, batch arithmetic, steps, and where from.

Everything about classes comes from the annotations of the training images.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from codetr_cli.config.overrides import replace_settings
from codetr_cli.config.schema import Settings
from codetr_cli.data.annotations import Annotations, check_kind, read_annotations
from codetr_cli.data.formats.cache import content_digest, source_of
from codetr_cli.data.formats.resolve import DataPaths, find_data
from codetr_cli.errors import ConfigError, DatasetError, listed
from codetr_cli.inference.loading import find_checkpoint
from codetr_cli.runs.folder import Origin
from codetr_cli.training.auto_recipe import Recipe, fit_recipe
from codetr_cli.training.trainable_objects import count_learnable


@dataclass(frozen=True)
class BatchPlan:
    """How the images of an optimizer step are spread: micro_batch * accumulation * world_size = batch_size."""

    batch_size: int
    micro_batch: int
    accumulation: int
    world_size: int

    def describe(self) -> str:
        """The arithmetic in words."""
        return (
            f"{self.batch_size} images a step = {self.world_size} process{'es' if self.world_size > 1 else ''} x "
            f"{self.micro_batch} at once x {self.accumulation} accumulated"
        )


def plan_batches(batch_size: int, micro_batch: int, world_size: int) -> BatchPlan:
    """Spreads a step's images over processes and passes.

    A process that gets fewer images than `micro_batch` takes them in one pass.

    Args:
        batch_size: images of a step over all processes.
        micro_batch: images a process takes at once.
        world_size: number of processes.

    Raises:
        ConfigError: the numbers do not divide; names the nearest that do.
    """
    if batch_size % world_size:
        sizes = _either(_multiples_near(batch_size, world_size))
        counts = _either([count for count in range(1, world_size) if batch_size % count == 0][-2:])
        raise ConfigError(
            f"train.batch_size {batch_size} cannot be shared equally by {world_size} processes: use "
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
            f"{share} images a step in each process (train.batch_size {batch_size} / {world_size}) cannot be taken "
            f"{micro_batch} at once: use --set train.micro_batch={_either(near)}, or --set train.batch_size="
            f"{_either(_multiples_near(batch_size, micro_batch * world_size))}"
        )
    return BatchPlan(batch_size, micro_batch, share // micro_batch, world_size)


@dataclass(frozen=True)
class Job:
    """A training, decided in all that does not need the network.

    Attributes:
        settings: with the data's number of classes and folder.
        class_names: by label.
        category_ids: original id of each label.
        origin: data files and weights.
        run: the run folder that was asked for.
        fresh: never continue a run.
        auto_fit: change settings until the worst batch fits into the memory.
        warnings: sentences.
        notes: sentences that a person should know of, but that nothing is wrong with.
    """

    settings: Settings
    class_names: list[str]
    category_ids: list[int]
    origin: Origin
    run: Path | None = None
    fresh: bool = False
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
    fresh: bool = False,
    chosen: Collection[str] | None = None,
) -> Job:
    """Reads the annotations and settles classes and paths.

    Args:
        settings: of the preset and the command line.
        data: folders given on the command line; the classes of several are merged by name.
        weights: checkpoint or run folder to start from.
        evaluate: whether validation data is needed.
        run: the run folder that was asked for.
        fresh: never continue a run.
        chosen: dotted names of the settings that the person chose, which the recipe for the data must leave as they
            are; None: all.

    Raises:
        CheckpointError: no checkpoint where `weights` says.
        DatasetError: no data, no class with an object, or validation classes that differ from the training ones.
    """
    settings, found, notes = _find_training_data(settings, [data] if isinstance(data, str) else data)
    path, source = found.annotations_path, source_of(found.annotations_path.absolute())
    annotations = read_annotations(path)
    check_kind(annotations, settings.data.dataset, path)
    counts = count_learnable(annotations, path, min_side=settings.data.min_side, max_images=settings.data.max_images)
    warnings = list(found.warnings)
    absent = [name for name, count in zip(annotations.class_names, counts, strict=True) if count == 0]
    if absent:
        warnings.append(
            f"{len(absent)} of {len(counts)} classes have no object in {source.name} and cannot be learned: "
            f"{listed(absent, 8)}"
        )
    if settings.train.early_stop_patience is not None and not evaluate:
        warnings.append("train.early_stop_patience has no effect: without evaluations the training goes on to its end")
    val_path = None
    if evaluate:
        val = find_data(settings.data, None, "val")
        val_path = val.annotations_path
        _check_same_classes(annotations, read_annotations(val_path), path, val_path)
        notes += [note for note in val.notes if note not in notes]
        warnings += [warning for warning in val.warnings if warning not in warnings]
    images = min(len(annotations.image_ids), settings.data.max_images or len(annotations.image_ids))
    recipe = Recipe()
    if chosen is not None:
        recipe = fit_recipe(settings, images=images, from_weights=weights is not None, chosen=chosen)
    return Job(
        settings=replace_settings(settings, {"model.num_classes": len(counts), **recipe.changes}),
        class_names=annotations.class_names,
        category_ids=annotations.category_ids,
        origin=Origin(
            train_annotations=source.name,
            train_digest=content_digest(path),
            val_annotations=source_of(val_path.absolute()).name if val_path else None,
            val_digest=content_digest(val_path) if val_path else None,
            weights=_find_weights(weights),
        ),
        run=run,
        fresh=fresh,
        warnings=warnings,
        notes=[*notes, *_class_notes(settings, annotations, source.name), *recipe.paragraphs],
    )


def _find_training_data(settings: Settings, data: Sequence[str] | None) -> tuple[Settings, DataPaths, list[str]]:
    """Where the training images are, with settings that say so, and what a person should know of it.

    Raises:
        DatasetError: they are not there.
    """
    if data:
        root, *more = [str(Path(folder).absolute()) for folder in data]
        settings = replace_settings(settings, {"data.root": root, "data.extra_roots": more})
    config = settings.data
    found = find_data(config, None, "train", any_dataset=config.dataset == "coco")
    notes = list(found.notes)
    if found.dataset != config.dataset and (config.dataset == "coco" or config.extra_roots):
        settings = replace_settings(settings, {"data.dataset": found.dataset})
        notes.append(
            f"{source_of(found.annotations_path).name} is read, and scored, by the rules of {found.dataset} "
            f"(data.dataset={found.dataset})"
            + (
                "; presets made for LVIS, e.g. co_dino_r50_lvis, also show rare classes more often and keep 300 "
                "detections an image"
                if found.dataset == "lvis"
                else ""
            )
        )
    return settings, found, notes


def _class_notes(settings: Settings, annotations: Annotations, where: str) -> list[str]:
    """Says that the number of classes follows the annotations when the preset is for another."""
    count, wanted = len(annotations.category_ids), settings.model.num_classes
    if count == wanted:
        return []
    return [
        f"{settings.name} is made for {wanted} classes, {where} has {count}: the network is built for these {count}; "
        "what depends on the classes starts from random weights where a checkpoint does not know them by name"
    ]


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
        raise ConfigError(f"--weights {weights} is a preset that nobody has published weights for: give a checkpoint")
    return str(path.absolute())


def _check_same_classes(train: Annotations, val: Annotations, train_path: Path, val_path: Path) -> None:
    """Validation must know exactly the classes that are trained, by name; ids and order may differ."""
    train_name, val_name = source_of(train_path).name, source_of(val_path).name
    unknown = [name for name in val.class_names if name not in set(train.class_names)]
    if unknown:
        raise DatasetError(
            f"{val_name} has categories that {train_name} does not have, so that no model trained there can find them: "
            f"{listed(unknown, 8)}. Add them to the training annotations or remove them, or train with --no-eval."
        )
    lacking = [name for name in train.class_names if name not in set(val.class_names)]
    if lacking:
        raise DatasetError(
            f"{val_name} does not list categories that {train_name} has: {listed(lacking, 8)}. List the same "
            "categories in both files (they need no objects), or train with --no-eval."
        )


def _multiples_near(value: int, step: int) -> list[int]:
    """The multiples of `step` on both sides of `value` that is none; no zero."""
    below = value // step * step
    return [multiple for multiple in (below, below + step) if multiple > 0]


def _either(numbers: Sequence[int]) -> str:
    return " or ".join(str(number) for number in numbers)
