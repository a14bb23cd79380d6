"""Memory that this machine, a container or a limit leaves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from codetr_cli.runtime.memory import capacity, main_memory_left

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
