from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from codetr_cli.ops import deform_attn_triton
from codetr_cli.ops.deform_attn import multi_scale_deformable_attention
from codetr_cli.ops.deform_attn_torch import forward as reference_forward

REPOSITORY = Path(__file__).resolve().parents[2]

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def interpret(marker: str) -> None:
    """Runs the cases of interpreted_triton.py that have the marker, in a process with Triton's interpreter."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", marker]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*command, "tests/ops/interpreted_triton.py"],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    assert "passed" in run.stdout or "skipped" in run.stdout


@needs_triton
def test_kernels_equal_the_reference_in_the_interpreter():
    interpret("not parity")


@needs_triton
@pytest.mark.parity
@pytest.mark.slow
def test_kernels_equal_the_recorded_operator_in_the_interpreter():
    interpret("parity")


def test_asking_why_not_on_a_cpu_imports_no_triton():
    code = (
        "import sys; from codetr_cli.ops import deform_attn_triton as backend;"
        "assert 'GPUs' in backend.why_not('cpu'); assert 'triton' not in sys.modules"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=environment, check=True)


def test_says_why_not(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA or ROCm GPU" in deform_attn_triton.why_not("cuda")
    assert "not on mps" in deform_attn_triton.why_not("mps")


def with_gpu(monkeypatch, version: str | Exception, capability: tuple[int, int] = (9, 0)) -> None:
    """Pretends that there is a GPU, and a Triton of that version or one that cannot be imported."""

    def import_module(name: str) -> SimpleNamespace:
        if isinstance(version, Exception):
            raise version
        return SimpleNamespace(__version__=version)

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(deform_attn_triton.importlib, "import_module", import_module)
    monkeypatch.setattr(deform_attn_triton.importlib.util, "find_spec", lambda name: object())


@pytest.mark.parametrize("version", ["3.6.0", "3.10.1+git1234", "4.0"])
def test_new_enough_triton_runs(monkeypatch, version):
    with_gpu(monkeypatch, version)
    assert deform_attn_triton.why_not("cuda") is None


def test_says_what_is_wrong_with_triton(monkeypatch):
    with_gpu(monkeypatch, "3.5.1")
    assert "older than 3.6" in deform_attn_triton.why_not("cuda")
    with_gpu(monkeypatch, OSError("libfoo.so: cannot open"))
    assert "libfoo.so" in deform_attn_triton.why_not("cuda")
    with_gpu(monkeypatch, "3.6.0", capability=(6, 1))
    assert "too old" in deform_attn_triton.why_not("cuda")
    monkeypatch.setattr(deform_attn_triton.importlib.util, "find_spec", lambda name: None)
    assert "not installed" in deform_attn_triton.why_not("cuda")


def test_level_table_is_made_once():
    """Also under inference mode, in a thread whose allocations no CUDA graph owns."""
    deform_attn_triton._level_table.cache_clear()
    shapes = ((3, 4), (2, 1))
    with torch.inference_mode():
        table = deform_attn_triton._level_table(shapes, torch.device("cpu"))
    assert not table.is_inference()
    assert table.tolist() == [[3, 4, 0, 0], [2, 1, 12, 20]]
    assert deform_attn_triton._level_table(shapes, torch.device("cpu")) is table
    captured = deform_attn_triton._captured_level_table(shapes, torch.device("cpu"))
    assert torch.equal(captured, table)
    assert captured.dtype == table.dtype


# --------------------------------------------------------------------------------------------- launches, without a GPU


@pytest.fixture
def launches(monkeypatch, tmp_path):
    """Records what would be compiled and launched on a GPU of compute capability 9.0."""
    triton = pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("kernels are interpreted in this process")
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    recorded = []

    def launch(kernel, *arguments, grid, warmup, **options):
        recorded.append(
            SimpleNamespace(kernel=kernel.fn.__name__, grid=grid(options) if callable(grid) else grid, options=options)
        )

    def time_launch(call, *, warmup, rep, quantiles):
        call()
        return [1.0 if recorded[-1].options["BLOCK_Q"] == 16 else 2.0] * 3

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton.JITFunction, "run", launch)
    monkeypatch.setattr(importlib.import_module("triton.testing"), "do_bench", time_launch)
    monkeypatch.setattr(driver, "_active", SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", 90, 32)))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(deform_attn_triton, "_chosen", {})
    deform_attn_triton._kernels.cache_clear()
    yield recorded
    deform_attn_triton._kernels.cache_clear()


def run_forward(queries: int, channels: int = 32, dtype: torch.dtype = torch.float32) -> None:
    shapes = [(3, 4)]
    value = torch.zeros(1, 12, 2, channels, dtype=dtype)
    sampling, scores = torch.zeros(1, queries, 2, 1, 4, 2), torch.zeros(1, queries, 2, 1, 4)
    deform_attn_triton.forward(value, shapes, None, sampling, scores)


def test_tunes_once_for_a_class_of_query_counts(launches):
    run_forward(900)
    tried = [(launch.options["BLOCK_Q"], launch.options["num_warps"]) for launch in launches[:-1]]
    assert tried == list(deform_attn_triton.BLOCKS)
    assert launches[-1].options["BLOCK_Q"] == 16
    assert launches[-1].grid == (57, 2, 1)
    launches.clear()
    run_forward(1500)
    assert [launch.options["BLOCK_Q"] for launch in launches] == [16]
    assert launches[0].options["num_stages"] == 1


def test_tuning_is_read_from_disk_by_the_next_process(launches):
    run_forward(900)
    launches.clear()
    deform_attn_triton._chosen.clear()
    deform_attn_triton._kernels.cache_clear()
    run_forward(900)
    assert [launch.options["BLOCK_Q"] for launch in launches] == [16]


def test_other_dtypes_and_larger_problems_tune_again(launches):
    run_forward(900)
    launches.clear()
    run_forward(900, dtype=torch.bfloat16)
    assert len(launches) > 1
    launches.clear()
    run_forward(5000)
    assert len(launches) > 1


@pytest.mark.parametrize("queries", [5, 200])
def test_small_problems_are_not_tuned(launches, queries):
    run_forward(queries)
    assert [(launch.options["BLOCK_Q"], launch.options["num_warps"]) for launch in launches] == [
        deform_attn_triton.DEFAULT_BLOCK
    ]


def test_nothing_is_timed_inside_a_graph_capture(launches, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    run_forward(900)
    assert len(launches) == 1
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    run_forward(900)
    assert len(launches) > 1, "a capture's block is not kept"
    launches.clear()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    run_forward(900)
    assert [launch.options["BLOCK_Q"] for launch in launches] == [16], "a capture uses what was tuned before"


def test_wide_heads_get_small_blocks(launches):
    run_forward(900, channels=512)
    assert {launch.options["BLOCK_Q"] for launch in launches} == {8}
    assert {launch.options["num_warps"] for launch in launches} == {4}
    launches.clear()
    run_forward(5, channels=512)
    assert launches[0].options["BLOCK_Q"] < deform_attn_triton.DEFAULT_BLOCK[0]


def test_backward_launches_one_kernel_or_two_in_a_fixed_order(launches, monkeypatch):
    value, sampling, scores = torch.zeros(2, 12, 2, 32), torch.zeros(2, 9, 2, 1, 4, 2), torch.zeros(2, 9, 2, 1, 4)
    arguments = (torch.zeros(2, 9, 64), value, [(3, 4)], None, sampling, scores)
    monkeypatch.delenv("CODETR_DETERMINISTIC", raising=False)
    deform_attn_triton.backward(*arguments, needs_reference=False)
    assert [launch.kernel for launch in launches] == ["backward_kernel"]
    launches.clear()
    monkeypatch.setenv("CODETR_DETERMINISTIC", "1")
    monkeypatch.setattr(torch, "sort", lambda tensor, stable: (torch.zeros_like(tensor), tensor.long()))
    deform_attn_triton.backward(*arguments, needs_reference=False)
    assert [launch.kernel for launch in launches] == ["backward_kernel", "ordered_value_kernel"] * 2


# -------------------------------------------------------------------------------------------------------- on a real GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")
@pytest.mark.parametrize("deterministic", [False, True], ids=["atomic", "ordered"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gpu_equals_the_reference(monkeypatch, dtype, deterministic):
    monkeypatch.setenv("CODETR_DETERMINISTIC", str(int(deterministic)))
    shapes = [(25, 42), (13, 21), (7, 11)]
    generator = torch.Generator().manual_seed(0)
    tokens = sum(height * width for height, width in shapes)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to("cuda")

    value, references = normal(2, tokens, 8, 32).to(dtype), normal(2, 900, 3, 4).sigmoid()
    sampling, scores = normal(2, 900, 8, 3, 4, 2), normal(2, 900, 8, 3, 4)
    if dtype != torch.float64:
        references, sampling, scores = references.float(), sampling.float(), scores.float()
    leaves = [tensor.double().requires_grad_() for tensor in (value, references, sampling, scores)]
    expected = reference_forward(leaves[0], shapes, *leaves[1:], gather=False)
    grad_output = normal(*expected.shape).to(dtype)
    expected_grads = torch.autograd.grad(expected, leaves, grad_output.double())
    arguments = (value, shapes, references, sampling, scores)
    output = deform_attn_triton.forward(*arguments)
    grads = deform_attn_triton.backward(grad_output, *arguments, needs_reference=True)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype]
    for ours, theirs in zip((output, *grads), (expected.detach(), *expected_grads), strict=True):
        atol = tolerance * float(theirs.abs().max())
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=atol)
    if deterministic:
        again = deform_attn_triton.backward(grad_output, *arguments, needs_reference=True)
        assert all(torch.equal(one, other) for one, other in zip(grads, again, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")
def test_gpu_graph_replays_with_new_inputs():
    value, sampling = torch.randn(1, 12, 2, 32, device="cuda"), torch.rand(1, 900, 2, 1, 4, 2, device="cuda")
    scores = torch.rand(1, 900, 2, 1, 4, device="cuda")
    deform_attn_triton.forward(value, [(3, 4)], None, sampling, scores)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = deform_attn_triton.forward(value, [(4, 3)], None, sampling, scores)  # sizes not seen before
    value.normal_()
    graph.replay()
    expected = reference_forward(value, [(4, 3)], None, sampling, scores, gather=False)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")
def test_gpu_compiles_into_graphs():
    """Tables of sizes first seen while torch.compile warms its graphs up must not lie in their memory."""
    shapes = [(5, 4)]

    def attend(value, sampling, scores):
        return multi_scale_deformable_attention(value, shapes, sampling, scores, backend="triton")

    compiled = torch.compile(attend, mode="reduce-overhead", fullgraph=True)
    sampling = torch.rand(1, 300, 2, 1, 4, 2, device="cuda")
    for _ in range(4):
        value, scores = torch.randn(1, 20, 2, 32, device="cuda"), torch.rand(1, 300, 2, 1, 4, device="cuda")
        expected = reference_forward(value, shapes, None, sampling, scores, gather=False)
        torch.testing.assert_close(compiled(value, sampling, scores).clone(), expected, rtol=1e-5, atol=1e-5)
