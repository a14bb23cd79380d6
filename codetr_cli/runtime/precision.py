"""The number type a network computes in.

| precision | matrix products | convolutions |
|---|---|---|
| fp32 | float32 | float32 (cuDNN would use TF32 by itself) |
| tf32 | float32 rounded to TF32, sums in float32 | the same |
| bf16, fp16 | in that type, by autocast | the same; float32 ones as PyTorch is set |
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import torch

from codetr_cli.errors import ConfigError
from codetr_cli.runtime.devices import has_bf16, why_no_tf32

DTYPES = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Precision -> the type of autocast, None without it."""


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The reduced type of matrix products and convolutions, None for float32 and TF32.

    Args:
        precision: auto, fp32, tf32, bf16 or fp16. auto is bf16 on GPUs that have it in hardware and fp32 anywhere else.
        device: where the network runs.

    Raises:
        ConfigError: the device does not have this precision: fp16 without a GPU (its small range needs loss scaling,
            which only GPUs support), or tf32 without TF32 units.
    """
    return DTYPES[resolve_training_precision(precision, device)]


def resolve_precision(precision: str) -> str:
    """The precision of inference: auto is fp32 on every device, because published numbers are fp32."""
    return "fp32" if precision == "auto" else precision


def resolve_training_precision(precision: str, device: torch.device) -> str:
    """The precision of training: fp32, tf32, bf16 or fp16; arguments and errors as for `autocast_dtype`."""
    if precision == "auto":
        return "bf16" if has_bf16(device) else "fp32"
    if precision == "fp16" and device.type != "cuda":
        raise ConfigError(f"precision fp16 needs a CUDA GPU, the device is {device}: use fp32 or bf16")
    if precision == "tf32":
        reason = why_no_tf32(device)
        if reason is not None:
            raise ConfigError(f"precision tf32 needs an NVIDIA GPU with TF32: {reason}. Use fp32")
    return precision


@contextlib.contextmanager
def float32_arithmetic(precision: str, device: torch.device) -> Iterator[None]:
    """Switches TF32 on for tf32 and off for fp32, in matrix products and convolutions; restores PyTorch's switches.

    By default PyTorch computes float32 convolutions on a GPU in TF32, and matrix products in float32. Other precisions
    and other devices leave the switches as they are. The switches are those of the whole process.

    Args:
        precision: as resolved, not auto.
        device: where the network runs.
    """
    if device.type != "cuda" or precision not in ("fp32", "tf32"):
        yield
        return
    before = _tf32_switches()
    _set_tf32(matmul=precision == "tf32", convolutions=precision == "tf32")
    try:
        yield
    finally:
        _set_tf32(**before)


# PyTorch 2.9 added `fp32_precision` beside `allow_tf32`. Setting only the new one makes PyTorch's own readers of the
# old one raise (`torch.backends.cudnn.flags`, parts of torch.compile); setting the old one sets both. Some releases
# warn that it is old.


def _tf32_switches() -> dict[str, bool]:
    """PyTorch's switches, however they were set."""
    backends = torch.backends
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return {"matmul": backends.cuda.matmul.allow_tf32, "convolutions": backends.cudnn.allow_tf32}
    except RuntimeError:  # set by `fp32_precision`
        new = backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
        return dict(zip(("matmul", "convolutions"), (value == "tf32" for value in new), strict=True))


def _set_tf32(*, matmul: bool, convolutions: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.backends.cuda.matmul.allow_tf32 = matmul
        torch.backends.cudnn.allow_tf32 = convolutions
