"""Rotary tables of recorded ViT cases.

The recorded runs loaded their drawn entries into every buffer, the rotary tables included, and tables that several
blocks share kept what came last. Our network computes its tables; here it is given the cases'.
"""

from __future__ import annotations

import math
import re

import numpy as np
from torch import Tensor

from codetr_cli.models.backbones.vit import Rotation, ViT
from codetr_cli.models.codetr import CoDETR
from tests.golden import synth
from tests.golden.case import Case, relative_error

TABLE = re.compile(r"backbone\.(?:rope_\w+|blocks\.\d+\.attn\.rope)\.freqs_(cos|sin)")
RECORDED = "vit/rope_win/freqs_cos"


def use_drawn_rotations(case: Case, model: CoDETR) -> None:
    """Replaces the tables of windows, and of images of a fixed size, by the case's, unless it records ours."""
    vit = model.backbone
    if not isinstance(vit, ViT) or _records_computed(case, vit):
        return
    tables = _drawn(case)
    computed = vit.rotations

    def rotations(height: int, width: int, *, like: Tensor) -> tuple[Rotation, Rotation]:
        window, image = computed(height, width, like=like)
        if vit.fixed_size is not None:
            image = tables.get(math.prod((height, width)), image)
        return tables.get(vit.window_size**2, window), image

    vit.rotations = rotations  # type: ignore[method-assign]


def _drawn(case: Case) -> dict[int, Rotation]:
    """Tokens of a table -> its cosines and sines."""
    last: dict[tuple[int, str], tuple[str, tuple[int, ...]]] = {}
    for name, shape, _ in case.manifest:
        if match := TABLE.fullmatch(name):
            last[shape[0], match[1]] = (name, shape)
    salt = case.description.get("salt", "")
    drawn = {key: case.tensor(synth.parameter(*entry, salt)) for key, entry in last.items()}
    return {tokens: (drawn[tokens, "cos"], drawn[tokens, "sin"]) for tokens, _ in drawn}


def _records_computed(case: Case, vit: ViT) -> bool:
    if RECORDED not in case.recorded:
        return False
    (cosine, _), _ = vit.rotations(1, 1, like=vit.pos_embed)
    ours = cosine.detach().cpu().numpy().reshape(-1)[:: case.tensors[RECORDED]["every"]]
    return relative_error(ours.astype(np.float64), case.recorded[RECORDED].reshape(-1).astype(np.float64)) < 1e-6
