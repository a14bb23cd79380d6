"""CUDA's autocast rules (aten/src/ATen/autocast_mode.h) for the emulated device; those of a CPU differ.

The devices of other kinds get them too: theirs differ in few operators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_flatten

from tests.strict.recorder import StrictTensor, aten

LOWER = (
    "_convolution", "conv1d", "conv2d", "conv3d", "conv_transpose2d.input", "convolution", "prelu", "addmm", "addmv",
    "matmul", "einsum", "mm", "mv", "linear", "baddbmm", "bmm", "scaled_dot_product_attention",
)  # fmt: skip
FLOAT32 = (
    "exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt", "pow.Tensor_Scalar", "pow.Tensor_Tensor",
    "pow.Scalar", "softplus", "layer_norm", "native_layer_norm", "group_norm", "cosine_similarity", "nll_loss",
    "nll_loss2d", "l1_loss", "smooth_l1_loss", "huber_loss", "mse_loss", "binary_cross_entropy_with_logits", "cdist",
    "dist", "logsumexp", "renorm", "upsample_nearest2d", "upsample_nearest2d.vec", "upsample_bilinear2d",
    "upsample_bilinear2d.vec", "upsample_bicubic2d", "upsample_bicubic2d.vec", "_upsample_bilinear2d_aa.vec",
    # Those of a GPU take the type of the result instead, but C++ would convert on the device that it believes in.
    "softmax.int", "log_softmax.int",
)  # fmt: skip
FLOAT32_RESULT = (
    "prod", "prod.dim_int", "cumprod", "cumsum", "linalg_vector_norm", "sum", "sum.dim_IntList",
)  # fmt: skip
WIDEST = ("addcdiv", "addcmul", "atan2", "bilinear", "grid_sampler", "index_put", "scatter_add", "cat", "stack")
Choose = Callable[[str, Any, Any], torch.dtype | None]
"""(kind of the device, arguments, named ones) -> the type that arguments are cast to; None: none."""

_cast_weights: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}


def clear_cast_weights() -> None:
    """Drops the copies of weights in reduced precision, at the end of the outermost autocast."""
    _cast_weights.clear()


def register_autocast(library: Any, kind: str) -> None:
    """Registers the rules with the dispatcher, under the autocast key of a kind of device."""
    for name in LOWER:
        _register(library, kind, name, _lower)
    for name in FLOAT32:
        _register(library, kind, name, _float32)
    for name in FLOAT32_RESULT:
        _register(library, kind, name, _float32, result=True)
    for name in WIDEST:
        _register(library, kind, name, _widest)


def _register(library: Any, kind: str, name: str, choose: Choose, *, result: bool = False) -> None:
    base, _, overload = name.partition(".")
    op = getattr(getattr(aten, base), overload or "default")
    names = [argument.name for argument in op._schema.arguments]
    key = f"Autocast{kind.upper()}"
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def call(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(keys):
            dtype = choose(kind, args, kwargs)
            if dtype is None:
                return op(*args, **kwargs)
            if result:
                given = {**dict(zip(names, args, strict=False)), **kwargs}
                if given.get("dtype") is None and args[0].is_floating_point() and args[0].dtype != torch.float64:
                    given["dtype"] = dtype
                return op(args[0], **{key: value for key, value in given.items() if key != names[0]})
            return op(*(_cast(a, dtype) for a in args), **{key: _cast(a, dtype) for key, a in kwargs.items()})

    library.impl(name, call, key)


def _lower(kind: str, args: Any, kwargs: Any) -> torch.dtype | None:
    return torch.get_autocast_dtype(kind)


def _float32(kind: str, args: Any, kwargs: Any) -> torch.dtype | None:
    return torch.float32


def _widest(kind: str, args: Any, kwargs: Any) -> torch.dtype | None:
    kinds = {a.dtype for a in tree_flatten((args, kwargs))[0] if isinstance(a, torch.Tensor)}
    return torch.float32 if torch.float32 in kinds and torch.get_autocast_dtype(kind) in kinds else None


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_cast(item, dtype) for item in value)
    if not isinstance(value, StrictTensor) or not value.is_floating_point() or value.dtype in (dtype, torch.float64):
        return value
    kept = dtype != torch.float32 and value.requires_grad and value.is_leaf and value.dtype == torch.float32
    if not kept:
        return value.to(dtype)
    if id(value) not in _cast_weights:
        _cast_weights[id(value)] = value, value.to(dtype)
    return _cast_weights[id(value)][1]
