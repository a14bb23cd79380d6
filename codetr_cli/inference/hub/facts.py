"""What is known of a checkpoint that a model card is written from: settings, classes, training, evaluation, licence.

Everything is read from the checkpoint and, where it is in a run folder, from the files of the run. What others read
has no paths of this machine.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codetr_cli.config.overrides import replace_settings
from codetr_cli.config.presets import load_preset, preset_names
from codetr_cli.config.schema import Settings, TestConfig
from codetr_cli.errors import CodetrError, ConfigError
from codetr_cli.inference.exported.engine import is_exported
from codetr_cli.inference.hub.evaluations import Evaluation, find_evaluation, read_evaluation
from codetr_cli.inference.hub.findings import Findings, find_findings
from codetr_cli.inference.hub.tables import POSTPROCESSING, PREPROCESSING
from codetr_cli.runs.folder import RunFolder, RunInputs
from codetr_cli.runs.lineage import BASE_MODEL, ORIGIN, licence_of, lineage_of, name_of, recorded_lineage, run_of
from codetr_cli.runs.training_cost import TrainingCost, training_cost
from codetr_cli.weights.checkpoint import Checkpoint, content_id
from codetr_cli.weights.licence import Licence
from codetr_cli.weights.published import BACKBONES
from codetr_cli.weights.resolve import open_weights
from codetr_cli.weights.urls import public_settings

PATHS = ("root", "annotations", "images", "train_images", "train_annotations", "val_images", "val_annotations")
"""Settings of `data` that are places on the machine of the training."""
DERIVED = ("model.num_classes", "data.extra_roots", "train.backbone_weights", *(f"data.{name}" for name in PATHS))
"""Settings that follow from the data of a training, or are places: no part of a command for others."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What is known of a checkpoint.

    Attributes:
        checkpoint: with its settings, classes and weights; the settings have no paths of this machine.
        content: hash of the checkpoint's file, as it records it; empty: it was converted on the way.
        licence: of the weights.
        evaluation: of these weights; None: none is known.
        data: name of the training data, e.g. that of its folder; empty: not recorded.
        data_digest: of the training annotations; empty: not recorded.
        validation: name of the validation annotations; empty: not recorded.
        origin: name of the checkpoint that the training started from; empty: none, or not recorded.
        base_model: repository of that checkpoint; empty: it is in none, or not recorded.
        cost: time and energy of the training; None: not recorded.
        findings: of a report of the evaluation; None: there is none.
    """

    checkpoint: Checkpoint
    licence: Licence
    content: str = ""
    evaluation: Evaluation | None = None
    data: str = ""
    data_digest: str = ""
    validation: str = ""
    origin: str = ""
    base_model: str = ""
    cost: TrainingCost | None = None
    findings: Findings | None = None

    @property
    def settings(self) -> Settings:
        """The settings of the checkpoint."""
        return self.checkpoint.settings

    @property
    def step(self) -> int | None:
        """Optimizer steps of the training; None: not recorded."""
        return _step(self.checkpoint)

    @property
    def is_converted(self) -> bool:
        """Whether the weights are those of a published file, without a training by codetr."""
        return "source_sha256" in self.checkpoint.extra

    @property
    def command(self) -> str:
        """The command that trains with the same settings; empty where no shipped preset has the name of theirs."""
        if self.settings.name not in preset_names() or self.is_converted:
            return ""
        words = ["codetr", "train", "--preset", self.settings.name, "--data", "DATA"]
        start = f"hf://{self.base_model}" if self.base_model else self.origin
        words += ["--weights", start] if start else []
        for key, value in changed_settings(self.settings).items():
            words += ["--set", f"{key}={_text(value)}"]
        return shlex.join(words)


def describe_checkpoint(
    path: Path,
    *,
    licence: Licence | None = None,
    evaluation: Path | None = None,
    test: TestConfig | None = None,
) -> ModelFacts:
    """Collects what is known of a checkpoint.

    Args:
        path: its file, possibly in a run folder; a published file is converted.
        licence: of the weights; None: the one that is known of them.
        evaluation: file or folder of an evaluation; None: one that is found beside the checkpoint.
        test: test settings to publish instead of the checkpoint's. Where they give other detections, what was measured
            with the checkpoint's own is no evaluation of it, unless it is given.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        ConfigError: the evaluation is none, or of other weights; or the file is an exported one.
    """
    if is_exported(path):
        raise ConfigError(f"{path} is an exported file: save or push the checkpoint that it was made from")
    checkpoint = open_weights(path)
    content, step = content_id(path), _step(checkpoint)
    inputs = _inputs(path)
    changes = changed_test(checkpoint.settings, test)
    if evaluation is not None:
        found: Evaluation | None = read_evaluation(evaluation, content=content, step=step)
    else:
        found = find_evaluation(path, content=content, step=step) if not changes else None
    stored = replace_settings(checkpoint.settings, changes)
    roots = [stored.data.root or stored.data.annotations or "", *stored.data.extra_roots]
    lineage = _lineage(checkpoint, inputs)
    run, ap = run_of(path), found.metrics.get("AP") if found else None
    return ModelFacts(
        checkpoint=Checkpoint(
            state=checkpoint.state,
            settings=without_paths(stored),
            class_names=checkpoint.class_names,
            category_ids=checkpoint.category_ids,
            extra=checkpoint.extra,
        ),
        content=content or "",
        licence=licence or licence_of(path),
        evaluation=found,
        data=" and ".join(Path(root).stem for root in roots if root),
        data_digest=(inputs and inputs.train_digest) or "",
        validation=Path(inputs.val_annotations).stem if inputs is not None and inputs.val_annotations else "",
        origin=lineage.get(ORIGIN, ""),
        base_model=lineage.get(BASE_MODEL, ""),
        cost=None if run is None else training_cost(run, batch_size=stored.train.batch_size, step=step),
        findings=None if ap is None else find_findings(path, content=content, ap=ap),
    )


def changed_test(stored: Settings, test: TestConfig | None) -> dict[str, Any]:
    """The test settings that decide detections and differ from a checkpoint's, by dotted name; none without others."""
    if test is None:
        return {}
    values = {name: getattr(test, name) for name in (*PREPROCESSING, *POSTPROCESSING)}
    return {f"test.{name}": value for name, value in values.items() if value != getattr(stored.test, name)}


def without_paths(settings: Settings) -> Settings:
    """The settings without places of this machine and without credentials in URLs."""
    settings = public_settings(settings)
    values: dict[str, Any] = {f"data.{name}": None for name in PATHS if getattr(settings.data, name) is not None}
    if settings.data.extra_roots:
        values["data.extra_roots"] = ()
    if settings.train.backbone_weights not in ("auto", "none", *BACKBONES):
        values["train.backbone_weights"] = Path(settings.train.backbone_weights).name
    return replace_settings(settings, values)


def changed_settings(settings: Settings) -> dict[str, Any]:
    """The settings that differ from the shipped preset of their name, by dotted name, without `DERIVED`."""
    preset = dict(_leaves(load_preset(settings.name).model_dump(mode="json")))
    found = dict(_leaves(settings.model_dump(mode="json")))
    return {
        key: value
        for key, value in found.items()
        if key not in DERIVED and key.split(".")[0] in ("model", "data", "train", "test") and preset.get(key) != value
    }


def _leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _text(value: Any) -> str:
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _step(checkpoint: Checkpoint) -> int | None:
    step = checkpoint.extra.get("step", "")
    return int(step) if step.isascii() and step.isdecimal() and len(step) <= 15 else None


def _inputs(path: Path) -> RunInputs | None:
    """Data and initial weights of the run that a checkpoint is in."""
    run = run_of(path)
    return None if run is None else RunFolder(run).inputs()


def _lineage(checkpoint: Checkpoint, inputs: RunInputs | None) -> dict[str, str]:
    """What a checkpoint records of its start, or for one of an earlier version what its run folder says."""
    found = recorded_lineage(checkpoint.extra)
    if ORIGIN in found or inputs is None or inputs.weights is None:
        return found
    try:
        return lineage_of(Path(inputs.weights))
    except CodetrError:  # the start is gone
        return {ORIGIN: name_of(Path(inputs.weights))}
