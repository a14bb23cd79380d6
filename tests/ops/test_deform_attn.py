from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from codetr_cli.ops.deform_attn import (
    available_backends,
    fused_multi_scale_deformable_attention,
    multi_scale_deformable_attention,
)
from tests.ops.deform_attn_inputs import SHAPES, Problem, attend, make_problem


@pytest.fixture(params=["cpu", "torch", "reference"])
def backend(request: pytest.FixtureRequest) -> str:
    reason = available_backends("cpu")[request.param]
    if reason is not None:
        pytest.skip(reason)
    return request.param


def output_and_gradients(problem: Problem, backend: str) -> list[Tensor]:
    leaves = problem.leaves()
    output = attend(problem, leaves, backend)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return [output.detach(), *torch.autograd.grad(output, leaves, weights)]


def by_definition(problem: Problem) -> Tensor:
    """Equation 3 of arXiv 2010.04159 with loops over everything; cells outside the map are zero."""
    value, shapes, scores = problem.value, problem.spatial_shapes, problem.scores
    batch, queries, heads, levels, points = scores.shape
    output = value.new_zeros(batch, queries, heads, value.shape[-1])
    starts = [0]
    for height, width in shapes[:-1]:
        starts.append(starts[-1] + height * width)
    weights = scores if problem.reference_points is None else scores.flatten(3).softmax(-1).view_as(scores)
    for index in torch.cartesian_prod(*[torch.arange(n) for n in (batch, queries, heads, levels, points)]).tolist():
        b, q, n, level, p = index
        height, width = shapes[level]
        size = torch.tensor([width, height], dtype=value.dtype)
        location = problem.sampling[b, q, n, level, p]
        if problem.reference_points is not None:
            reference = problem.reference_points[b, q, level]
            scale = 1 / size if len(reference) == 2 else reference[2:] / points / 2
            location = reference[:2] + location * scale
        x, y = (location * size - 0.5).tolist()
        for row in (math.floor(y), math.floor(y) + 1):
            for column in (math.floor(x), math.floor(x) + 1):
                share = (1 - abs(y - row)) * (1 - abs(x - column))
                if 0 <= row < height and 0 <= column < width:
                    cell = value[b, starts[level] + row * width + column, n]
                    output[b, q, n] += weights[b, q, n, level, p] * share * cell
    return output.flatten(2)


@pytest.mark.parametrize("reference", [0, 2, 4])
def test_equals_the_definition_also_outside_the_map(backend: str, reference: int):
    problem = make_problem(shapes=[(3, 4), (2, 1)], reference=reference, queries=5, channels=3, points=2)
    ours = attend(problem, problem.leaves(), backend)
    torch.testing.assert_close(ours.detach(), by_definition(problem), rtol=0, atol=1e-12)


@pytest.mark.parametrize("reference", [0, 2, 4])
@pytest.mark.parametrize(
    "sizes",
    [
        {"shapes": SHAPES},
        {"shapes": SHAPES, "queries": 131, "heads": 8, "points": 1, "channels": 8},
        {"shapes": [(1, 1)], "queries": 3, "channels": 20},
        {"shapes": [(7, 3), (1, 5)], "queries": 70, "heads": 1, "channels": 37, "points": 3, "batch": 1},
        {"shapes": [(4, 4)] * 5, "queries": 9, "channels": 1, "points": 2, "batch": 3},
    ],
)
def test_output_and_all_gradients_equal_the_reference(backend: str, sizes: dict, reference: int):
    problem = make_problem(reference=reference, **sizes)
    for ours, theirs in zip(
        output_and_gradients(problem, backend), output_and_gradients(problem, "reference"), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11 * max(1, float(theirs.abs().max())))


def test_single_precision_is_as_close_as_it_can_be(backend: str):
    exact = make_problem(shapes=SHAPES, reference=4)
    rounded = make_problem(shapes=SHAPES, reference=4)
    single = Problem(
        rounded.value.float(), SHAPES, rounded.reference_points.float(), rounded.sampling.float(),
        rounded.scores.float(),
    )  # fmt: skip
    ours, theirs = output_and_gradients(single, backend)[0], output_and_gradients(exact, "reference")[0]
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("batch", "queries"), [(2, 0), (0, 5), (0, 0)])
def test_nothing_to_do_gives_an_empty_result_and_no_gradient(backend: str, batch: int, queries: int):
    problem = make_problem(shapes=SHAPES, batch=batch, queries=queries)
    output, *grads = output_and_gradients(problem, backend)
    assert output.shape == (batch, queries, 64)
    assert all(not grad.any() for grad in grads)


def test_far_outside_reads_zeros(backend: str):
    problem = make_problem(shapes=SHAPES, reference=0, queries=4)
    problem.sampling[:, 0] = 1e12
    problem.sampling[:, 1] = -1e12
    problem.sampling[:, 2] = 3e30
    output = attend(problem, problem.leaves(), backend).detach()
    assert not output[:, :3].any()
    assert output[:, 3].all()


def test_not_a_number_is_not_hidden():
    problem = make_problem(shapes=SHAPES, queries=4)
    problem.sampling[:, 1, :, 0, 0] = float("nan")
    output = attend(problem, problem.leaves(), "cpu" if available_backends()["cpu"] is None else "torch").detach()
    assert output[:, 1].isnan().all()
    assert not output[:, [0, 2, 3]].isnan().any()


def test_views_of_larger_tensors(backend: str):
    problem = make_problem(shapes=SHAPES, queries=11)
    wide = torch.full((2, problem.value.shape[1] + 3, 2, 40), float("nan"), dtype=torch.float64)
    wide[:, 2:-1, :, 4:36] = problem.value
    padded_tokens = torch.full((2, problem.value.shape[1], 80), float("nan"), dtype=torch.float64)
    padded_tokens[..., :64] = problem.value.flatten(2)
    turned = problem.sampling.permute(5, 4, 3, 2, 1, 0).contiguous().permute(5, 4, 3, 2, 1, 0)
    expected = attend(problem, problem.leaves(), "reference").detach()
    for value in (wide[:, 2:-1, :, 4:36], padded_tokens[..., :64].unflatten(-1, (2, 32))):
        output = fused_multi_scale_deformable_attention(
            value, SHAPES, problem.reference_points, turned, problem.scores, backend=backend
        )
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("batch", [1, 4])
def test_one_token_with_any_strides(backend: str, batch: int):
    """Torch calls such a tensor contiguous whatever its strides say."""
    problem = make_problem(shapes=[(1, 1)], batch=batch, queries=3)
    expected = output_and_gradients(problem, "reference")
    turned = torch.randn(1, batch, 2, 32, dtype=torch.float64).transpose(0, 1).copy_(problem.value)
    far = torch.zeros(batch, 5000, 2, 32, dtype=torch.float64)[:, 4000:4001].copy_(problem.value)
    for value in (turned, far):
        leaves = [value.detach().requires_grad_(), *problem.leaves()[1:]]
        output = attend(problem, leaves, backend)
        weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
        for ours, theirs in zip([output, *torch.autograd.grad(output, leaves, weights)], expected, strict=True):
            torch.testing.assert_close(ours.detach(), theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_single(backend: str, half: torch.dtype):
    problem = make_problem(shapes=SHAPES, dtype=torch.float32)
    value, sampling, scores = (tensor.to(half) for tensor in (problem.value, problem.sampling, problem.scores))
    leaves = [value.requires_grad_(), problem.reference_points, sampling, scores]
    output = fused_multi_scale_deformable_attention(leaves[0], SHAPES, *leaves[1:], backend=backend)
    assert output.dtype == half
    (grad,) = torch.autograd.grad(output.sum(), leaves[0])
    assert grad.dtype == half
    single = [tensor.detach().float() for tensor in leaves]
    expected = fused_multi_scale_deformable_attention(single[0], SHAPES, *single[1:], backend="reference")
    torch.testing.assert_close(output.float(), expected, rtol=2e-2, atol=2e-2)


def test_half_precision_values_are_sampled_where_the_locations_say(backend: str):
    """Rounding a location of a wide map to bfloat16 would move it by most of a cell."""
    width = 500
    value = (torch.arange(width) % 2).bfloat16().view(1, width, 1, 1)
    centres = (torch.arange(width) + 0.5) / width
    locations = torch.stack([centres, torch.full_like(centres, 0.5)], -1).view(1, width, 1, 1, 1, 2)
    weights = torch.ones(1, width, 1, 1, 1).bfloat16()
    output = multi_scale_deformable_attention(value, [(1, width)], locations, weights, backend=backend)
    torch.testing.assert_close(output.flatten(), value.flatten(), rtol=0, atol=0.01)


def test_gathering_and_sampling_formulations_agree():
    problem = make_problem(shapes=SHAPES, queries=2500, reference=0)
    with torch.no_grad():
        gathered = attend(problem, problem.leaves(), "torch")
    torch.testing.assert_close(gathered, attend(problem, problem.leaves(), "reference").detach(), rtol=0, atol=1e-12)


def test_more_samples_than_the_kernel_has_room_for():
    problem = make_problem(shapes=[(2, 2)] * 5, queries=3, points=30)
    torch.testing.assert_close(
        attend(problem, problem.leaves(), "auto"), attend(problem, problem.leaves(), "reference"), rtol=0, atol=1e-12
    )


# -------------------------------------------------------------------------------------------------------- bad arguments


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": torch.zeros(2, 5, 3)}, r"value must have shape \(B, S, N, D\)"),
        ({"value": torch.zeros(2, 74, 2, 32, dtype=torch.int64)}, "value must be a floating point tensor"),
        ({"shapes": [(6, 9), (3, 5), (2, 2)]}, "value has 74 tokens but spatial_shapes"),
        ({"shapes": [(6, 9), (3, 5), (2, 2), (0, 1)]}, "at least 1 x 1"),
        ({"shapes": [(6, 9), (3, 5), (2, 2), (1.0, 1)]}, "spatial_shapes must be whole"),
        ({"shapes": [6, 9, 3, 5]}, "spatial_shapes must be whole"),
        ({"sampling": torch.zeros(2, 4, 2, 4, 4, 3)}, "sampling_offsets must have shape"),
        ({"sampling": torch.zeros(2, 4, 3, 4, 4, 2)}, "sampling_offsets .* do not fit value"),
        ({"scores": torch.zeros(2, 4, 2, 4, 3)}, "attention_logits .* do not fit sampling_offsets"),
        ({"scores": torch.zeros(2, 4, 2, 4, 4, dtype=torch.int32)}, "attention_logits must be a floating"),
        ({"references": torch.zeros(2, 4, 4, 3)}, "reference_points must have shape"),
        ({"references": torch.zeros(2, 5, 4, 2)}, "reference_points must have shape"),
        ({"references": torch.zeros(2, 4, 4, 2, device="meta")}, "reference_points is on meta but value is on cpu"),
    ],
)
def test_wrong_arguments_are_named(backend: str, change: dict, message: str):
    problem = make_problem(shapes=SHAPES, queries=4, dtype=torch.float32)
    arguments = {
        "value": problem.value, "shapes": SHAPES, "references": problem.reference_points,
        "sampling": problem.sampling, "scores": problem.scores,
    } | change  # fmt: skip
    with pytest.raises(ValueError, match=message):
        fused_multi_scale_deformable_attention(*arguments.values(), backend=backend)


def test_the_classic_entry_calls_its_arguments_by_name():
    problem = make_problem(shapes=SHAPES, queries=4, reference=0)
    with pytest.raises(ValueError, match="attention_weights"):
        multi_scale_deformable_attention(problem.value, SHAPES, problem.sampling, problem.scores[:, :3])


# --------------------------------------------------------------------------------------------------------- the compiler


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the checker's own
@pytest.mark.parametrize("reference", [0, 2])
def test_the_operator_keeps_the_rules_of_torch(reference: int):
    if (reason := available_backends()["cpu"]) is not None:
        pytest.skip(reason)
    problem = make_problem(shapes=[(3, 2), (1, 1)], reference=reference, queries=3, heads=1, channels=4)
    leaves = problem.leaves()
    points = leaves.pop(1) if reference else None
    arguments = (leaves[0], [3, 2, 1, 1], points, leaves[1], leaves[2], "cpu")
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.codetr.deform_attn.default, arguments, test_utils=tests)


@pytest.mark.parametrize("dynamic", [None, True])
def test_compiles_in_one_graph(backend: str, dynamic: bool | None):
    torch.compiler.reset()
    problem = make_problem(shapes=SHAPES)
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    leaves = problem.leaves()
    output = compiled(problem, leaves, backend)
    ours = [output.detach(), *torch.autograd.grad(output.sum(), leaves)]
    leaves = problem.leaves()
    output = attend(problem, leaves, backend)
    theirs = [output.detach(), *torch.autograd.grad(output.sum(), leaves)]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


class Attention(torch.nn.Module):
    def __init__(self, backend: str) -> None:
        super().__init__()
        self.backend = backend

    def forward(self, value: Tensor, references: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        return fused_multi_scale_deformable_attention(value, SHAPES, references, offsets, logits, backend=self.backend)


# torch 2.7 warns of the constants that it lifts out of the graph itself.
@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")
@pytest.mark.filterwarnings("ignore:Node lifted_tensor:UserWarning")
def test_exports_the_plain_formulation_and_the_kernel_when_asked():
    problem = make_problem(shapes=SHAPES)
    inputs = tuple(tensor.detach() for tensor in problem.leaves())
    for name, operator in (("auto", False), ("cpu", True)):
        if available_backends()["cpu"] is not None and operator:
            continue
        program = torch.export.export(Attention(name), inputs)
        assert any("codetr.deform_attn" in str(node.target) for node in program.graph.nodes) == operator
        torch.testing.assert_close(program.module()(*inputs), Attention("reference")(*inputs), rtol=0, atol=1e-12)


def test_checkpointing_recomputes_the_same(backend: str):
    problem = make_problem(shapes=SHAPES)
    leaves = problem.leaves()
    output = checkpoint(lambda *tensors: attend(problem, list(tensors), backend), *leaves, use_reentrant=False)
    ours = torch.autograd.grad(output.square().sum(), leaves)
    leaves = problem.leaves()
    theirs = torch.autograd.grad(attend(problem, leaves, backend).square().sum(), leaves)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


def test_autocast_leaves_positions_alone(backend: str):
    problem = make_problem(shapes=SHAPES, dtype=torch.float32)
    expected = attend(problem, problem.leaves(), backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(attend(problem, problem.leaves(), backend), expected)
