"""Converts entries between a publisher's layout and ours: names, and the memory order of merged Swin tokens.

MMDetection 3 merges Swin's 2 x 2 tokens with `nn.Unfold`: channel by channel, each with its four tokens row by row.
We, Sense-X and Microsoft merge token by token, column by column.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

from codetr_cli.weights.names import Naming, Renamed, matches, rename, to_published
from codetr_cli.weights.tables import MERGED

TOKENS = [0, 2, 1, 3]
"""Row-major index of each token of ours; the permutation is its own inverse."""


def to_our_state(entries: Mapping[str, Tensor], naming: Naming | None = None) -> Renamed[Tensor]:
    """Converts published entries to our names and layout; drops entries that we know we do not need.

    Args:
        entries: published name -> value.
        naming: the publisher; None detects it.

    Raises:
        CheckpointError: as `rename`.
    """
    renamed = rename(entries, naming)
    return replace(renamed, state=_reordered(renamed.state, renamed.naming, _to_token_major))


def to_published_state(state: Mapping[str, Tensor], naming: Naming) -> dict[str, Tensor]:
    """The inverse of `to_our_state`, without the dropped entries.

    Raises:
        ValueError: an entry that this publisher has no name for.
    """
    entries = {}
    for name, value in _reordered(state, naming, _to_channel_major).items():
        published = to_published(name, naming)
        if published is None:
            raise ValueError(f"{naming} has no name for {name}")
        entries[published] = value
    return entries


def _reordered(state: Mapping[str, Tensor], naming: Naming, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    if naming != "mmdet3":
        return dict(state)
    return {name: change(value) if matches(name, MERGED) else value for name, value in state.items()}


def _to_token_major(value: Tensor) -> Tensor:
    """From channel-major (..., C * 4) to token-major (..., 4 * C)."""
    if (
        value.dim() == 0 or value.numel() == 0 or value.shape[-1] % 4
    ):  # another architecture: comparing shapes reports it
        return value
    return value.reshape(*value.shape[:-1], -1, 4)[..., TOKENS].transpose(-1, -2).flatten(-2)


def _to_channel_major(value: Tensor) -> Tensor:
    return value.reshape(*value.shape[:-1], 4, -1)[..., TOKENS, :].transpose(-1, -2).flatten(-2)
