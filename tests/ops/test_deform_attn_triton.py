from __future__ import annotations

import importlib.util
import inspect
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from codetr_cli.errors import ConfigError
from codetr_cli.ops import deform_attn_triton
from codetr_cli.ops import deform_attn_triton_tuning as tuning
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
    interpret("not parity and not slow")


@needs_triton
@pytest.mark.slow
def test_all_kernels_equal_the_reference_in_the_interpreter_in_both_orders():
    interpret("not parity and slow")


@needs_triton
@pytest.mark.parity
@pytest.mark.slow
def test_kernels_equal_the_recorded_operator_in_the_interpreter():
    interpret("parity")


def test_asking_why_not_on_a_cpu_imports_no_triton():
    code = (
        "import sys, torch; from codetr_cli.ops import deform_attn_triton as backend;"
        "assert 'GPUs' in backend.why_not(torch.device('cpu')); assert 'triton' not in sys.modules"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=environment, check=True)


def test_says_why_not(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA or ROCm GPU" in deform_attn_triton.why_not(torch.device("cuda"))
    assert "not on mps" in deform_attn_triton.why_not(torch.device("mps"))


def with_gpu(monkeypatch, version: str | Exception, capability: tuple[int, int] = (9, 0)) -> None:
    """Pretends that there is a GPU, and a Triton of that version or one that cannot be imported."""

    def import_module(name: str) -> SimpleNamespace:
        if isinstance(version, Exception):
            raise version
        return SimpleNamespace(__version__=version)

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0) if device.index == 1 else capability)
    monkeypatch.setattr(deform_attn_triton.importlib, "import_module", import_module)
    monkeypatch.setattr(deform_attn_triton.importlib.util, "find_spec", lambda name: object())


@pytest.mark.parametrize("version", ["3.1.0", "3.1.0+corex.4.3", "3.10.1+git1234", "4.0"])
def test_new_enough_triton_runs(monkeypatch, version):
    with_gpu(monkeypatch, version)
    assert deform_attn_triton.why_not(torch.device("cuda")) is None


def test_says_what_is_wrong_with_triton(monkeypatch):
    with_gpu(monkeypatch, "3.0.0")
    assert "older than 3.1" in deform_attn_triton.why_not(torch.device("cuda"))
    with_gpu(monkeypatch, OSError("libfoo.so: cannot open"))
    assert "libfoo.so" in deform_attn_triton.why_not(torch.device("cuda"))
    with_gpu(monkeypatch, "3.6.0", capability=(6, 1))
    assert "capability is 6.1" in deform_attn_triton.why_not(torch.device("cuda", 0))
    assert deform_attn_triton.why_not(torch.device("cuda", 1)) is None
    monkeypatch.setattr(deform_attn_triton.importlib.util, "find_spec", lambda name: None)
    assert "not installed" in deform_attn_triton.why_not(torch.device("cuda"))


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
    """Records what would be compiled and launched on a GPU; blocks of 16 queries are the fastest there."""
    triton = pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("kernels are interpreted in this process")
    recorded = []

    def launch(kernel, *arguments, grid, warmup, **options):
        constants = {name: options[name] for name in options.keys() - {"num_warps", "num_stages", "enable_fp_fusion"}}
        inspect.signature(kernel.fn).bind(*arguments, **constants)  # the interpreter accepts more than the compiler
        recorded.append(SimpleNamespace(kernel=kernel.fn.__name__, grid=grid, options=options, arguments=arguments))

    def milliseconds(call):
        call()
        return 1.0 if recorded[-1].options["BLOCK_Q"] == 16 else 2.0

    monkeypatch.setenv("CODETR_CACHE", str(tmp_path))
    for name in (tuning.VARIABLE, "CODETR_DETERMINISTIC", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(triton.JITFunction, "run", launch)
    monkeypatch.setattr(tuning, "milliseconds", milliseconds)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    forget(monkeypatch)
    deform_attn_triton._kernels.cache_clear()
    yield recorded
    deform_attn_triton._kernels.cache_clear()


def forget(monkeypatch) -> None:
    """As in a new process."""
    monkeypatch.setattr(tuning, "_chosen", {})
    monkeypatch.setattr(tuning, "_lookups", Counter())


def run_forward(queries: int, channels: int = 32, dtype: torch.dtype = torch.float32, shapes=((3, 4),)) -> None:
    tokens = sum(height * width for height, width in shapes)
    levels = len(shapes)
    value = torch.zeros(1, tokens, 2, channels, dtype=dtype)
    sampling, scores = torch.zeros(1, queries, 2, levels, 4, 2), torch.zeros(1, queries, 2, levels, 4)
    deform_attn_triton.forward(value, shapes, None, sampling, scores)


def blocks(launches) -> list[int]:
    return [launch.options["BLOCK_Q"] for launch in launches]


def forms(launches) -> list[tuning.Candidate]:
    """The candidates that were launched."""
    found = []
    for launch in launches:
        rows, queries = launch.options["TILE_ROWS"], launch.options["BLOCK_Q"]
        switches = launch.options["CLAMPED"], launch.options["TOGETHER"]
        found.append(tuning.Candidate(rows, queries // rows, launch.options["num_warps"], *switches))
    return found


def test_tunes_once_for_a_class_of_query_counts(launches):
    run_forward(900, shapes=((3, 4), (2, 2), (2, 2), (2, 2), (2, 2)))
    assert forms(launches[:-1]) == [candidate for candidate in tuning.CANDIDATES["forward"] if candidate.rows == 1]
    assert blocks(launches[-1:]) == [16]
    assert launches[-1].grid == (57, 2, 1)
    launches.clear()
    run_forward(1500, shapes=((3, 4), (2, 2), (2, 2), (2, 2), (2, 2)))
    assert blocks(launches) == [16]
    assert launches[0].options["num_stages"] == 1


def test_an_encoder_tries_rectangles_of_its_grid(launches):
    run_forward(30 * 41 + 15 * 21, shapes=((30, 41), (15, 21)))
    tried = [launch for launch in launches if launch.options["TILE_ROWS"] == 4 and launch.options["BLOCK_Q"] == 32]
    assert tried
    assert {launch.grid for launch in tried} == {(8 * 6 + 4 * 3, 2, 1)}
    launches.clear()
    run_forward(900, shapes=((30, 41), (15, 21)))
    assert {launch.options["TILE_ROWS"] for launch in launches} == {1}


def test_tuning_is_read_from_disk_by_the_next_process(launches, monkeypatch, tmp_path, caplog):
    caplog.set_level("INFO")
    run_forward(900)
    launches.clear()
    forget(monkeypatch)
    run_forward(900)
    assert blocks(launches) == [16]
    launches.clear()
    forget(monkeypatch)
    monkeypatch.setenv(tuning.VARIABLE, "tune")
    run_forward(900)
    assert len(launches) > 1
    monkeypatch.setenv(tuning.VARIABLE, "auto")
    (path,) = (tmp_path / "triton").iterdir()
    valid = json.loads(path.read_text())
    for text in (
        *("{}", "", "[" * 50_000, "9" * 50_000, "null", "[]", '{"chosen": null}', " " * 200_000),
        json.dumps({**valid, "chosen": "1048576x1048576w1024"}),  # nothing that this program would try
        json.dumps({**valid, "chosen": "1x16w" + "9" * 5000}),
        json.dumps({**valid, "gpu": "another"}),
    ):
        path.write_text(text)
        launches.clear()
        forget(monkeypatch)
        run_forward(900)
        assert len(launches) > 1, "a file that is none of ours counts as missing"
        assert caplog.messages.count(f"the measurement in the cache, {path}, is damaged: it is made again") == 1
        caplog.clear()


def test_one_process_of_a_machine_tunes_and_the_others_find_its_choice(launches, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    for _ in range(3):
        run_forward(900)
    assert forms(launches) == [tuning.DEFAULT] * 3, "it neither measures nor waits"
    with monkeypatch.context() as first:
        first.setenv("LOCAL_RANK", "0")
        forget(first)
        run_forward(900)
    launches.clear()
    for _ in range(3):
        run_forward(900)
    assert blocks(launches) == [16, 16, 16], "it looks at calls 1, 2, 4, ..."


def test_a_machine_whose_cache_folder_cannot_be_written_tunes_for_the_process(launches, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CODETR_CACHE", str(tmp_path / "file"))
    run_forward(900)
    launches.clear()
    run_forward(900)
    assert blocks(launches) == [16]


def test_a_candidate_that_fails_is_skipped(launches, monkeypatch):
    def milliseconds(call):
        call()
        if launches[-1].options["BLOCK_Q"] != 32:
            raise RuntimeError("out of resource: shared memory")
        return 1.0

    monkeypatch.setattr(tuning, "milliseconds", milliseconds)
    run_forward(900)
    assert blocks(launches[-1:]) == [32]
    launches.clear()
    monkeypatch.setattr(tuning, "milliseconds", lambda call: 1 / 0)
    run_forward(900, dtype=torch.bfloat16)
    assert forms(launches) == [tuning.DEFAULT]


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
    assert forms(launches) == [tuning.DEFAULT]


def test_a_fixed_order_and_the_environment_prevent_tuning(launches, monkeypatch):
    """A choice by time would change the order of sums, and so the last bits, from run to run."""
    monkeypatch.setenv("CODETR_DETERMINISTIC", "1")
    run_forward(900)
    monkeypatch.delenv("CODETR_DETERMINISTIC")
    monkeypatch.setenv(tuning.VARIABLE, "shipped")
    run_forward(900)
    monkeypatch.setenv(tuning.VARIABLE, "4x2w1+clamped")
    run_forward(900)
    assert forms(launches) == [tuning.DEFAULT, tuning.DEFAULT, tuning.Candidate(1, 8, 1, clamped=True)]
    with tuning.use_candidate(tuning.Candidate(1, 4, 2)):
        run_forward(900)
    assert forms(launches[-1:]) == [tuning.Candidate(1, 4, 2)]
    monkeypatch.setenv(tuning.VARIABLE, "fastest")
    with pytest.raises(ConfigError, match=r"CODETR_DEFORM_ATTN_TRITON must be one of auto, shipped, tune, or"):
        run_forward(900)


def test_architectures_have_their_own_choice(launches, monkeypatch):
    monkeypatch.setattr(tuning, "architecture", lambda device: "sm_90")
    monkeypatch.setenv(tuning.VARIABLE, "shipped")
    run_forward(12, shapes=((3, 4),))
    run_forward(900)
    assert forms(launches) == [tuning.SHIPPED["sm_90"]["forward", True], tuning.DEFAULT]
    for table in tuning.SHIPPED.values():
        for (kernel, _), candidate in table.items():
            assert candidate in tuning.CANDIDATES[kernel]


def test_names_of_candidates_can_be_read_back():
    for candidate in (*tuning.CANDIDATES["forward"], *tuning.CANDIDATES["backward"]):
        assert tuning.Candidate.parse(str(candidate)) == candidate
    assert str(tuning.Candidate(4, 8, 2, True, True)) == "4x8w2+clamped+together"
    for wrong in ("", "1x8", "1x12w4", "0x8w4", "1x8w4+fast"):
        with pytest.raises(ValueError, match="powers of two"):
            tuning.Candidate.parse(wrong)


def test_names_of_architectures(monkeypatch):
    tuning.architecture.cache_clear()
    assert tuning.architecture(torch.device("cpu")) == "cpu"
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, device.index))
    assert tuning.architecture(torch.device("cuda", 6)) == "sm_86"
    assert tuning.warp_size(torch.device("cuda", 6)) == 32
    monkeypatch.setattr(torch.version, "hip", "6.2")
    properties = SimpleNamespace(gcnArchName="gfx942:sramecc+:xnack-")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert tuning.architecture(torch.device("cuda", 1)) == "gfx942"
    assert tuning.warp_size(torch.device("cuda", 1)) == 64
    tuning.architecture.cache_clear()


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are launched in the tests of a GPU")
def test_launches_are_accepted_and_compiled_without_a_gpu(monkeypatch, tmp_path):
    """Triton's own launcher up to the driver, on a pretended GPU: it checks arguments and compiles them."""
    triton = pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("kernels are interpreted in this process")
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    compiled = []
    run = triton.JITFunction.run

    def warm_up(kernel, *arguments, grid, warmup, **options):
        assert run(kernel, *arguments, grid=grid, warmup=True, **options).asm["cubin"]
        compiled.append(kernel.fn.__name__)

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton.JITFunction, "run", warm_up)
    gpu = {"get_current_device": lambda: 0, "get_current_stream": lambda device: 0}
    pretended = SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", 90, 32), **gpu)
    monkeypatch.setattr(driver, "_active" if hasattr(driver, "_active") else "active", pretended)
    deform_attn_triton._kernels.cache_clear()
    try:
        shapes = [(2, 2)]
        value, references, sampling = torch.zeros(1, 4, 1, 8), torch.zeros(1, 4, 1, 2), torch.zeros(1, 4, 1, 1, 1, 2)
        inputs = (value, shapes, references, sampling, torch.zeros(1, 4, 1, 1, 1))
        deform_attn_triton.forward(*inputs)
        monkeypatch.setenv("CODETR_DETERMINISTIC", "1")
        monkeypatch.setattr(torch, "sort", lambda tensor, stable: (torch.zeros_like(tensor), tensor.long() * 0))
        deform_attn_triton.backward(torch.zeros(1, 4, 8), *inputs, needs_reference=True)
    finally:
        deform_attn_triton._kernels.cache_clear()
    assert compiled == ["forward_kernel", "backward_kernel", "ordered_value_kernel"]


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
    assert blocks(launches) == [16], "a capture uses what was tuned before"


def test_wide_heads_get_small_blocks(launches):
    run_forward(900, channels=512)
    assert forms(launches)[0].queries == 1
    launches.clear()
    run_forward(5, channels=512)
    assert forms(launches)[0].queries < tuning.DEFAULT.queries


def test_backward_starts_from_zeros_after_tuning(launches, monkeypatch):
    """Every candidate that was timed has added to the gradient of the values."""

    def milliseconds(call):
        call()
        launches[-1].arguments[6].fill_(7.0)  # grad_value
        return 1.0

    monkeypatch.setattr(tuning, "milliseconds", milliseconds)
    value, sampling, scores = torch.zeros(2, 12, 2, 32), torch.zeros(2, 900, 2, 1, 4, 2), torch.zeros(2, 900, 2, 1, 4)
    grad = torch.zeros(2, 900, 64)
    grads = deform_attn_triton.backward(grad, value, [(3, 4)], None, sampling, scores, needs_reference=False)
    assert len(launches) > 2
    assert not grads[0].any()


def test_backward_launches_one_kernel_or_two_in_a_fixed_order(launches, monkeypatch):
    value, sampling, scores = torch.zeros(2, 12, 2, 32), torch.zeros(2, 9, 2, 1, 4, 2), torch.zeros(2, 9, 2, 1, 4)
    arguments = (torch.zeros(2, 9, 64), value, [(3, 4)], None, sampling, scores)
    deform_attn_triton.backward(*arguments, needs_reference=False)
    assert [launch.kernel for launch in launches] == ["backward_kernel"]
    launches.clear()
    monkeypatch.setenv("CODETR_DETERMINISTIC", "1")
    monkeypatch.setattr(torch, "sort", lambda tensor, stable: (torch.zeros_like(tensor), tensor.long()))
    deform_attn_triton.backward(*arguments, needs_reference=False)
    assert [launch.kernel for launch in launches] == ["backward_kernel", "ordered_value_kernel"] * 2


# -------------------------------------------------------------------------------------------------------- on a real GPU


GPU_SHAPES = [(25, 42), (13, 21), (7, 11)]


def make_exact_inputs(queries: int, numbers: int, device: str) -> list[torch.Tensor]:
    """Float64 value, reference points of 2 or 4 numbers, offsets and logits, with samples in and around the maps.

    No sample is close to a corner of cells: rounding would choose the side of the derivative there.
    """
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)

    cells = torch.tensor([(width, height) for height, width in GPU_SHAPES])[:, None]  # (L, 1, 2)
    pixels = (
        (uniform(2, queries, 8, 3, 4, 2) * (cells + 6)).floor() - 3 + uniform(2, queries, 8, 3, 4, 2, low=0.1, high=0.9)
    )
    references = uniform(2, queries, 3, numbers, low=0.1)
    points = references[:, :, None, :, None]  # (B, Q, 1, L, 1, numbers)
    offsets = (pixels + 0.5) / cells - points[..., :2]
    offsets = offsets * cells if numbers == 2 else offsets * 2 * 4 / points[..., 2:]
    value = uniform(2, sum(height * width for height, width in GPU_SHAPES), 8, 32, low=-1)
    return [tensor.to(device) for tensor in (value, references, offsets, uniform(2, queries, 8, 3, 4, low=-3, high=3))]


def check_on_gpu(inputs: list[torch.Tensor], tolerance: float) -> tuple[torch.Tensor, ...]:
    """Output and gradients against the plain formulation in float64; returns the gradients."""
    exact = [tensor.double().requires_grad_() for tensor in inputs]
    expected = reference_forward(exact[0], GPU_SHAPES, *exact[1:], gather=False)
    grad_output = (
        torch.linspace(-1, 1, expected.numel(), device=expected.device).view(expected.shape).to(inputs[0].dtype)
    )
    expected_grads = torch.autograd.grad(expected, exact, grad_output.double())
    output = deform_attn_triton.forward(inputs[0], GPU_SHAPES, *inputs[1:])
    grads = deform_attn_triton.backward(grad_output, inputs[0], GPU_SHAPES, *inputs[1:], needs_reference=True)
    for ours, theirs in zip((output, *grads), (expected.detach(), *expected_grads), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=tolerance * float(theirs.abs().max()))
    return grads


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")
@pytest.mark.parametrize("deterministic", [False, True], ids=["atomic", "ordered"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gpu_equals_the_reference(monkeypatch, dtype, deterministic):
    monkeypatch.setenv("CODETR_DETERMINISTIC", str(int(deterministic)))
    value, *others = make_exact_inputs(900, 4, "cuda")
    positions = torch.float64 if dtype == torch.float64 else torch.float32
    inputs = [value.to(dtype), *(tensor.to(positions) for tensor in others)]
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype]
    grads = check_on_gpu(inputs, tolerance)
    if deterministic:
        again = check_on_gpu(inputs, tolerance)
        assert all(torch.equal(one, other) for one, other in zip(grads, again, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")
@pytest.mark.parametrize("name", sorted({str(c) for candidates in tuning.CANDIDATES.values() for c in candidates}))
def test_gpu_every_candidate_equals_the_reference(name):
    queries = sum(height * width for height, width in GPU_SHAPES)
    with tuning.use_candidate(tuning.Candidate.parse(name)):
        check_on_gpu([tensor.float() for tensor in make_exact_inputs(queries, 2, "cuda")], 1e-5)


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
