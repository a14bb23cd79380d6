"""Loads pretrained backbones, in their publishers' formats, for training from scratch.

torchvision's ResNet, Microsoft's Swin and BAAI's EVA-02 have the entry names of the published Co-DETR code without the
prefix. Every entry is loaded or known to be unnecessary for a detector; others are an error. The backbone of a
detector's checkpoint, ours or a published one, can be loaded too.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codetr_cli.config.schema import Settings
from codetr_cli.errors import CheckpointError, listed
from codetr_cli.receipts import has_changed
from codetr_cli.weights.checkpoint import is_safetensors, read_safetensors, refuse_exported
from codetr_cli.weights.download import DownloadProgress
from codetr_cli.weights.load_state import check_shapes
from codetr_cli.weights.names import drop_reason, to_ours
from codetr_cli.weights.pickles import is_plain_tensor, read_pickle
from codetr_cli.weights.published import BACKBONES, pretrained_name
from codetr_cli.weights.resolve import doubted_if_unusable, open_weights, resolve_weights
from codetr_cli.weights.values import check_types, check_weights

PREFIX = "backbone."
SECTIONS = ("model", "module", "state_dict")
# Entries of classifiers and masked-image models that a detector does not have.
UNUSED = re.compile(
    r"(fc|head|lm_head|norm|fc_norm)\.(weight|bias)|cls_token|mask_token|rope\.freqs_(cos|sin)"
    r"|layers\.\d+\.blocks\.\d+\.attn_mask"
)
# Entries of a detector that they do not have: the norms of its feature maps.
ADDED = re.compile(r"backbone\.(norm\d|out_norm)\.(weight|bias)")
POSITIONS, PATCHES = "backbone.pos_embed", "backbone.patch_embed.proj.weight"
PARTS_OF_DETECTORS = ("query_head.", "class_heads.", "encoder.")


def find_backbone(settings: Settings, *, progress: DownloadProgress | None = None) -> Path | None:
    """The file of `train.backbone_weights`; None for random weights.

    Args:
        settings: `train.backbone_weights` is auto, none, a pretrained backbone's name, or as for `resolve_weights`.
        progress: called during a download.

    Raises:
        CheckpointError: the named backbone is not in the cache; or as `resolve_weights`.
    """
    wanted = settings.train.backbone_weights
    if wanted == "none":
        return None
    if wanted == "auto":
        name = pretrained_name(settings)
        return _unchanged(name) if name and BACKBONES[name].file.is_file() else None
    if wanted in BACKBONES:
        file = BACKBONES[wanted].file
        if not file.is_file():
            raise CheckpointError(
                f"the pretrained backbone {wanted!r} is not in the cache: run `codetr download {wanted}`."
            )
        return _unchanged(wanted)
    return resolve_weights(wanted, progress=progress)


def _unchanged(name: str) -> Path:
    """The file of a pretrained backbone that is in the cache.

    Raises:
        CheckpointError: it is not as it was downloaded.
    """
    file = BACKBONES[name].file
    if has_changed(file):
        raise CheckpointError(
            f"{file} has changed since it was downloaded: run `codetr download {name}`, which downloads it again."
        )
    return file


def load_backbone(model: nn.Module, path: Path, *, allow_nonfinite: bool = False) -> str:
    """Loads a pretrained backbone into a detector.

    Args:
        model: its `backbone.` entries are replaced, except norms that pretrained backbones do not have.
        path: a published backbone (.pth, .pt, .safetensors) or a detector's checkpoint.
        allow_nonfinite: accept NaN and infinite weights.

    Returns:
        a sentence on what was loaded.

    Raises:
        CheckpointError: unreadable, another architecture than the model's backbone, or weights that are not finite.
    """
    target = {name: value for name, value in model.state_dict().items() if name.startswith(PREFIX)}
    refuse_exported(path)
    with doubted_if_unusable(path):
        found = _read_backbone(path)
    source = f"the backbone in {path}"
    check_types(found, source=source, expected=target)
    for name, resize in ((POSITIONS, _resize_positions), (PATCHES, _resize_patches)):
        if name in found and name in target:
            found[name] = resize(found[name], target[name])
    added = [name for name in target if name not in found and ADDED.fullmatch(name)]
    check_shapes(
        {name: value for name, value in found.items() if name in target or not ADDED.fullmatch(name)},
        {name: value.shape for name, value in target.items() if name not in added},
        source=source,
    )
    used = {name: found[name] for name in target if name in found}
    check_weights(used, source=source, allow_nonfinite=allow_nonfinite, expected=target)
    model.load_state_dict(used, strict=False)
    fresh = f"; {len(added)} norms of its feature maps are re-initialized" if added else ""
    return f"backbone from {path}: {len(target) - len(added)} entries loaded{fresh}"


def _read_backbone(path: Path) -> dict[str, Tensor]:
    """The backbone's entries under our names.

    Raises:
        CheckpointError: unreadable, or with an entry of an unknown backbone.
    """
    content: Any = read_safetensors(path)[0] if is_safetensors(path) else read_pickle(path)
    if isinstance(content, dict):
        content = next((content[name] for name in SECTIONS if isinstance(content.get(name), dict)), content)
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path} has no named entries: it is not a pretrained backbone.")
    if any(str(name).startswith(PARTS_OF_DETECTORS) for name in content):
        return {name: value for name, value in open_weights(path).state.items() if name.startswith(PREFIX)}
    state: dict[str, Tensor] = {}
    unknown = []
    for name, value in content.items():
        ours = to_ours(f"{PREFIX}{name}", "sensex") if isinstance(name, str) else None
        if is_plain_tensor(value) and ours is not None and not UNUSED.fullmatch(str(name)):
            state[ours] = value
        elif not (UNUSED.fullmatch(str(name)) or drop_reason(f"{PREFIX}{name}")):
            unknown.append(str(name))
    if unknown:
        raise CheckpointError(
            f"{path} has unknown entries: {listed(unknown, 8)}, or they are no plain tensors. Supported are "
            "torchvision's ResNet, Microsoft's Swin, EVA-02, and any Co-DETR checkpoint."
        )
    return state


def _resize_positions(table: Tensor, target: Tensor) -> Tensor:
    """Resizes a position embedding (1, 1 + N*N, C) bicubically to another grid; the class token's row stays first.

    Same behaviour as Sense-X, mmdet/models/backbones/vit.py.
    """
    sides = [math.isqrt(max(each.shape[1] - 1, 0)) if each.dim() == 3 else 0 for each in (table, target)]
    if sides[0] == sides[1] or not all(sides) or table.shape != (1, sides[0] ** 2 + 1, target.shape[2]):
        return table
    grid = table[:, 1:].reshape(1, sides[0], sides[0], -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid.float(), size=(sides[1], sides[1]), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2).to(table)], dim=1)


def _resize_patches(kernel: Tensor, target: Tensor) -> Tensor:
    """Resizes a patch embedding kernel (C, 3, P, P) bicubically to another patch size."""
    if kernel.shape[:2] != target.shape[:2] or kernel.shape[2:] == target.shape[2:] or 0 in kernel.shape:
        return kernel
    size = (target.shape[2], target.shape[3])
    return F.interpolate(kernel.float(), size=size, mode="bicubic", align_corners=False).to(kernel)
