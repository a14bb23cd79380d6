"""Constants that are computed once."""

from __future__ import annotations

import torch

from codetr_cli.models.constants import cached_constant


def make_ramp():
    calls = []

    @cached_constant(maxsize=2)
    def ramp(count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        calls.append(count)
        return torch.arange(count, dtype=dtype)

    return ramp, calls


def test_a_constant_is_computed_once_for_recent_arguments():
    ramp, calls = make_ramp()
    assert ramp(3) is ramp(3)
    assert ramp(3, dtype=torch.float64).dtype is torch.float64
    ramp(4)
    ramp(3)
    assert calls == [3, 3, 4, 3]


def test_what_an_evaluation_computed_can_be_trained_with():
    ramp, _ = make_ramp()
    with torch.inference_mode():
        constant = ramp(3)
    assert not constant.is_inference()
    weight = torch.ones(3, requires_grad=True)
    (weight * ramp(3)).sum().backward()
    assert weight.grad.tolist() == [0, 1, 2]


def test_compiled_code_contains_the_computation():
    ramp, _ = make_ramp()
    add = torch.compile(lambda x: x + ramp(x.shape[0]), backend="eager", fullgraph=True)
    for mode in (torch.inference_mode(), torch.enable_grad()):
        with mode:
            assert add(torch.ones(3)).tolist() == [1, 2, 3]
