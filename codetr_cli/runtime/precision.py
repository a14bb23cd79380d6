"""The number type a network computes in."""

from __future__ import annotations

import torch

from codetr_cli.errors import ConfigError


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The reduced type of matrix products and convolutions, None for float32.

    Args:
        precision: auto, fp32, bf16 or fp16. auto is bf16 on GPUs that have it in hardware and fp32 anywhere else.
        device: where the network runs.

    Raises:
        ConfigError: fp16 without a GPU; its small range needs loss scaling, which only GPUs support.
    """
    if precision == "auto":
        native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else None
    if precision == "fp16" and device.type != "cuda":
        raise ConfigError(f"precision fp16 needs a CUDA GPU, the device is {device}: use fp32 or bf16")
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def resolve_precision(precision: str) -> str:
    """The precision of inference: auto is fp32 on every device, because published numbers are fp32."""
    return "fp32" if precision == "auto" else precision
