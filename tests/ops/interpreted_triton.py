"""Triton's kernels in its interpreter: run by test_deform_attn_triton.py in a process of its own.

The interpreter must be chosen before Triton is imported, and other tests of the process may want the compiler. Its time
goes with the number of programs, so all cases are tiny.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.library import wrap_triton

from codetr_cli.ops import deform_attn_triton, deform_attn_triton_export
from codetr_cli.ops import deform_attn_triton_tuning as tuning
from codetr_cli.ops.deform_attn import use_backend
from codetr_cli.ops.deform_attn_torch import forward as reference_forward
from codetr_cli.ops.deform_attn_triton_kernels import forward_kernel
from tests.golden.case import Case, Report
from tests.golden.data_cases import shared_dir
from tests.golden.operator_cases import run_deform_attn

SHAPES = [(3, 4), (2, 1), (1, 1)]
Inputs = tuple[Tensor, Tensor | None, Tensor, Tensor]


@pytest.fixture(autouse=True, params=["0", pytest.param("1", marks=pytest.mark.slow)], ids=["atomic", "ordered"])
def order(request, monkeypatch):
    """Every case runs with both ways to sum the gradient of the values; most with the second one in the slow form."""
    monkeypatch.setenv("CODETR_DETERMINISTIC", request.param)
    return request.param


def make_inputs(
    numbers: int, *, batch: int = 1, queries: int = 5, heads: int = 1, channels: int = 8, points: int = 4, shapes=SHAPES
) -> Inputs:
    """Float64 inputs with samples in, across and outside the maps; `numbers` of a reference point, 0 = classic."""
    generator = torch.Generator().manual_seed(11)
    levels, tokens = len(shapes), sum(height * width for height, width in shapes)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    sampling = 2 * normal(batch, queries, heads, levels, points, 2)
    if numbers == 0:
        sampling = 0.5 + 0.25 * sampling
    references = normal(batch, queries, levels, numbers).sigmoid() if numbers else None
    value = normal(batch, tokens, heads, channels)
    return value, references, sampling, 2 * normal(batch, queries, heads, levels, points)


def check(inputs: Inputs, shapes=SHAPES, tolerance: float = 1e-12) -> None:
    """Output and all gradients against the plain formulation in float64, relative to the largest entry."""
    exact = [None if tensor is None else tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = reference_forward(exact[0], shapes, *exact[1:], gather=False)
    output = deform_attn_triton.forward(inputs[0], shapes, *inputs[1:])
    assert output.dtype == inputs[0].dtype
    compare(output, expected.detach(), tolerance)
    generator = torch.Generator().manual_seed(12)
    grad_output = torch.randn(expected.shape, generator=generator, dtype=torch.float64).to(inputs[0].dtype)
    leaves = [tensor for tensor in exact if tensor is not None]
    expected_grads = torch.autograd.grad(expected, leaves, grad_output.double())
    grads = deform_attn_triton.backward(grad_output, inputs[0], shapes, *inputs[1:], needs_reference=True)
    sources = [tensor for tensor in inputs if tensor is not None]
    assert (grads[1] is None) == (inputs[1] is None)
    ours = [grad for grad in grads if grad is not None]
    for grad, source, expected_grad in zip(ours, sources, expected_grads, strict=True):
        assert grad.dtype == source.dtype
        precise = tolerance if source.dtype == inputs[0].dtype else min(tolerance, 1e-5)
        compare(grad, expected_grad, precise)


def compare(ours: Tensor, expected: Tensor, tolerance: float) -> None:
    assert ours.shape == expected.shape
    scale = float(expected.abs().max())
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=tolerance * max(scale, 1e-30))


in_both_orders = pytest.mark.parametrize("order", ["0", "1"], ids=["atomic", "ordered"], indirect=True)

GRID = [(3, 2), (1, 1)]
"""Rectangles do not fill it, and one level is a single cell."""
FORMS = ("1x32w4+clamped", "1x8w4+together", "2x4w4", "2x4w4+clamped+together")


def encoder_inputs(numbers: int, **sizes) -> Inputs:
    """One query for each token of GRID, as in an encoder."""
    return make_inputs(numbers, queries=7, points=3, shapes=GRID, **sizes)


def distinct_candidates() -> list[str]:
    """The candidates as the interpreter sees them: it knows no warps."""
    return sorted({str(c._replace(warps=4)) for candidates in tuning.CANDIDATES.values() for c in candidates})


@pytest.mark.parametrize("order", ["0"], ids=["atomic"], indirect=True)
@pytest.mark.parametrize("name", distinct_candidates())
def test_every_candidate_equals_the_reference(name):
    with tuning.use_candidate(tuning.Candidate.parse(name)):
        check(encoder_inputs(4), GRID)


@in_both_orders
@pytest.mark.parametrize(("name", "numbers"), [*zip(FORMS, (0, 2, 4, 0), strict=True)])
def test_every_form_equals_the_reference_in_both_orders(name, numbers):
    with tuning.use_candidate(tuning.Candidate.parse(name)):
        check(encoder_inputs(numbers, channels=6), GRID)


@pytest.mark.parametrize("order", ["0"], ids=["atomic"], indirect=True)
@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [(FORMS[0], torch.float16, 5e-4), (FORMS[1], torch.float32, 2e-6), (FORMS[3], torch.bfloat16, 5e-3)],
)
def test_forms_with_values_of_less_precision(name, dtype, tolerance):
    value, references, sampling, scores = encoder_inputs(2)
    inputs = (value.to(dtype), references.float(), sampling.float(), scores.float())
    with tuning.use_candidate(tuning.Candidate.parse(name)):
        check(inputs, GRID, tolerance=tolerance)


@pytest.mark.parametrize("order", ["0"], ids=["atomic"], indirect=True)
@pytest.mark.parametrize("name", [FORMS[0], FORMS[3]])
def test_no_form_reads_outside_the_maps(name):
    value, _, sampling, scores = encoder_inputs(0)
    for query, place in enumerate((1e12, -1e12, 2.0, -1.0)):
        sampling[:, query] = place
    with tuning.use_candidate(tuning.Candidate.parse(name)):
        output = deform_attn_triton.forward(value, GRID, None, sampling, scores)
        grads = deform_attn_triton.backward(
            torch.ones_like(output), value, GRID, None, sampling, scores, needs_reference=False
        )
    assert not output[:, :4].any()
    assert output[:, 4:].any(-1).all()
    assert not grads[2][:, :4].any()
    assert not grads[3][:, :4].any()


@in_both_orders
@pytest.mark.parametrize("numbers", [0, 2, 4], ids=["classic", "points", "boxes"])
def test_equals_the_reference_in_float64(numbers):
    check(make_inputs(numbers, batch=2, queries=3, heads=2))


@pytest.mark.parametrize("numbers", [0, 2, 4], ids=["classic", "points", "boxes"])
def test_float32_sums_in_float32(numbers):
    value, references, sampling, scores = (None if t is None else t.float() for t in make_inputs(numbers))
    check((value, references, sampling, scores), tolerance=2e-6)


@pytest.mark.parametrize("channels", [20, 32])
@pytest.mark.parametrize("points", [1, 3])
def test_channels_and_points_are_any_number(channels, points):
    check(make_inputs(2, channels=channels, points=points))


@in_both_orders
def test_queries_need_not_fill_a_block():
    shapes = [(2, 3)]
    check(make_inputs(4, queries=deform_attn_triton.INTERPRETED.queries + 3, shapes=shapes), shapes)


def test_maps_of_one_cell():
    shapes = [(1, 1), (1, 1)]
    check(make_inputs(2, shapes=shapes), shapes)


@in_both_orders
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_half_values_with_float32_positions(half):
    value, references, sampling, scores = make_inputs(4)
    inputs = (value.to(half), references.float(), sampling.float(), scores.float())
    check(inputs, tolerance=5e-4 if half == torch.float16 else 5e-3)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_everything_half_but_the_reference_points(half):
    value, references, sampling, scores = make_inputs(2)
    inputs = (value.to(half), references.float(), sampling.to(half), scores.to(half))
    check(inputs, tolerance=1e-3 if half == torch.float16 else 1e-2)


@in_both_orders
def test_points_far_outside_read_zeros_and_move_nothing():
    value, _, sampling, scores = make_inputs(0, queries=4)
    for query, place in enumerate((1e12, -1e12, 2.0, -1.0)):
        sampling[:, query] = place
    output = deform_attn_triton.forward(value, SHAPES, None, sampling, scores)
    assert torch.equal(output, torch.zeros_like(output))
    grads = deform_attn_triton.backward(
        torch.ones_like(output), value, SHAPES, None, sampling, scores, needs_reference=False
    )
    assert all(torch.equal(grad, torch.zeros_like(grad)) for grad in grads if grad is not None)


@in_both_orders
def test_slices_of_wider_tensors():
    value, references, sampling, scores = make_inputs(2, batch=2, queries=2, heads=2)
    layers = torch.stack([torch.zeros_like(value), value], 2)  # one projection for several layers: (B, S, layers, N, D)
    rows = torch.cat([sampling.flatten(2), scores.flatten(2)], 2)  # one projection for offsets and logits
    offsets, logits = rows.split([sampling[0, 0].numel(), scores[0, 0].numel()], dim=2)
    references = references[:1].expand(2, -1, -1, -1)
    inputs = (layers[:, :, 1], references, offsets.view(sampling.shape), logits.view(scores.shape))
    assert not any(tensor.is_contiguous() for tensor in inputs)
    check(inputs)


def test_transposed_tensors():
    value, references, sampling, scores = make_inputs(4, batch=2, queries=2, heads=2)
    inputs = (
        value.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0),
        references.transpose(2, 3).contiguous().transpose(2, 3),
        sampling.transpose(3, 4).contiguous().transpose(3, 4),
        scores.transpose(1, 2).contiguous().transpose(1, 2),
    )
    assert not any(tensor.is_contiguous() for tensor in inputs)
    check(inputs)


@in_both_orders
@pytest.mark.parametrize(("batch", "queries"), [(0, 3), (2, 0)])
def test_nothing_to_do(batch, queries):
    inputs = make_inputs(4, batch=batch, queries=queries)
    output = deform_attn_triton.forward(inputs[0], SHAPES, *inputs[1:])
    assert output.shape == (batch, queries, 8)
    grads = deform_attn_triton.backward(output, inputs[0], SHAPES, *inputs[1:], needs_reference=True)
    assert [grad.shape for grad in grads] == [tensor.shape for tensor in inputs]
    assert not any(grad.any() for grad in grads)


@in_both_orders
def test_offsets_beyond_32_bits_use_64(monkeypatch):
    monkeypatch.setattr(deform_attn_triton, "INT32_REACH", 64)
    inputs = make_inputs(2)
    call = deform_attn_triton.Call.of(inputs[0], SHAPES, *inputs[1:])
    assert str(call.constants["INDEX"]) == "int64"
    check(inputs)


def test_heads_far_apart_use_64_bits(monkeypatch):
    value, references, sampling, scores = make_inputs(2, queries=2, heads=2)
    apart = torch.zeros(1, 2, 1000, 8, dtype=torch.float64)
    apart[:, :, : value.shape[1]] = value.transpose(1, 2)
    value = apart[:, :, : value.shape[1]].transpose(1, 2)
    call = deform_attn_triton.Call.of(value, SHAPES, references, sampling, scores)
    assert value.stride(2) == 8000
    monkeypatch.setattr(deform_attn_triton, "INT32_REACH", 16001)
    assert str(call.constants["INDEX"]) == "int32"
    monkeypatch.setattr(deform_attn_triton, "INT32_REACH", 16000)
    assert str(call.constants["INDEX"]) == "int64"
    check((value, references, sampling, scores))


# Until Triton 3.3 its interpreter shows NumPy's warning; the integer is not used.
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
@pytest.mark.parametrize("axis", [0, 1], ids=["x", "y"])
@pytest.mark.parametrize("numbers", [0, 2, 4], ids=["classic", "points", "boxes"])
def test_positions_that_are_no_numbers_do_not_vanish(numbers, axis):
    value, references, sampling, scores = make_inputs(numbers)
    sampling[:, 1, :, 0, 2, axis] = float("nan")
    output = deform_attn_triton.forward(value, SHAPES, references, sampling, scores)
    assert output[:, 1].isnan().all()
    assert not output[:, [0, 2, 3, 4]].isnan().any()
    grads = deform_attn_triton.backward(
        torch.ones_like(output), value, SHAPES, references, sampling, scores, needs_reference=True
    )
    assert grads[2][:, 1].isnan().any()
    assert not grads[2][:, [0, 2, 3, 4]].isnan().any()


def test_reference_points_get_no_gradient_unless_asked_for(monkeypatch):
    inputs, made = make_inputs(4), []
    accumulator = deform_attn_triton.Call.accumulator
    monkeypatch.setattr(
        deform_attn_triton.Call, "accumulator", lambda call, *shape: made.append(shape) or accumulator(call, *shape)
    )
    grads = deform_attn_triton.backward(torch.ones(1, 5, 8), inputs[0], SHAPES, *inputs[1:], needs_reference=False)
    assert grads[1] is None
    assert not any(shape[-1] == 4 for shape in made), "nor is memory set aside for it"


@in_both_orders
def test_torch_can_ask_for_a_fixed_order(order, monkeypatch):
    monkeypatch.delenv("CODETR_DETERMINISTIC")
    assert not deform_attn_triton.wants_fixed_order()
    if order == "1":
        torch.use_deterministic_algorithms(True)
        try:
            assert deform_attn_triton.wants_fixed_order()
            check(make_inputs(2))
        finally:
            torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("order", ["0"], ids=["atomic"], indirect=True)
@pytest.mark.parametrize(("name", "numbers"), [*zip(FORMS, (0, 2, 4, 2), strict=True)])
def test_the_operator_of_exported_programs_equals_the_reference(name, numbers):
    try:
        wrap_triton(forward_kernel)
    except RuntimeError as error:
        pytest.skip(f"torch {torch.__version__} puts no interpreted kernel into programs: {error}")
    inputs = encoder_inputs(numbers, batch=2, heads=2)
    with tuning.use_candidate(tuning.Candidate.parse(name)):
        output = deform_attn_triton_export.forward(inputs[0], GRID, *inputs[1:])
    compare(output, reference_forward(inputs[0], GRID, *inputs[1:], gather=False), 1e-12)


@pytest.mark.parity
@pytest.mark.parametrize("order", ["0"], ids=["atomic"], indirect=True)
def test_equals_the_recorded_operator_through_the_seam(monkeypatch):
    folder = shared_dir() / "golden" / "cases" / "msda_op"
    if not folder.is_dir():
        pytest.skip(f"no recorded case at {folder}: set CODETR_SHARED")
    monkeypatch.setattr(deform_attn_triton, "INTERPRETED", tuning.Candidate(1, 1024, 4))
    report = Report("msda_op")
    with use_backend("triton"):
        run_deform_attn(Case.load(folder), report)
    assert report.ok, [line for line in report.lines if not line.ok]
