"""Rebuilds the inputs of a recorded network case: settings, weights, images, objects and random draws."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codetr_cli.config.model_settings import ModelConfig
from codetr_cli.config.overrides import apply_overrides
from codetr_cli.config.presets import load_preset, preset_names
from codetr_cli.config.schema import Settings
from codetr_cli.losses.build import build_objective
from codetr_cli.losses.collaborative import CollaborativeObjective
from codetr_cli.losses.random import RandomSource
from codetr_cli.models.build import build_model
from codetr_cli.models.codetr import CoDETR
from codetr_cli.weights.architecture import describe
from codetr_cli.weights.names import drop_reason, find_naming, to_ours
from codetr_cli.weights.tensor_layout import to_our_state
from tests.golden import synth
from tests.golden.case import Case, UnsupportedCaseError
from tests.golden.rotations import use_drawn_rotations

GREY = (114.0 - np.array([123.675, 116.28, 103.53])) / np.array([58.395, 57.12, 57.375])
NUM_HEADS = 8  # the only size that shapes do not tell

# ------------------------------------------------------------------------------------------------------------- settings


def published_names(shapes: Mapping[str, Any]) -> dict[str, str]:
    """Published name -> ours, strictly.

    Raises:
        UnsupportedCaseError: a name that no network of this version has.
    """
    naming = find_naming(shapes)
    names = {name: to_ours(name, naming) for name in shapes if drop_reason(name) is None}
    unknown = [name for name, ours in names.items() if ours is None]
    if unknown:
        raise UnsupportedCaseError(
            f"its network is not part of this version: {len(unknown)} of {len(names)} parameters are unknown, "
            f"the first is {unknown[0]}"
        )
    return {name: ours for name, ours in names.items() if ours is not None}


def settings_of(case: Case, shapes: Mapping[str, Sequence[int]]) -> Settings:
    """The settings that the parameters' shapes tell, and the case's test settings."""
    blank = {name: torch.empty(tuple(shape), device="meta") for name, shape in shapes.items()}
    ours = {name: blank[published] for published, name in published_names(shapes).items()}
    facts = describe(ours, blank)
    kind = facts.pop("backbone.kind")
    points = facts.pop("num_heads*num_points") // NUM_HEADS
    overrides = [f"model.backbone.kind={kind}", f"model.num_heads={NUM_HEADS}", f"model.num_points={points}"]
    overrides += [f"model.{name}={_setting_text(value)}" for name, value in facts.items() if "*" not in name]
    overrides.append("model.encoder_checkpointing=0")
    if facts["roi.class_agnostic"]:
        overrides.append("model.roi.target_stds=[0.05, 0.05, 0.1, 0.1]")
    if kind != "resnet":
        overrides.append("model.backbone.drop_path=0.0")  # recorded without, in training too
    if facts["family"] == "co_deformable":
        overrides.append("train.loss.class_weight=2.0")
    return apply_overrides(load_preset("co_dino_r50"), [*overrides, *_loss_overrides(case), *_test_overrides(case)])


def _loss_overrides(case: Case) -> list[str]:
    """The losses of the preset that stands for the case's configuration; shapes do not tell them."""
    for name in preset_names():
        settings = load_preset(name)
        if Path(settings.source.config or "").stem == case.description.get("config"):
            loss = settings.train.loss.model_dump()
            return [f"train.loss.{key}={_setting_text(value)}" for key, value in loss.items()]
    return []


def _setting_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _test_overrides(case: Case) -> list[str]:
    published = {"max_per_img": 300, "nms": {"type": "soft_nms", "iou_threshold": 0.8}}
    test = case.facts.get("query_test_cfg") or case.facts.get("test_cfg") or published
    nms = test.get("nms") or {"type": "none"}
    kinds = {"none": "none", "nms": "hard", "soft_nms": "soft"}
    overrides = [
        f"test.max_detections={test['max_per_img']}",
        f"test.candidates={'max_detections' if case.publisher == 'mmdet3' else 'num_queries'}",
        f"test.nms={kinds[nms['type']]}",
        f"test.nms_iou={nms.get('iou_threshold', 0.8)}",
        f"test.nms_min_score={nms.get('min_score', 1e-3)}",
    ]
    aux = case.facts.get("aux_test_cfg") or {}
    if "rpn" in aux:
        overrides += [
            f"model.rpn.proposals_pre_nms_test={aux['rpn']['nms_pre']}",
            f"model.rpn.num_proposals_test={aux['rpn']['max_per_img']}",
            f"model.rpn.nms_iou_test={aux['rpn']['nms']['iou_threshold']}",
        ]
    for theirs, ours in (("rcnn", "roi"), ("atss", "atss")):
        if theirs in aux:
            overrides += [
                f"model.{ours}.nms={kinds[aux[theirs]['nms']['type']]}",
                f"model.{ours}.nms_iou={aux[theirs]['nms']['iou_threshold']}",
                f"model.{ours}.max_detections={aux[theirs]['max_per_img']}",
            ]
    if "atss" in aux:
        overrides.append(f"model.atss.pre_nms={aux['atss']['nms_pre']}")
    return overrides


# -------------------------------------------------------------------------------------------------------------- weights


def build_case_model(case: Case, config: ModelConfig) -> CoDETR:
    """Our model with the case's weights, strictly, in float64."""
    model = build_model(config).double()
    state = to_our_state(dict(_published_state(tuple(case.manifest), case.description.get("salt", "")))).state
    model.load_state_dict(state, strict=True)
    model.to(case.device)
    use_drawn_rotations(case, model)
    return model


@lru_cache(maxsize=1)
def _published_state(
    manifest: tuple[tuple[str, tuple[int, ...], str], ...], salt: str
) -> tuple[tuple[str, Tensor], ...]:
    """The weights under the published names, float64."""
    return tuple(
        (name, torch.from_numpy(np.ascontiguousarray(synth.parameter(name, shape, salt))))
        for name, shape, dtype in manifest
        if dtype.startswith("float")
    )


# -------------------------------------------------------------------------------------------------- images and objects


def batch_of(case: Case) -> tuple[Tensor, Tensor, list[dict[str, Any]]]:
    """Images (B, 3, H, W), padding mask (B, H, W) and targets of a case."""
    height, width = case.description["batch_size_hw"]
    entries = case.description["images"]
    images = np.zeros((len(entries), 3, height, width))
    if case.description.get("canvas") == "grey114":
        images += GREY[None, :, None, None]
    mask = torch.ones(len(entries), height, width, dtype=torch.bool)
    targets = []
    for index, entry in enumerate(entries):
        h, w = entry["height"], entry["width"]
        images[index, :, :h, :w] = synth.image(entry["key"], h, w)
        valid_h, valid_w = entry["valid_size"]
        mask[index, :valid_h, :valid_w] = False
        targets.append(_target(entry, case.description["classes"], masks="gt_masks" in case.facts))
    return on_device((torch.from_numpy(images), mask, targets), case.device)


def on_device(value: Any, device: torch.device) -> Any:
    """The same value with all its tensors on a device: in lists, tuples, dictionaries and dataclasses too."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: on_device(entry, device) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        entries = [on_device(entry, device) for entry in value]
        return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)  # a named tuple, or not
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: on_device(getattr(value, field.name), device) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    return value


def _target(entry: dict[str, Any], classes: int, *, masks: bool) -> dict[str, Any]:
    target: dict[str, Any] = {
        "norm_size": tuple(entry["valid_size"]),
        "pad_size": tuple(entry["pad_size"]),
        "scale_factor": tuple(entry.get("scale_factor", (1.0, 1.0))[:2]),
    }
    if "num_boxes" in entry:
        size = (entry["height"], entry["width"])
        target["boxes"] = torch.from_numpy(synth.boxes(entry["boxes_key"], entry["num_boxes"], *size)).view(-1, 4)
        target["labels"] = torch.from_numpy(synth.labels(entry["labels_key"], entry["num_boxes"], classes))
        if masks:
            target["masks"] = ellipses(target["boxes"], target["pad_size"])
    return target


def ellipses(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The masks uint8 (G, h, w) that objects of recorded cases have, where they have any: each fills its box (G, 4)."""
    height, width = size
    x1, y1, x2, y2 = (side[:, None, None] for side in boxes.unbind(1))
    rows = torch.arange(height, dtype=boxes.dtype)[None, :, None] + 0.5
    columns = torch.arange(width, dtype=boxes.dtype)[None, None] + 0.5
    across = (columns - (x1 + x2) / 2) / ((x2 - x1) / 2)
    down = (rows - (y1 + y2) / 2) / ((y2 - y1) / 2)
    return (across**2 + down**2 <= 1).to(torch.uint8)


def objective_of(model: CoDETR, settings: Settings) -> CollaborativeObjective:
    """The published objective around a model, in training mode."""
    return build_objective(model, settings.train.loss).train()


# --------------------------------------------------------------------------------------------------------- random draws


@dataclass(frozen=True)
class Draw:
    """One random number call of the published code: where, which function, its shape and the key of its values."""

    name: str
    function: str
    shape: tuple[int, ...]
    key: str


def listed_draws(facts: Mapping[str, Any]) -> list[Draw]:
    """The draws of a case or of one of its steps, in order, permutations (which are the identity) skipped."""
    draws = []
    for entry in facts.get("random_draws") or facts.get("draws") or []:
        function = entry.get("kind") or entry["function"]
        if function != "randperm":
            # Sense-X cases write the rule behind the key.
            key = entry["key"] if "key" in entry else entry["values"].split(" -> ")[0]
            draws.append(Draw(f"draw/{entry['index']}/{entry['site']}", function, tuple(entry["shape"]), key))
    return draws


class RecordedDraws(RandomSource):
    """Gives the recorded random numbers in the published order; permutations are the identity.

    Args:
        draws: of the case.
    """

    def __init__(self, draws: Sequence[Draw]) -> None:
        self.pending = list(draws)
        self.given: dict[str, np.ndarray] = {}

    def _next(self, integers: bool, shape: tuple[int, ...], like: Tensor, high: int = 1) -> Tensor:
        draw = self.pending.pop(0)
        if integers != draw.function.startswith("randint") or draw.shape != tuple(shape):
            asked = f"{'integers' if integers else 'uniform numbers'} of shape {list(shape)}"
            raise ValueError(f"the case records {draw.function} {list(draw.shape)} next, our code asks for {asked}")
        values = synth.uniform(draw.key, draw.shape)
        self.given[draw.name] = np.floor(high * values).astype(np.int64) if integers else values
        return torch.from_numpy(self.given[draw.name].copy()).to(like.device)

    def uniform(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        return self._next(False, shape, like).to(like.dtype)

    def integers(self, high: int, shape: tuple[int, ...], like: Tensor) -> Tensor:
        return self._next(True, shape, like, high)

    def permutation(self, count: int, like: Tensor) -> Tensor:
        return torch.arange(count, device=like.device)
