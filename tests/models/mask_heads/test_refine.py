"""The refined masks."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from codetr_cli.models.mask_grid import boundary
from codetr_cli.models.mask_heads.fcn import of_class
from codetr_cli.models.mask_heads.refine import keep_fine_boundaries, logits_of_class


@pytest.mark.parametrize("count", [5, 0])
def test_the_logits_of_one_class_are_those_among_all(count):
    conv = torch.nn.Conv2d(6, 1203, 1).double()
    x = torch.randn(count, 6, 7, 7, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(1203, (count,))
    results = []
    for compute in (lambda: of_class(conv(x), labels), lambda: logits_of_class(conv, x, labels)):
        logits = compute()
        gradients = torch.autograd.grad(logits.square().sum(), [x, *conv.parameters()])
        results.append((logits.detach(), *gradients))
        assert logits.shape == (count, 1, 7, 7)
    for expected, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


def test_refinement_changes_a_mask_at_its_boundary_only():
    coarse = torch.full((1, 1, 4, 4), -4.0)
    coarse[..., :2, :] = 4.0
    middle, fine = torch.randn(1, 1, 8, 8), torch.randn(1, 1, 16, 16)
    merged = keep_fine_boundaries([torch.randn(1, 1, 2, 2), coarse, middle, fine])
    # Independent of the module: each step by itself.
    inside = (~boundary(coarse[:, 0] > 0, 1)).float()[:, None]
    keeps = F.interpolate(inside, size=(8, 8), mode="bilinear", align_corners=True) >= 0.5
    step = middle.clone()
    step[keeps] = F.interpolate(coarse, size=(8, 8), mode="bilinear", align_corners=True)[keeps]
    inside = (~boundary(step[:, 0] > 0, 1)).float()[:, None]
    keeps = F.interpolate(inside, size=(16, 16), mode="bilinear", align_corners=True) >= 0.5
    expected = fine.clone()
    expected[keeps] = F.interpolate(step, size=(16, 16), mode="bilinear", align_corners=True)[keeps]
    torch.testing.assert_close(merged, expected)
    assert 0 < int(keeps.sum()) < keeps.numel()
