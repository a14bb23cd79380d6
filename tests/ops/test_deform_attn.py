from __future__ import annotations

import pytest
import torch
from torch import Tensor

from codetr_cli.ops.deform_attn import active_backend, available_backends, multi_scale_deformable_attention

SHAPES = [(3, 4), (2, 1)]


def make_inputs(queries: int = 5, low: float = -0.2, high: float = 1.2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    value = torch.randn(2, 14, 2, 3, generator=generator, dtype=torch.float64)
    locations = torch.rand(2, queries, 2, 2, 2, 2, generator=generator, dtype=torch.float64) * (high - low) + low
    weights = torch.rand(2, queries, 2, 2, 2, generator=generator, dtype=torch.float64).flatten(3).softmax(-1)
    return value, locations, weights.view(2, queries, 2, 2, 2)


def by_definition(value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Equation 3 of arXiv 2010.04159 with loops over everything; cells outside the map are zero."""
    batch, queries, heads, _, points, _ = locations.shape
    output = value.new_zeros(batch, queries, heads, value.shape[-1])
    starts = [0, shapes[0][0] * shapes[0][1]]
    for index in torch.cartesian_prod(
        *[torch.arange(n) for n in (batch, queries, heads, len(shapes), points)]
    ).tolist():
        b, q, n, level, p = index
        height, width = shapes[level]
        x, y = (locations[b, q, n, level, p] * torch.tensor([width, height]) - 0.5).tolist()
        for row in (int(y // 1), int(y // 1) + 1):
            for column in (int(x // 1), int(x // 1) + 1):
                share = (1 - abs(y - row)) * (1 - abs(x - column))
                if 0 <= row < height and 0 <= column < width:
                    cell = value[b, starts[level] + row * width + column, n]
                    output[b, q, n] += weights[b, q, n, level, p] * share * cell
    return output.flatten(2)


def test_equals_the_definition_also_outside_the_map():
    value, locations, weights = make_inputs()
    ours = multi_scale_deformable_attention(value, SHAPES, locations, weights)
    torch.testing.assert_close(ours, by_definition(value, SHAPES, locations, weights), rtol=0, atol=1e-12)


def test_inference_and_training_formulations_agree_also_far_outside():
    value, locations, weights = make_inputs(queries=2500, low=-3.0, high=4.0)
    locations[0, 0] = 1e12
    locations[0, 1] = -1e12
    with torch.no_grad():
        inference = multi_scale_deformable_attention(value, SHAPES, locations, weights)
    training = multi_scale_deformable_attention(value.requires_grad_(), SHAPES, locations, weights)
    torch.testing.assert_close(inference, training.detach(), rtol=0, atol=1e-12)


def test_gradients_are_those_of_the_output():
    inputs = [t.requires_grad_() for t in make_inputs(queries=2, low=0.1, high=0.9)]
    assert torch.autograd.gradcheck(lambda v, x, w: multi_scale_deformable_attention(v, SHAPES, x, w), inputs)


def test_no_queries_gives_an_empty_result():
    value, locations, weights = make_inputs(queries=0)
    assert multi_scale_deformable_attention(value, SHAPES, locations, weights).shape == (2, 0, 6)


def test_half_precision_value_keeps_its_dtype():
    value, locations, weights = make_inputs()
    output = multi_scale_deformable_attention(value.bfloat16(), SHAPES, locations.float(), weights.bfloat16())
    assert output.dtype == torch.bfloat16


def test_half_precision_values_are_sampled_where_the_locations_say():
    """Rounding a location of a wide map to bfloat16 would move it by most of a cell."""
    width = 500
    value = (torch.arange(width) % 2).bfloat16().view(1, width, 1, 1)
    centres = (torch.arange(width) + 0.5) / width
    locations = torch.stack([centres, torch.full_like(centres, 0.5)], -1).view(1, width, 1, 1, 1, 2)
    output = multi_scale_deformable_attention(value, [(1, width)], locations, torch.ones(1, width, 1, 1, 1).bfloat16())
    torch.testing.assert_close(output.flatten(), value.flatten(), rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("argument", "change"),
    [
        ("spatial_shapes", lambda v, s, x, w: (v, [(3, 4), (1, 1)], x, w)),
        ("value", lambda v, s, x, w: (v[0], s, x, w)),
        ("sampling_locations", lambda v, s, x, w: (v, s, x[..., :1], w)),
        ("sampling_locations", lambda v, s, x, w: (v, s, x[:, :, :, :1], w)),
        ("attention_weights", lambda v, s, x, w: (v, s, x, w[..., :1])),
    ],
)
def test_contradicting_shapes_are_named(argument, change):
    value, locations, weights = make_inputs()
    with pytest.raises(ValueError, match=argument):
        multi_scale_deformable_attention(*change(value, SHAPES, locations, weights))


def test_the_active_backend_can_run_and_others_say_why_not():
    backends = available_backends()
    assert backends[active_backend("cpu")] is None
    assert all(reason is None or reason.endswith(".") for reason in backends.values())
