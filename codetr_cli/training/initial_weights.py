"""The model of a run and its initial weights: those of a checkpoint, a pretrained backbone, or random ones."""

from __future__ import annotations

import logging

from codetr_cli.config.model_settings import ResNetConfig
from codetr_cli.config.schema import Settings
from codetr_cli.inference.model_size import check_size
from codetr_cli.models.build import build_model
from codetr_cli.models.codetr import CoDETR
from codetr_cli.training.plan import TrainJob
from codetr_cli.weights.classes import same_numbered_classes
from codetr_cli.weights.load_state import load_matching
from codetr_cli.weights.pretrained import find_backbone, load_backbone
from codetr_cli.weights.published import pretrained_name
from codetr_cli.weights.resolve import open_weights

logger = logging.getLogger(__name__)


def build_trainable_model(settings: Settings) -> CoDETR:
    """The model with random weights; its backbone is frozen with `train.freeze_backbone`.

    Raises:
        ConfigError: the model settings do not fit together.
        ResourceError: it is larger than the memory of this machine.
    """
    check_size(settings)
    model = build_model(settings.model)
    if settings.train.freeze_backbone:
        model.backbone.requires_grad_(False)
    return model


def load_initial_weights(model: CoDETR, job: TrainJob) -> None:
    """Loads the matching weights of the checkpoint to fine-tune, or a pretrained backbone, and logs what was loaded.

    Raises:
        CheckpointError: the file cannot be read.
    """
    path = job.inputs.weights
    if path is None:
        _load_pretrained_backbone(model, job.settings)
        return
    checkpoint = open_weights(path, prefer=job.settings)
    unnamed = same_numbered_classes(checkpoint.class_names, checkpoint.category_ids, job.category_ids)
    loaded = load_matching(
        model,
        checkpoint.state,
        class_names=job.class_names,
        checkpoint_class_names=job.class_names if unnamed else checkpoint.class_names,
        source=path,
        allow_nonfinite=job.settings.test.allow_nonfinite_weights,
    )
    logger.info("weights from %s:", path)
    if unnamed:
        logger.info("  it has no class names but the category ids of the annotations: assuming the same classes.")
    for line in loaded.lines():
        logger.info("  %s", line)


def _load_pretrained_backbone(model: CoDETR, settings: Settings) -> None:
    """Loads a pretrained backbone where there is one, or warns of what random weights mean."""
    file = find_backbone(settings)
    if file is not None:
        allow_nonfinite = settings.test.allow_nonfinite_weights
        logger.info("%s", load_backbone(model, file, allow_nonfinite=allow_nonfinite))
        return
    backbone = settings.model.backbone
    frozen = isinstance(backbone, ResNetConfig) and backbone.norm == "frozen_batch"
    if isinstance(backbone, ResNetConfig) and not frozen:
        return  # designed for random weights
    if settings.train.backbone_weights == "none" and not frozen:
        return  # requested
    name = pretrained_name(settings)
    why = "batch norms are frozen and expect a pretrained" if frozen else "recipe is too short for an untrained"
    how = f"run `codetr download {name}` first" if name else "give one with --set train.backbone_weights=FILE"
    logger.warning(
        "training %s from random weights: its %s backbone. For that, %s; or start from a checkpoint with --weights.",
        *(settings.name, why, how),
    )
