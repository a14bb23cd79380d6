"""Memory that this machine, a container or a limit leaves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from codetr_cli.runtime.memory import capacity, is_out_of_memory, main_memory_left

CPU = torch.device("cpu")


def test_memory_of_this_machine_is_shared():
    alone, shared = capacity(CPU), capacity(CPU, 4)
    if alone is None or shared is None:
        pytest.skip("this system does not tell how much memory is left")
    assert shared < alone


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


@pytest.mark.parametrize("version", [1, 2])
def test_the_limit_of_a_container_counts(tmp_path: Path, version: int):
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    write(proc, meminfo="MemTotal: 1000 kB\nMemAvailable: 900 kB\n")
    assert main_memory_left(proc, groups) == 900 * 1024
    (proc / "self").mkdir()
    if version == 2:
        (proc / "self/cgroup").write_text("0::/user/job\n")
        write(groups / "user", memory__max="500000\n", memory__current="300000\n", memory__stat="inactive_file 100\n")
        write(groups / "user/job", memory__max="max\n", memory__current="200000\n")
    else:
        (proc / "self/cgroup").write_text("5:cpu,cpuacct:/x\n4:memory:/job\n")
        write(groups / "memory", memory__limit_in_bytes=f"{2**63 - 4096}\n", memory__usage_in_bytes="7\n")
        write(groups / "memory/job", memory__limit_in_bytes="500000\n", memory__usage_in_bytes="300000\n",
              memory__stat="inactive_file 7\ntotal_inactive_file 100\n")  # fmt: skip
    assert main_memory_left(proc, groups) == 200_100


def test_a_system_that_tells_nothing(tmp_path: Path):
    assert main_memory_left(tmp_path, tmp_path) is None


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "HIP error: out of memory",
        "CUDA driver error: out of memory",
        "Triton Error [CUDA]: out of memory",
        "MPS backend out of memory (MPS allocated: 8.0 GB)",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
        "miopenStatusAllocFailed",
        "level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
        "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes",
        "[Errno 12] Cannot allocate memory",
    ],
)
def test_errors_that_mean_that_memory_ran_out(text: str):
    assert is_out_of_memory(RuntimeError(text))
    assert not is_out_of_memory(ValueError(text))


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: an illegal memory access was encountered",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
        "DataLoader worker (pid 1) is killed by signal: Bus error. Workers are possibly out of shared memory.",
        "size mismatch",
    ],
)
def test_errors_of_another_kind(text: str):
    assert not is_out_of_memory(RuntimeError(text))
