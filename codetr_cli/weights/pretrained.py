"""Backbones that were pretrained on images, as their publishers write them, for training from scratch.

torchvision's residual networks, Microsoft's Swin and BAAI's EVA-02 have the names that the published Co-DETR code gives
their entries within a detector, less the prefix. Every entry is used, or known not to belong to a detector, or an error
names it. A detector's checkpoint, ours or a published one, gives its backbone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codetr_cli.config.schema import Settings
from codetr_cli.errors import CheckpointError, listed
from codetr_cli.weights.checkpoint import is_safetensors, load_checkpoint, read_metadata, read_safetensors
from codetr_cli.weights.download import Progress
from codetr_cli.weights.load_state import check_entries, shape_text
from codetr_cli.weights.names import drop_reason, to_ours
from codetr_cli.weights.pickles import read_pickle
from codetr_cli.weights.published import BACKBONES, pretrained_name
from codetr_cli.weights.resolve import open_weights, resolve_weights

PREFIX = "backbone."
SECTIONS = ("model", "module", "state_dict")
# What a classifier or a masked-image model has and a detector has not.
LEFT_OUT = re.compile(
    r"(fc|head|lm_head|norm|fc_norm)\.(weight|bias)|cls_token|mask_token|rope\.freqs_(cos|sin)"
    r"|layers\.\d+\.blocks\.\d+\.attn_mask"
)
# What a detector has and they have not: the norms of the maps it takes.
ADDED = re.compile(r"backbone\.(norm\d|out_norm)\.(weight|bias)")
POSITIONS, PATCHES = "backbone.pos_embed", "backbone.patch_embed.proj.weight"
PARTS_OF_DETECTORS = ("query_head.", "class_heads.", "encoder.")


def find_backbone(settings: Settings, *, progress: Progress | None = None) -> Path | None:
    """The file that `train.backbone_weights` means; None for random weights.

    Args:
        settings: with `train.backbone_weights`: auto, none, a pretrained backbone's name, or as `resolve_weights`.
        progress: told how a download goes on.

    Raises:
        CheckpointError: a name whose file is not on this disk; says how to get it. As `resolve_weights`.
    """
    wanted = settings.train.backbone_weights
    if wanted == "none":
        return None
    if wanted == "auto":
        name = pretrained_name(settings)
        return BACKBONES[name].file if name and BACKBONES[name].file.is_file() else None
    if wanted in BACKBONES:
        file = BACKBONES[wanted].file
        if not file.is_file():
            raise CheckpointError(
                f"the pretrained backbone {wanted!r} is not on this machine: `codetr download {wanted}` fetches it."
            )
        return file
    return resolve_weights(wanted, progress=progress)


def load_backbone(model: nn.Module, path: Path) -> str:
    """Puts a pretrained backbone into a detector.

    Args:
        model: its entries that start with `backbone.` are replaced, all but norms that no pretrained backbone has.
        path: as a publisher of backbones wrote it (.pth, .pt, .safetensors), or a detector's checkpoint.

    Returns:
        a sentence on what was loaded.

    Raises:
        CheckpointError: unreadable, or of another architecture than the model's backbone.
    """
    target = {name: value for name, value in model.state_dict().items() if name.startswith(PREFIX)}
    found = _read(path)
    for name, resized in ((POSITIONS, _resized_positions), (PATCHES, _resized_patches)):
        if name in found and name in target:
            found[name] = resized(found[name], target[name])
    added = [name for name in target if name not in found and ADDED.fullmatch(name)]
    check_entries(
        missing=[name for name in target if name not in found and name not in added],
        unexpected=[name for name in found if name not in target and not ADDED.fullmatch(name)],
        differing=[
            f"{name} has {shape_text(found[name].shape)} instead of {shape_text(value.shape)}"
            for name, value in target.items()
            if name in found and found[name].shape != value.shape
        ],
        source=f"the backbone in {path}",
    )
    model.load_state_dict({name: found[name] for name in target if name in found}, strict=False)
    fresh = f"; {len(added)} norms of its maps start afresh" if added else ""
    return f"backbone from {path}: {len(target) - len(added)} entries carried over{fresh}"


def _read(path: Path) -> dict[str, Tensor]:
    """The backbone's entries under our names.

    Raises:
        CheckpointError: unreadable, or an entry that belongs to no known backbone.
    """
    if is_safetensors(path):
        if "format" in read_metadata(path):
            return _of_detector(load_checkpoint(path).state)
        content: Any = read_safetensors(path)[0]
    else:
        content = read_pickle(path)
    if isinstance(content, dict):
        content = next((content[name] for name in SECTIONS if isinstance(content.get(name), dict)), content)
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path} holds no entries by name: it is no pretrained backbone.")
    if any(str(name).startswith(PARTS_OF_DETECTORS) for name in content):
        return _of_detector(open_weights(path).state)
    state: dict[str, Tensor] = {}
    unknown = []
    for name, value in content.items():
        ours = to_ours(f"{PREFIX}{name}", "sensex") if isinstance(name, str) else None
        if isinstance(value, Tensor) and ours is not None and not LEFT_OUT.fullmatch(str(name)):
            state[ours] = value
        elif not (LEFT_OUT.fullmatch(str(name)) or drop_reason(f"{PREFIX}{name}")):
            unknown.append(str(name))
    if unknown:
        raise CheckpointError(
            f"{path} has entries of no known backbone: {listed(unknown, 8)}. Known are torchvision's ResNet, "
            "Microsoft's Swin, EVA-02, and any Co-DETR checkpoint."
        )
    return state


def _of_detector(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name.startswith(PREFIX)}


def _resized_positions(table: Tensor, target: Tensor) -> Tensor:
    """A position table (1, 1 + N*N, C) for another grid: the class token's row first, the grid resized bicubically.

    Behaviour of the pretrained loading of Sense-X, mmdet/models/backbones/vit.py.
    """
    sides = [math.isqrt(max(each.shape[1] - 1, 0)) if each.dim() == 3 else 0 for each in (table, target)]
    if sides[0] == sides[1] or not all(sides) or table.shape[1] != sides[0] ** 2 + 1:
        return table
    grid = table[:, 1:].reshape(1, sides[0], sides[0], -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid.float(), size=(sides[1], sides[1]), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2).to(table)], dim=1)


def _resized_patches(kernel: Tensor, target: Tensor) -> Tensor:
    """A patch kernel (C, 3, P, P) for patches of another size, resized bicubically."""
    if kernel.dim() != 4 or target.dim() != 4 or kernel.shape[2:] == target.shape[2:]:
        return kernel
    size = (target.shape[2], target.shape[3])
    return F.interpolate(kernel.float(), size=size, mode="bicubic", align_corners=False).to(kernel)
