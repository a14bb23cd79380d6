from __future__ import annotations

import pytest
import torch

from codetr_cli.benchmark.operator_inputs import OperatorShape, make_inputs
from codetr_cli.ops.deform_attn import fused_multi_scale_deformable_attention, multi_scale_deformable_attention

CPU = torch.device("cpu")


def make_shape(**changes) -> OperatorShape:
    defaults = {"name": "encoder", "size": (64, 96), "levels": 3, "heads": 2, "channels": 8, "decoder_queries": 7}
    return OperatorShape(**{**defaults, **changes})


def pixels_of(inputs):
    sizes = torch.tensor([(w, h) for h, w in inputs.spatial_shapes])[:, None]
    return inputs.unfused().sampling * sizes - 0.5


def test_levels_round_up_as_the_network_does():
    shape = make_shape(size=(800, 1333), levels=5)
    assert shape.spatial_shapes == [(200, 334), (100, 167), (50, 84), (25, 42), (13, 21)]
    assert shape.tokens == shape.queries == 89_023
    assert shape.samples == 89_023 * 2 * 5 * 4


def test_an_encoder_query_looks_around_its_own_cell():
    inputs = make_inputs(make_shape(), CPU, torch.float32)
    assert inputs.reference.shape == (1, 504, 3, 2)
    pixels = pixels_of(inputs)[0, :, :, 0]  # (Q, N, P, 2) of the finest level
    query = 3 * 24 + 5  # row 3, column 5
    # Heads 0 and 1 of two look right and left, the last point four cells; the noise has two.
    assert inputs.sampling[0, :, 0, :, 3, 0].mean() == pytest.approx(4, abs=0.3)
    assert inputs.sampling[0, :, 1, :, 3, 0].mean() == pytest.approx(-4, abs=0.3)
    offsets = inputs.sampling[0, query, :, 0]
    torch.testing.assert_close(pixels[query] - offsets, torch.tensor([5.0, 3.0]).expand_as(offsets), atol=1e-4, rtol=0)


def test_a_decoder_query_is_a_box_inside_the_image():
    inputs = make_inputs(make_shape(name="decoder", batch=2), CPU, torch.float32)
    assert inputs.reference.shape == (2, 7, 3, 4)
    assert inputs.sampling.shape == (2, 7, 2, 3, 4, 2)
    centres, sides = inputs.reference[..., :2], inputs.reference[..., 2:]
    assert (centres - sides / 2 > 0).all()
    assert (centres + sides / 2 < 1.0).all()


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_both_operators_get_the_same_samples(name):
    inputs = make_inputs(make_shape(name=name), CPU, torch.float64)
    unfused = inputs.unfused()
    assert unfused.reference is None
    fused = fused_multi_scale_deformable_attention(
        inputs.value, inputs.spatial_shapes, inputs.reference, inputs.sampling, inputs.scores, backend="reference"
    )
    plain = multi_scale_deformable_attention(
        unfused.value, unfused.spatial_shapes, unfused.sampling, unfused.scores, backend="reference"
    )
    torch.testing.assert_close(fused, plain, atol=1e-12, rtol=0)


def test_reference_points_keep_float32():
    inputs = make_inputs(make_shape(), CPU, torch.bfloat16)
    assert inputs.value.dtype == inputs.sampling.dtype == inputs.scores.dtype == torch.bfloat16
    assert inputs.reference.dtype == torch.float32
    assert inputs.unfused().sampling.dtype == torch.float32
    same = make_inputs(make_shape(), CPU, torch.float32)
    assert torch.equal(same.value.bfloat16(), inputs.value)
