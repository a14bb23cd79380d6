"""`torch.compile` for the parts of the network whose control flow depends only on shapes."""

from __future__ import annotations

import importlib.util
import os
import shutil

from torch import nn

from codetr_cli.models.codetr import CoDETR

HOST_COMPILERS = ("g++", "clang++", "c++", "cl")


def compile_static_parts(model: CoDETR, *, backend: str = "inductor") -> CoDETR:
    """Compiles backbone, neck and each layer of encoder and decoder on their first run; in place.

    The names of the weights stay the same. The first image is slow; from the second size on, sizes are dynamic. Layers
    of the same kind share their compiled code.

    Args:
        model: on its device.
        backend: of torch.compile; "eager" and "aot_eager" need no compiler.

    Returns:
        the same network.
    """
    parts: list[nn.Module] = [model.backbone, model.neck, *model.encoder.layers, *model.decoder.layers]
    for part in parts:
        part.compile(fullgraph=True, backend=backend)
    return model


def why_not_compile(device_type: str) -> str | None:
    """The reason why networks cannot be compiled here for "cpu" or "cuda", one sentence; None where they can."""
    if device_type == "cuda" and importlib.util.find_spec("triton") is None:
        return "torch.compile needs Triton for GPU kernels, and Triton is not installed."
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else list(HOST_COMPILERS)
    if not any(shutil.which(name) for name in wanted):
        return f"torch.compile needs a C++ compiler, and this machine has no {' or '.join(wanted)}."
    return None
