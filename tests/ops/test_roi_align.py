"""RoIAlign: the kernel that is called, and a backward pass with a fixed order."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import roi_align as torchvision_roi_align

from codetr_cli.ops import roi_align as module
from codetr_cli.ops.roi_align import ordered_backward, roi_align
from tests.strict_device import strict_device, values, why_not

REGIONS = torch.tensor(
    [
        [1, 3.0, 5.0, 90.0, 61.0],
        [0, -20.0, -9.0, 15.0, 140.0],  # beyond three edges
        [1, 40.0, 40.0, 40.0, 40.0],  # empty
        [0, 10.2, 10.7, 13.1, 11.2],  # smaller than a cell
        [1, 70.0, 50.0, 300.0, 200.0],
        [1, 50.0, 50.0, 20.0, 30.0],  # corners exchanged
    ],
    dtype=torch.float64,
)


@pytest.mark.parametrize("chunk", [2**26, 2 * 3 * 4 * 18])
@pytest.mark.parametrize("count", [len(REGIONS), 1, 0])
def test_the_ordered_gradient_is_that_of_the_kernel(monkeypatch, count, chunk):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", chunk)
    regions = REGIONS[:count]
    feature_map = torch.randn(2, 3, 18, 25, dtype=torch.float64, requires_grad=True)
    pooled = roi_align(feature_map, regions, size=4, scale=1 / 4)
    torch.testing.assert_close(
        pooled, torchvision_roi_align(feature_map, regions, 4, 1 / 4, sampling_ratio=0, aligned=True), rtol=0, atol=0
    )
    gradient = torch.randn_like(pooled)
    (expected,) = torch.autograd.grad(pooled, feature_map, gradient)
    torch.testing.assert_close(ordered_backward(gradient, regions, feature_map.shape, 1 / 4), expected)


@pytest.mark.skipif(why_not() is not None, reason=why_not() or "")
def test_a_deterministic_gpu_needs_no_kernel_without_order():
    """torchvision's replacement has 2.5e11 elements in one tensor at 800x1333 pixels."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    feature_map = torch.randn(2, 3, 18, 25, requires_grad=True)
    regions = REGIONS.float()
    expected = torch.autograd.grad(roi_align(feature_map, regions, size=4, scale=1 / 4).square().sum(), feature_map)[0]
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with strict_device() as gpu:
            ours = feature_map.detach().to("cuda").requires_grad_()
            pooled = roi_align(ours, regions.to("cuda"), size=4, scale=1 / 4)
            peak = gpu.bytes_peak
            pooled.square().sum().backward()
            assert not gpu.unordered
            assert peak < 20 * feature_map.nbytes
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    torch.testing.assert_close(values(ours.grad), expected)
