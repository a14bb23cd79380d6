"""What a new run's weights are to begin with: those of a checkpoint, a pretrained backbone, or random ones."""

from __future__ import annotations

from codetr_cli.config.schema import ResNetConfig, Settings
from codetr_cli.models.codetr import CoDETR
from codetr_cli.training.plan import Job
from codetr_cli.training.reporter import Report
from codetr_cli.weights.classes import same_numbered_classes
from codetr_cli.weights.load_state import load_matching
from codetr_cli.weights.pretrained import find_backbone, load_backbone
from codetr_cli.weights.published import pretrained_name
from codetr_cli.weights.resolve import open_weights


def start_weights(model: CoDETR, job: Job, report: Report) -> None:
    """Loads the weights to fine-tune, as far as they fit, and says what became of them.

    Args:
        model: as built; gets the weights.
        job: says where they are.
        report: whom to tell.

    Raises:
        CheckpointError: they cannot be read.
    """
    path = job.origin.weights
    if path is None:
        _start_backbone(model, job.settings, report)
        return
    checkpoint = open_weights(path, prefer=job.settings)
    unnamed = same_numbered_classes(checkpoint.class_names, checkpoint.category_ids, job.category_ids)
    loaded = load_matching(
        model,
        checkpoint.state,
        class_names=job.class_names,
        checkpoint_class_names=job.class_names if unnamed else checkpoint.class_names,
        source=path,
    )
    report.note(f"weights from {path}:")
    if unnamed:
        report.note("  it names no classes; they have the category ids of the annotations' and are taken for these.")
    for line in loaded.lines():
        report.note(f"  {line}")


def _start_backbone(model: CoDETR, settings: Settings, report: Report) -> None:
    """Loads a pretrained backbone where there is one, or warns once of what random weights mean."""
    file = find_backbone(settings)
    if file is not None:
        report.note(load_backbone(model, file))
        return
    backbone = settings.model.backbone
    frozen = isinstance(backbone, ResNetConfig) and backbone.norm == "frozen_batch"
    if isinstance(backbone, ResNetConfig) and not frozen:
        return  # made for random weights
    if settings.train.backbone_weights == "none" and not frozen:
        return  # asked for
    name = pretrained_name(settings)
    why = "batch norms are frozen and expect a pretrained" if frozen else "recipe is too short for an untrained"
    how = f"run `codetr download {name}` first" if name else "give one with --set train.backbone_weights=FILE"
    report.warn(
        f"training {settings.name} from random weights: its {why} backbone. For that, {how}; or start from a "
        "checkpoint with --weights."
    )
