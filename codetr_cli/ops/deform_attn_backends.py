"""Which backend of multi-scale deformable attention runs: the fastest that can run here and is proven equal here.

Backends, fastest first: `triton` (GPUs), `cpu` (the compiled kernel), `mmcv` (when the user has it with its operators),
`torch` (plain PyTorch, with a gathering formulation at inference on a CPU) and `reference` (plain PyTorch, always
level by level, as published code without its operator does it; never chosen unless asked for).
"""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import ModuleType

import torch

from codetr_cli.errors import ConfigError, ResourceError
from codetr_cli.ops import deform_attn_torch

COMPILED = ("triton", "cpu", "mmcv")
"""Backends with their own kernels, fastest first: modules ops/deform_attn_<name>.py."""

BACKENDS = (*COMPILED, "torch", "reference")

CPU_SAMPLES = 128
"""Most levels * points that the compiled kernel has room for (MAX_SAMPLES in deform_attn.c); published networks: 20."""

VARIABLE = "CODETR_DEFORM_ATTN"
"""Environment variable that forces a backend."""

_forced = "auto"


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Forces a backend for all calls in the context, in all threads; "auto" restores the automatic choice.

    Raises:
        ConfigError: there is no such backend.
    """
    global _forced
    before, _forced = _forced, _known(name, "use_backend")
    try:
        yield
    finally:
        _forced = before


def is_forced() -> bool:
    """Whether `use_backend` forces a backend now."""
    return _forced != "auto"


def available_backends(device: torch.device | str = "cpu") -> dict[str, str | None]:
    """Every backend, fastest first: None if it can run on `device`, else the reason, one sentence."""
    return {name: _why_not(name, _with_index(device)) for name in BACKENDS}


def active_backend(device: torch.device | str = "cpu") -> str:
    """The name of the backend that calls on `device` use; "cuda" is the current GPU.

    Raises:
        ResourceError: one is forced that cannot run there.
        ConfigError: the environment names one that does not exist.
    """
    return choose_backend("auto", device)


def choose_backend(wanted: str, device: torch.device | str) -> str:
    """The backend to use: `wanted` unless it is "auto", else the forced one, else the fastest that can run.

    "torch" when the chosen one does not give the reference's numbers there.

    Args:
        wanted: a setting: a name or "auto".
        device: of the tensors; "cuda" (ROCm calls itself that too) is the current GPU.

    Raises:
        ResourceError: the one asked for cannot run there.
        ConfigError: there is no backend of that name.
    """
    name, source = wanted, "attention_backend"
    device = _with_index(device)
    if name == "auto":
        name, source = (_forced, "use_backend") if _forced != "auto" else (os.environ.get(VARIABLE, "auto"), VARIABLE)
    if _known(name, source) == "auto":
        name = _fastest(device, deform_attn_torch.wants_fixed_order())
    reason = _why_not(name, device)
    if reason is not None:
        raise ResourceError(f"{source} selects the deformable attention backend {name!r}: {reason} Use 'auto' instead.")
    return name if name not in COMPILED or proven(name, device) else "torch"


def backend_module(name: str) -> ModuleType:
    """The module of a backend with its own kernels; imported on first use."""
    return importlib.import_module(f"codetr_cli.ops.deform_attn_{name}")


@functools.cache
def proven(name: str, device: torch.device) -> bool:
    """Whether a backend matches the reference on a device; tested once, on a problem of a few milliseconds.

    A backend that does not match is reported in a warning and not used there again.
    """
    # In a separate thread, without autocast, inference mode or tracing of the caller.
    with ThreadPoolExecutor(max_workers=1) as thread:
        difference = thread.submit(_difference, name, _with_index(device)).result()
    if difference is not None:
        warnings.warn(
            f"the deformable attention of {name!r} is not used on this machine: {difference}. Plain PyTorch is used "
            "instead, which is slower; `codetr bench ops` compares all of them",
            RuntimeWarning,
            stacklevel=2,
        )
    return difference is None


def _with_index(device: torch.device | str) -> torch.device:
    """The device itself; the current GPU where it has no index, because the GPUs of a machine may differ."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return device


@functools.cache
def _fastest(device: torch.device, fixed_order: bool) -> str:
    return next(name for name in BACKENDS if _asked(name, device, fixed_order) is None)


def _why_not(name: str, device: torch.device) -> str | None:
    return _asked(name, device, deform_attn_torch.wants_fixed_order())


@functools.cache
def _asked(name: str, device: torch.device, fixed_order: bool) -> str | None:
    """Caches a result per value of `fixed_order`, which can change while the program runs."""
    return None if name not in COMPILED else backend_module(name).why_not(device)


def _known(name: str, source: str) -> str:
    if name != "auto" and name not in BACKENDS:
        raise ConfigError(
            f"{source} selects the deformable attention backend {name!r}; available: auto, {', '.join(BACKENDS)}"
        )
    return name


def _difference(name: str, device: torch.device) -> str | None:
    """The difference of a backend from the reference; None if equal up to rounding."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 7), (3, 4), (1, 1)]
    value = torch.randn(1, 48, 2, 32, generator=generator)
    references = torch.rand(1, 6, 3, 4, generator=generator)
    offsets = 2 * torch.randn(1, 6, 2, 3, 4, 2, generator=generator)
    logits = torch.randn(1, 6, 2, 3, 4, generator=generator)
    grad = torch.randn(1, 6, 64, generator=generator)
    exact = [tensor.double().requires_grad_() for tensor in (value, references, offsets, logits)]
    expected = deform_attn_torch.reference_fused_multi_scale_deformable_attention(exact[0], shapes, *exact[1:])
    expected_grads = torch.autograd.grad(expected, exact, grad.double())
    inputs = [tensor.to(device) for tensor in (value, references, offsets, logits)]
    try:
        module = backend_module(name)
        output = module.forward(inputs[0], shapes, *inputs[1:])
        grads = module.backward(grad.to(device), inputs[0], shapes, *inputs[1:], needs_reference=True)
    except Exception as error:  # a broken build or driver can raise anything: the reference still works
        return f"it failed with {type(error).__name__}: {error}"
    names = ("output", "gradient of value", "gradient of reference points", "gradient of offsets", "gradient of logits")
    for what, ours, theirs in zip(names, (output, *grads), (expected.detach(), *expected_grads), strict=True):
        off = float((ours.detach().double().cpu() - theirs).abs().max() / theirs.abs().max())
        if not off < 1e-4:  # also for NaN
            return f"its {what} differs from the reference by {off:.1e} of the largest value"
    return None
