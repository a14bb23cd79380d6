"""Operators on tensors that have sizes and no values, for the memory of networks that do not fit into this machine."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_map

EFFICIENT, FLASH = 2, 1
"""Kernels of attention, as numbered by PyTorch (SDPBackend)."""


def run(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    """The result of an operator on tensors of the device "meta".

    Numbers are zeros, and conditions are fulfilled by all elements: sizes are upper bounds.
    """
    if name == "aten::_local_scalar_dense":
        return torch.zeros((), dtype=args[0].dtype).item()
    if name == "aten::nonzero":
        return torch.empty(args[0].numel(), args[0].dim(), dtype=torch.int64, device="meta")
    if name == "torchvision::nms":
        return torch.empty(len(args[0]), dtype=torch.int64, device="meta")
    if name == "aten::_fused_sdp_choice":
        has_mask = len(args) > 3 and args[3] is not None
        return EFFICIENT if has_mask or args[0].dtype == torch.float32 else FLASH
    if name in ("aten::index", "aten::index_put", "aten::index_put_"):
        args = (args[0], [i for index in args[1] for i in _as_numbers(index)], *args[2:])
    args, kwargs = tree_map(_to_meta, (args, kwargs))
    return func(*args, **kwargs)


def _as_numbers(index: torch.Tensor | None) -> list[torch.Tensor | None]:
    """A condition as the indices of all its elements."""
    if index is None or index.dtype not in (torch.bool, torch.uint8):
        return [index]
    return [torch.empty(index.numel(), dtype=torch.int64, device="meta") for _ in range(index.dim())]


def _to_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, torch.Tensor) and value.dim() else value
