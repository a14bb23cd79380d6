"""Types and operators that Apple's GPUs lack in PyTorch."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

GIVEN_BY_EXTENSIONS = ("codetr::", "torchvision::")
CHOSEN_FOR_CPUS = {"aten::_scaled_dot_product_flash_attention_for_cpu"}
"""Kernels that PyTorch chooses by the keys of the values in host memory."""


def check_dtype(device: torch.device, dtype: torch.dtype) -> None:
    """Raises as Apple's GPUs do for types that they lack.

    Raises:
        TypeError: float64 or complex128 on "mps".
    """
    if device.type == "mps" and dtype in (torch.float64, torch.complex128):
        name = str(dtype).removeprefix("torch.")
        raise TypeError(
            f"Cannot convert a MPS Tensor to {name} dtype as the MPS framework doesn't support {name}. Please use "
            f"{'float32' if name == 'float64' else 'complex64'} instead."
        )


def check_operator(device: torch.device, func: Any) -> None:
    """Raises as PyTorch does for operators without a kernel for Apple's GPUs.

    Raises:
        NotImplementedError: there is none for "mps".
    """
    name = func._schema.name
    if device.type != "mps" or name.startswith(GIVEN_BY_EXTENSIONS) or name in CHOSEN_FOR_CPUS:
        return
    overload = func._schema.overload_name
    if not _runs_on_mps(f"{name.removeprefix('aten::')}.{overload}" if overload else name.removeprefix("aten::")):
        raise NotImplementedError(f"The operator '{func.name()}' is not currently implemented for the MPS device.")


def _runs_on_mps(name: str) -> bool:
    table = _operators()
    keys = table.get(name)
    if keys is None:
        return True  # registered elsewhere, e.g. in Python
    if keys.delegate:
        return _runs_on_mps(keys.delegate)
    # A composite kernel calls other operators, which are asked for then.
    return not keys.names or bool(keys.names & {"MPS", "CompositeExplicitAutograd", "CompositeImplicitAutograd",
                                                "CompositeExplicitAutogradNonFunctional"})  # fmt: skip


@functools.cache
def _operators() -> dict[str, SimpleNamespace]:
    """Operator -> the dispatch keys it has kernels for, and the operator that it is implemented by.

    From the table that PyTorch is built from.
    """
    import torchgen

    path = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    table = {}
    for entry in path.read_text(encoding="utf-8").split("\n- func: ")[1:]:
        delegate = re.search(r"^  structured_delegate: (\S+)", entry, re.MULTILINE)
        dispatch = re.search(r"^  dispatch:\n((?:    .*\n|\s*#.*\n)*)", entry, re.MULTILINE)
        lines = re.findall(r"^    ([\w, ]+):", dispatch[1], re.MULTILINE) if dispatch else []
        names = {name.strip() for line in lines for name in line.split(",")}
        table[entry.partition("(")[0]] = SimpleNamespace(names=names, delegate=delegate and delegate[1])
    return table
