"""Between the entries of a publisher and ours: names, and the order of numbers where a publisher has another one.

MMDetection 3 merges Swin's 2 x 2 tokens with `nn.Unfold`: channel after channel, the four tokens of each in reading
order. Ours, as Sense-X and Microsoft, puts token after token, and goes down before it goes right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from codetr_cli.weights.names import Naming, Renamed, matches, rename, to_published
from codetr_cli.weights.tables.swin import MERGED

TOKENS = [0, 2, 1, 3]
"""Place in reading order of our first to fourth token; the same list leads back."""


def to_our_state(entries: Mapping[str, Tensor], naming: Naming | None = None) -> Renamed[Tensor]:
    """Gives every published entry our name and our order of numbers, or drops it for a known reason.

    Args:
        entries: published name -> value.
        naming: whose names; None finds out.

    Raises:
        CheckpointError: as `rename`.
    """
    renamed = rename(entries, naming)
    state = _reordered(renamed.state, renamed.naming, _from_channels)
    return Renamed(renamed.naming, state, renamed.dropped)


def to_published_state(state: Mapping[str, Tensor], naming: Naming, family: str = "co_dino") -> dict[str, Tensor]:
    """The opposite of `to_our_state`, without what that drops.

    Raises:
        ValueError: an entry that this publisher has no name for.
    """
    entries = {}
    for name, value in _reordered(state, naming, _to_channels).items():
        published = to_published(name, naming, family)
        if published is None:
            raise ValueError(f"{name} has no name among those of {naming}")
        entries[published] = value
    return entries


def _reordered(state: Mapping[str, Tensor], naming: Naming, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    if naming != "mmdet3":
        return dict(state)
    return {name: change(value) if matches(name, MERGED) else value for name, value in state.items()}


def _from_channels(value: Tensor) -> Tensor:
    """Channel after channel (..., C * 4) to token after token (..., 4 * C)."""
    if value.dim() == 0 or value.shape[-1] % 4:  # no such entry: whoever compares shapes will say so
        return value
    return value.reshape(*value.shape[:-1], -1, 4)[..., TOKENS].transpose(-1, -2).flatten(-2)


def _to_channels(value: Tensor) -> Tensor:
    return value.reshape(*value.shape[:-1], 4, -1)[..., TOKENS, :].transpose(-1, -2).flatten(-2)
