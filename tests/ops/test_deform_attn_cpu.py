"""The compiled kernel and the way it comes into an installation."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from codetr_cli.ops import compile_kernel, deform_attn, deform_attn_cpu  # noqa: F401 (registers the operator)
from tests.ops.deform_attn_inputs import Problem, make_problem

SHAPES = [(19, 23), (9, 11), (4, 5), (1, 2)]

kernel = pytest.mark.skipif(
    deform_attn_cpu.why_not(torch.device("cpu")) is not None,
    reason=str(deform_attn_cpu.why_not(torch.device("cpu")) or ""),
)
compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("cc", "gcc", "clang")), reason="there is no C compiler"
)


@pytest.fixture
def other_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A place where the backend looks for the library instead."""
    monkeypatch.setattr(deform_attn_cpu, "LIBRARY", tmp_path / "kernel.so")
    deform_attn_cpu._library.cache_clear()
    yield tmp_path / "kernel.so"
    deform_attn_cpu._library.cache_clear()


def run(problem: Problem) -> list[Tensor]:
    inputs = (problem.value, problem.spatial_shapes, problem.reference_points, problem.sampling, problem.scores)
    output = deform_attn_cpu.forward(*inputs)
    return [output, *deform_attn_cpu.backward(output.cos(), *inputs, needs_reference=True)]


@kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_same_bits_at_any_number_of_threads(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, batch: int):
    monkeypatch.setattr(deform_attn_cpu, "SAMPLES_PER_THREAD", 1)
    problem = make_problem(shapes=SHAPES, heads=6, channels=24, batch=batch, dtype=dtype)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = run(problem)
        for count in (2, 3, 4, 7):
            torch.set_num_threads(count)
            assert all(torch.equal(a, b) for a, b in zip(run(problem), expected, strict=True))
    finally:
        torch.set_num_threads(threads)


@kernel
@pytest.mark.parametrize("instructions", ["base", "avx2", "avx512"])
@pytest.mark.parametrize("channels", [32, 64, 24, 8, 5])
def test_every_instruction_set_computes_the_same(monkeypatch: pytest.MonkeyPatch, instructions: str, channels: int):
    order = ["base", "avx2", "avx512"]
    if order.index(instructions) > order.index(deform_attn_cpu.instruction_set()):
        pytest.skip(f"this machine has no {instructions}")
    problem = make_problem(shapes=SHAPES, channels=channels, reference=4)
    expected = run(problem)
    monkeypatch.setattr(deform_attn_cpu, "instruction_set", lambda: instructions)
    for ours, theirs in zip(run(problem), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@kernel
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_starts_threads_of_its_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(deform_attn_cpu, "SAMPLES_PER_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    problem = make_problem(shapes=SHAPES)
    inputs = (problem.value, SHAPES, problem.reference_points, problem.sampling, problem.scores)
    expected = deform_attn_cpu.forward(*inputs)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(deform_attn_cpu.forward(*inputs), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


@kernel
def test_many_callers_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(deform_attn_cpu, "SAMPLES_PER_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    problems = [make_problem(shapes=SHAPES, seed=seed) for seed in range(6)]
    expected = [run(problem) for problem in problems]
    with ThreadPoolExecutor(max_workers=6) as callers:
        found = list(callers.map(run, problems))
    for ours, theirs in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@kernel
def test_an_interrupted_call_waits_for_its_threads(monkeypatch: pytest.MonkeyPatch):
    """Their tensors would be given back while they still write."""
    monkeypatch.setattr(deform_attn_cpu, "SAMPLES_PER_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    started, finished = threading.Event(), threading.Event()
    main = threading.current_thread()

    class Library:
        def __getattr__(self, name: str) -> Callable[[object], int]:
            def work(_: object) -> int:
                if threading.current_thread() is main:
                    started.wait()
                    raise KeyboardInterrupt
                started.set()
                time.sleep(0.2)
                finished.set()
                return 0

            return work

    monkeypatch.setattr(deform_attn_cpu, "instruction_set", lambda: "base")
    monkeypatch.setattr(deform_attn_cpu, "_library", Library)
    with pytest.raises(KeyboardInterrupt):
        run(make_problem(shapes=SHAPES))
    assert finished.is_set()


@kernel
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": 40}, "more than 128 samples"),
        ({"flat": [2000, 3000, 9, 11, 4, 5, 1, 2]}, "have incompatible shapes"),
        ({"flat": [19, 23, 9, 11, 4, 5]}, "have incompatible shapes"),
        ({"queries": 7}, "have incompatible shapes"),
    ],
)
def test_the_operator_itself_refuses_what_does_not_fit(change: dict, message: str):
    """An exported program calls it without the checks of the entries."""
    problem = make_problem(shapes=SHAPES, queries=5, points=change.get("points", 4))
    flat = change.get("flat", [side for shape in SHAPES for side in shape])
    sampling = make_problem(shapes=SHAPES, queries=change.get("queries", 5), points=change.get("points", 4)).sampling
    with pytest.raises(ValueError, match=message):
        torch.ops.codetr.deform_attn(problem.value, flat, problem.reference_points, sampling, problem.scores, "cpu")


def test_without_the_library_it_says_what_to_do(other_library: Path):
    assert not other_library.exists()
    assert "no C compiler was there; install codetr again" in str(deform_attn_cpu.why_not(torch.device("cpu")))


def test_a_broken_library_is_not_used(other_library: Path):
    other_library.write_bytes(b"not a library")
    assert "kernel.so cannot be opened" in str(deform_attn_cpu.why_not(torch.device("cpu")))


@kernel
def test_a_library_of_another_source_is_not_used(other_library: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copy(compile_kernel.LIBRARY, other_library)
    assert deform_attn_cpu.why_not(torch.device("cpu")) is None
    deform_attn_cpu._library.cache_clear()
    monkeypatch.setattr(deform_attn_cpu, "source_digest", lambda: "0123456789abcdef")
    assert "is older than its source" in str(deform_attn_cpu.why_not(torch.device("cpu")))


def test_it_is_for_cpus_only():
    assert deform_attn_cpu.why_not(torch.device("cuda")) == "The compiled kernel runs on CPUs, not on cuda."


def test_a_compiler_that_is_missing_or_fails_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    library = tmp_path / "kernel.so"
    library.write_text("the old one")
    monkeypatch.setenv("CC", "/no/such/compiler -m64")
    with pytest.raises(compile_kernel.CompilerError, match=r"/no/such/compiler could not be started"):
        compile_kernel.compile_kernel(library)
    monkeypatch.setenv("CC", "false")
    with pytest.raises(compile_kernel.CompilerError, match=r"false .*deform_attn\.c.* failed"):
        compile_kernel.compile_kernel(library)
    monkeypatch.delenv("CC")
    monkeypatch.setattr(compile_kernel.shutil, "which", lambda _: None)
    with pytest.raises(compile_kernel.CompilerError, match="no C compiler was found"):
        compile_kernel.compile_kernel(library)
    assert [path.name for path in tmp_path.iterdir()] == ["kernel.so"]
    assert library.read_text() == "the old one"


@compiler
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="how a sanitizer is loaded first is known for Linux")
def test_random_problems_touch_no_memory_of_others(tmp_path: Path):
    command = [*compile_kernel.find_compiler(), "-print-file-name=libasan.so"]
    runtime = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    if not runtime.is_absolute():
        pytest.skip("the compiler has no address sanitizer")
    flags = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    library = compile_kernel.compile_kernel(tmp_path / "kernel.so", flags)
    environment = {**os.environ, "LD_PRELOAD": str(runtime.resolve()), "ASAN_OPTIONS": "detect_leaks=0"}
    script = Path(__file__).with_name("fuzz_kernel.py")
    done = subprocess.run(
        [sys.executable, str(script), str(library), "40"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
