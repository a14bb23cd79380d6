"""What differs when the emulated device is Apple's GPU ("mps") or Intel's ("xpu") instead of CUDA's.

Of `torch.mps` and `torch.xpu` only what says that such a GPU is here is replaced: anything else that a program calls
there fails as it does in a PyTorch that is not built for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from tests.strict.recorder import GPU, to_strict

OTHER_KINDS = ("mps", "xpu")
FACTORIES = ("tensor", "as_tensor", "asarray", "scalar_tensor")
"""Functions that make a host tensor and move it."""


def patches(kind: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Replacements: (module or class, name -> value)."""
    if kind == "mps":
        yield torch.backends.mps, {"is_available": lambda: True, "is_built": lambda: True}
    else:
        yield torch.xpu, {"is_available": lambda: True, "device_count": lambda: 1, "_lazy_init": lambda: None}
    yield torch.accelerator, {
        "is_available": lambda: True, "current_accelerator": lambda check_available=False: torch.device(kind),
        "device_count": lambda: 1, "current_device_index": lambda: 0,
        "synchronize": lambda device=None: GPU.sync("accelerator.synchronize"),
    }  # fmt: skip
    yield torch.Tensor, {"to": _to}
    yield torch, {name: _moving(getattr(torch, name)) for name in FACTORIES}


def with_index(device: Any) -> Any:
    """The emulated device where its type alone is given: C++ would ask a driver which one is the current one."""
    if isinstance(device, str | torch.device) and torch.device(device).type == GPU.device.type:
        return GPU.device
    return device


def _to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    if "device" in kwargs:
        kwargs = {**kwargs, "device": with_index(kwargs["device"])}
    return to_strict(self, *map(with_index, args), **kwargs)


def _moving(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, device: Any = None, **kwargs: Any) -> Any:
        there = with_index(device)
        if there is not GPU.device:
            return function(*args, device=device, **kwargs)
        return function(*args, device="cpu", **kwargs).to(there)

    return call
