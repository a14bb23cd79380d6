from __future__ import annotations

import pytest
import torch

from codetr_cli.ops import deform_attn_torch
from tests.ops.deform_attn_inputs import make_problem


@pytest.mark.parametrize("nothing", ["batch", "queries", "heads", "channels"])
@pytest.mark.parametrize("reference", [0, 2, 4], ids=["classic", "points", "boxes"])
def test_gathering_takes_inputs_that_hold_nothing(reference, nothing):
    sizes = {"batch": 2, "queries": 3, "heads": 2, "channels": 4, nothing: 0}
    problem = make_problem(shapes=[(3, 4), (1, 2)], reference=reference, **sizes)
    inputs = (problem.value, problem.spatial_shapes, problem.reference_points, problem.sampling, problem.scores)
    with torch.no_grad():
        output = deform_attn_torch.forward(*inputs, gather=True)
    assert output.shape == (sizes["batch"], sizes["queries"], sizes["heads"] * sizes["channels"])


def test_asks_for_a_fixed_order(monkeypatch):
    monkeypatch.delenv("CODETR_DETERMINISTIC", raising=False)
    assert not deform_attn_torch.wants_fixed_order()
    monkeypatch.setenv("CODETR_DETERMINISTIC", "1")
    assert deform_attn_torch.wants_fixed_order()
