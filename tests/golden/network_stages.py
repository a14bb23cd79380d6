"""Names for what our network computes: the keys of recorded cases, in either publisher's spelling and layout."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from codetr_cli.models.backbones.vit import ViT
from codetr_cli.models.codetr import CoDETR
from tests.golden.case import GRADIENT_TOLERANCE, TOLERANCE, Case

Values = dict[str, Any]

TOKENS_FIRST = re.compile(r"memory|encoder/\d+|decoder/hidden/\d+|decoder/query_(pos_)?in")
"""Keys under which Sense-X cases hold (tokens or queries, N, C)."""


def tolerance_of(key: str) -> float:
    """Largest relative error of a stored tensor."""
    return GRADIENT_TOLERANCE if key.startswith("grad") else TOLERANCE


def in_layout_of(case: Case, values: Values) -> Values:
    """Puts tokens before the batch where the case's publisher does."""
    if case.publisher != "sensex":
        return values
    return {key: value.transpose(0, 1) if TOKENS_FIRST.fullmatch(key) else value for key, value in values.items()}


@contextmanager
def stages_of(model: CoDETR) -> Iterator[Values]:
    """Collects what the parts of the network give; a part that runs several times keeps its first output."""
    parts: dict[str, nn.Module] = {"backbone": model.backbone, "neck": model.neck}
    parts |= {f"encoder/layer/{i}": layer for i, layer in enumerate(model.encoder.layers)}
    parts |= {f"decoder/layer/{i}": layer for i, layer in enumerate(model.decoder.layers)}
    if isinstance(model.backbone, ViT):
        parts |= {f"vit/block/{i}": block for i, block in enumerate(model.backbone.blocks)}
        parts["vit/patch_embed"] = model.backbone.patch_embed
    values: Values = {}
    handles = []
    for name, part in parts.items():

        def keep(_module: nn.Module, _inputs: Any, output: Any, name: str = name) -> None:
            maps = {f"{name}/{i}": m for i, m in enumerate(output)} if isinstance(output, list) else {name: output}
            for key, value in maps.items():
                values.setdefault(key, value)

        handles.append(part.register_forward_hook(keep))
    try:
        yield values
    finally:
        for handle in handles:
            handle.remove()
    for key in list(values):
        values[key.replace("encoder/layer/", "encoder/").replace("decoder/layer/", "decoder/hidden/")] = values[key]


def rotary_values(model: CoDETR) -> Values:
    """The tables that turn queries and keys within windows."""
    vit = model.backbone
    if not isinstance(vit, ViT):
        return {}
    tables, _ = vit.rotations(1, 1, like=vit.pos_embed)
    return dict(zip(("vit/rope_win/freqs_cos", "vit/rope_win/freqs_sin"), tables, strict=True))


def maps_values(maps: Sequence[Tensor]) -> Values:
    """The maps that the auxiliary heads read."""
    return {f"{name}/{i}": m for i, m in enumerate(maps) for name in ("head/enc_outputs", "encoder_maps")}


def layers_values(logits: Tensor, boxes: Tensor) -> Values:
    """Logits and boxes of every decoder layer, stacked and one by one."""
    values: Values = {"head/classes": logits, "head/coords": boxes}
    for i in range(len(logits)):
        values |= {f"decoder/logits/{i}": logits[i], f"decoder/boxes/{i}": boxes[i]}
    return values


def proposals_values(case: Case, proposals: Sequence[tuple[Tensor, Tensor]]) -> Values:
    """The RPN's first 50 proposals of every image."""
    values: Values = {}
    for i, (boxes, scores) in enumerate(proposals):
        boxes, scores = boxes[:50], scores[:50]
        if case.publisher == "sensex":
            values[f"rpn/proposals/{i}"] = torch.cat([boxes, scores[:, None]], 1)
        else:
            values |= {f"rpn/proposals/{i}": boxes, f"rpn/scores/{i}": scores}
    return values


def indices_of(wanted: Tensor, objects: Tensor) -> np.ndarray:
    """Index of each row of `wanted` (P, 4) among an image's objects (G, 4)."""
    if len(objects) == 0:
        return np.zeros(0, np.int64)
    return (wanted[:, None] == objects[None]).all(-1).to(torch.uint8).argmax(1).cpu().numpy()
