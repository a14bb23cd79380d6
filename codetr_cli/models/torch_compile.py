"""`torch.compile` for the parts of the network whose work depends on shapes alone."""

from __future__ import annotations

import importlib.util
import os
import shutil

from torch import nn

from codetr_cli.models.codetr import CoDETR

HOST_COMPILERS = ("g++", "clang++", "c++", "cl")


def compile_static_parts(model: CoDETR, *, backend: str = "inductor") -> CoDETR:
    """Has backbone, neck and each layer of encoder and decoder compiled when they first run; in place.

    The names of the weights stay as they are. The first image of a size is slow; from the second size on sizes are
    variables of the compiled code. Layers of one kind share what is compiled for them.

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
    """One sentence that says why networks cannot be compiled here for "cpu" or "cuda"; None where they can."""
    if device_type == "cuda" and importlib.util.find_spec("triton") is None:
        return "torch.compile makes its GPU kernels with Triton, which is not installed."
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else list(HOST_COMPILERS)
    if not any(shutil.which(name) for name in wanted):
        return f"torch.compile needs a C++ compiler on this machine, and there is no {' or '.join(wanted)}."
    return None
