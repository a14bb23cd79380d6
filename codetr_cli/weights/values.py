"""Whether weights are numbers that a network can compute with: real, of a floating type, and finite."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from codetr_cli.errors import CheckpointError, listed

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
ALLOW = "test.allow_nonfinite_weights"
CHUNK = 1 << 22  # values that are examined at once


def check_weights(
    state: Mapping[str, Tensor],
    *,
    source: str,
    allow_nonfinite: bool = False,
    expected: Mapping[str, Tensor] | None = None,
) -> None:
    """Refuses weights that are not floating-point numbers, and those that are NaN or infinite in the model.

    Args:
        state: name -> tensor.
        source: the file in error messages, e.g. its path and preset.
        allow_nonfinite: accept NaN and infinite values.
        expected: the model's entries; those that are no floats there must not be floats here. None: all are floats.

    Raises:
        CheckpointError: names the first wrong entries and their number.
    """
    check_types(state, source=source, expected=expected)
    if allow_nonfinite:
        return
    views = {name: (value.data_ptr(), value.dtype, value.shape, value.stride()) for name, value in state.items()}
    distinct = {view: state[name] for name, view in views.items()}  # any number of entries can be the same
    counts = {view: count_nonfinite(value) for view, value in distinct.items()}
    wrong = {name: counts[view] for name, view in views.items() if counts[view]}
    if wrong:
        shown = [f"{name} ({count:,} of {state[name].numel():,} values)" for name, count in wrong.items()]
        raise CheckpointError(
            f"{source} has weights that are NaN or infinite: {len(wrong):,} of {len(state):,} entries, "
            f"{listed(shown)}. Its training diverged, or the file is damaged: use an earlier checkpoint, or load it "
            f"nevertheless with --set {ALLOW}=true."
        )


def check_types(state: Mapping[str, Tensor], *, source: str, expected: Mapping[str, Tensor] | None = None) -> None:
    """The first part of `check_weights`, which does not examine values.

    Raises:
        CheckpointError: names the first entries of a wrong type and their number.
    """
    types = [f"{name} ({_type_text(value)})" for name, value in state.items() if not _fits(value, expected, name)]
    if types:
        raise CheckpointError(
            f"{source} has {len(types)} entries of another type than the model, which has real floating-point "
            f"numbers: {listed(types)}. Use the publisher's original file."
        )


def count_nonfinite(value: Tensor) -> int:
    """The number of values that are NaN or infinite, or become so in float32."""
    if not value.is_floating_point():
        return 0
    # The sum of values of which one is not finite is not finite; the reverse is not true.
    if value.dtype != torch.float64 and bool(torch.isfinite(value.sum(dtype=torch.float32))):
        return 0
    chunks = torch.split(value.detach().reshape(-1), CHUNK)
    return sum(int((~torch.isfinite(chunk.float())).sum()) for chunk in chunks)


def _fits(value: Tensor, expected: Mapping[str, Tensor] | None, name: str) -> bool:
    ours = None if expected is None else expected.get(name)
    if ours is None or ours.is_floating_point():
        return value.dtype in FLOATS
    return not (value.is_floating_point() or value.is_complex())


def _type_text(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")
