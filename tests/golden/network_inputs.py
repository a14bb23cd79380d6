"""Rebuilds the inputs of a recorded network case: settings, weights, images, objects and random draws."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codetr_cli.config import ModelConfig, Settings, apply_overrides, load_preset
from codetr_cli.losses.collaborative import CollaborativeObjective
from codetr_cli.losses.draws import Draws
from codetr_cli.models.build import build_model
from codetr_cli.models.codetr import CoDETR
from codetr_cli.weights.names import rename
from tests.golden import synth
from tests.golden.case import Case

GREY = (114.0 - np.array([123.675, 116.28, 103.53])) / np.array([58.395, 57.12, 57.375])


def settings_of(case: Case) -> Settings:
    """The published Co-DINO R50 with the sizes that the case's parameter shapes tell."""
    shapes = {name: shape for name, shape, _ in case.manifest}

    prefix = "query_head.transformer."

    def count(part: str) -> int:
        pattern = re.escape(prefix + part) + r"(\d+)"
        return 1 + max(int(match[1]) for name in shapes if (match := re.match(pattern, name)))

    num_queries, dim = shapes[prefix + "query_embed.weight"]
    levels = shapes[prefix + "level_embeds"][0]
    points = shapes[prefix + "encoder.layers.0.attentions.0.attention_weights.bias"][0] // (8 * levels)
    query_test = case.facts.get("query_test_cfg") or case.facts.get("test_cfg") or {}
    nms = query_test.get("nms") or {}
    return apply_overrides(
        load_preset("co_dino_r50"),
        [
            f"model.num_classes={shapes['query_head.cls_branches.0.weight'][0]}",
            f"model.embed_dim={dim}",
            f"model.num_queries={num_queries}",
            f"model.num_levels={levels}",
            f"model.num_points={points}",
            f"model.encoder_layers={count('encoder.layers.')}",
            f"model.decoder_layers={count('decoder.layers.')}",
            f"model.ffn_dim={shapes[prefix + 'encoder.layers.0.ffns.0.layers.0.0.weight'][0]}",
            f"test.max_detections={query_test.get('max_per_img', 300)}",
            f"test.nms={'soft' if nms.get('type', 'soft_nms') == 'soft_nms' else 'hard'}",
            f"test.nms_iou={nms.get('iou_threshold', 0.8)}",
            f"test.candidates={'max_detections' if case.description['published_by'] == 'mmdet3' else 'num_queries'}",
        ],
    )


def published_state(case: Case) -> dict[str, Tensor]:
    """The case's weights under the published names, float64."""
    salt = case.description.get("salt", "")
    return {
        name: torch.from_numpy(np.ascontiguousarray(synth.parameter(name, shape, salt)))
        for name, shape, dtype in case.manifest
        if dtype.startswith("float")
    }


def build_case_model(case: Case, config: ModelConfig) -> CoDETR:
    """Our model with the case's weights, strictly, in float64."""
    model = build_model(config).double()
    ours = rename(published_state(case)).state
    model.load_state_dict(ours, strict=True)
    return model


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
        targets.append(_target(entry, case.description.get("classes", 80)))
    return torch.from_numpy(images), mask, targets


def _target(entry: dict[str, Any], classes: int) -> dict[str, Any]:
    target: dict[str, Any] = {
        "norm_size": tuple(entry["valid_size"]),
        "pad_size": tuple(entry["pad_size"]),
        "scale_factor": tuple(entry.get("scale_factor", (1.0, 1.0))[:2]),
    }
    if "num_boxes" in entry:
        size = (entry["height"], entry["width"])
        target["boxes"] = torch.from_numpy(synth.boxes(entry["boxes_key"], entry["num_boxes"], *size)).view(-1, 4)
        target["labels"] = torch.from_numpy(synth.labels(entry["labels_key"], entry["num_boxes"], classes))
    return target


def objective_of(model: CoDETR, settings: Settings) -> CollaborativeObjective:
    """The published objective around a model, in training mode."""
    return CollaborativeObjective(model, **settings.train.loss.model_dump()).train()


class RecordedDraws(Draws):
    """Gives the recorded random numbers in the published order; permutations are the identity.

    Args:
        listed: the case's `random_draws`: kind, shape and key of each.
    """

    def __init__(self, listed: list[dict[str, Any]]) -> None:
        self.pending = [draw for draw in listed if draw["kind"] != "randperm"]

    def _next(self, kind: str, shape: tuple[int, ...]) -> np.ndarray:
        draw = self.pending.pop(0)
        if not draw["kind"].startswith(kind) or tuple(draw["shape"]) != tuple(shape):
            raise ValueError(f"the case records {draw['kind']} {draw['shape']} next, asked for {kind} {list(shape)}")
        return synth.uniform(draw["key"], tuple(shape))

    def uniform(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        return torch.from_numpy(self._next("rand_like", shape)).to(like.dtype)

    def integers(self, high: int, shape: tuple[int, ...], like: Tensor) -> Tensor:
        return torch.from_numpy(np.floor(high * self._next("randint", shape)).astype(np.int64))

    def permutation(self, count: int, like: Tensor) -> Tensor:
        return torch.arange(count)
