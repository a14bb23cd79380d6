"""A training recipe for the size of the data, where the user has not chosen one.

Published recipes are for a hundred thousand images. On a few hundred the same epochs are too few steps to learn
anything, an evaluation each epoch takes longer than the training, and a fine-tuned detector forgets more than it learns
at the learning rate of an untrained one. Only settings that the user has not set change, and every change is logged.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from codetr_cli.config.schema import Settings

SMALL_DATA = 20_000  # from this number of images on a preset's own learning rate is right for fine-tuning too
FEW_IMAGES = 300  # below this number of images a pretrained backbone is frozen
FINE_TUNING_SHARE = 0.1  # of `train.min_steps` suffices when fine-tuning a detector
FINE_TUNING_LR = 1e-4  # up to here learning rates are for fine-tuning already (Objects365 to COCO as published)
MAX_EPOCHS = 300
EVALUATIONS = 10  # approximate number of evaluations in a training with more epochs than this
WARMUP_STEPS = 100


@dataclass
class Recipe:
    """Changes of a preset's settings by dotted name, and the reasons for the user; empty when it is followed."""

    changes: dict[str, Any] = field(default_factory=dict)
    sentences: list[str] = field(default_factory=list)


def fit_recipe(settings: Settings, *, images: int, from_weights: bool, chosen: Collection[str]) -> Recipe:
    """Chooses epochs, learning rate, warm-up, frozen parts and evaluations for the size of the data.

    Args:
        settings: of preset and command line.
        images: number of training images.
        from_weights: whether training starts from a detector's weights.
        chosen: dotted names of the settings that the user set: these stay.
    """
    recipe, train = Recipe(), settings.train
    if not train.auto_recipe or images == 0:
        return recipe
    if from_weights and images < FEW_IMAGES and "train.freeze_backbone" not in chosen and not train.freeze_backbone:
        recipe.changes["train.freeze_backbone"] = True
        recipe.sentences.append(f"The backbone is frozen: with under {FEW_IMAGES} images fine-tuning it would overfit.")
    if from_weights and images < SMALL_DATA and "train.lr" not in chosen and train.lr > FINE_TUNING_LR:
        recipe.changes["train.lr"] = train.lr / 2
        recipe.sentences.append(f"Learning rate {train.lr / 2:g}, half the preset's: fine-tuning needs a lower rate.")
    _fit_length(recipe, settings, images, from_weights, chosen)
    if recipe.sentences:
        start = "from the given weights" if from_weights else "without a detector's weights"
        recipe.sentences.insert(0, f"Recipe for {images:,} images {start}:")
        recipe.sentences.append("Set any of these with --set; --set train.auto_recipe=false follows the preset.")
    return recipe


def _fit_length(recipe: Recipe, settings: Settings, images: int, from_weights: bool, chosen: Collection[str]) -> None:
    """Sets epochs, and the settings counted in epochs or steps."""
    train = settings.train
    if not {"train.epochs", "train.max_steps"}.isdisjoint(chosen) or train.max_steps is not None:
        return
    steps = math.ceil(images / train.batch_size)
    least = train.min_steps * (FINE_TUNING_SHARE if from_weights else 1.0)
    epochs = max(train.epochs, min(math.ceil(least / steps), MAX_EPOCHS))
    if epochs > train.epochs:
        recipe.changes["train.epochs"] = epochs
        text = f"{epochs} epochs ({epochs * steps:,} steps) instead of {train.epochs}, which would be too few steps"
        if train.lr_schedule == "step" and "train.lr_milestones" not in chosen:
            milestones = sorted({round(milestone * epochs / train.epochs) for milestone in train.lr_milestones})
            recipe.changes["train.lr_milestones"] = milestones
            if milestones:
                text += f" (the learning rate is reduced after {' and '.join(map(str, milestones))} epochs)"
        recipe.sentences.append(text + ".")
    every = math.ceil(epochs / EVALUATIONS)
    if train.epochs < epochs and train.eval_every < every and "train.eval_every" not in chosen:
        recipe.changes["train.eval_every"] = every
        recipe.sentences.append(f"An evaluation every {every} epochs.")
    if from_weights and images < SMALL_DATA and train.warmup_steps == 0 and "train.warmup_steps" not in chosen:
        warmup = min(WARMUP_STEPS, epochs * steps // 10)
        recipe.changes["train.warmup_steps"] = warmup
        recipe.sentences.append(f"Warm-up: {warmup} steps while the new class heads settle.")
