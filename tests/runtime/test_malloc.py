from __future__ import annotations

import subprocess
import sys

import pytest

# Blocks of 28 MiB with small ones between them that stay: memory in use after the large ones are freed, in MiB.
CHURN = """
import sys
import torch
from codetr_cli.runtime.malloc import return_large_blocks
if sys.argv[1] == "on":
    assert return_large_blocks()
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20
torch.ones(31 * 2**18).sum()  # freed once: glibc learns to keep such blocks
before, small = resident(), []
for _ in range(3):
    large = []
    for _ in range(8):
        large.append(torch.ones(28 * 2**18))
        small.append(torch.ones(2**15))
    del large
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_freed_activations_go_back_to_the_system(monkeypatch):
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    kept = {
        mode: float(
            subprocess.run([sys.executable, "-c", CHURN, mode], capture_output=True, text=True, check=True).stdout
        )
        for mode in ("on", "off")
    }
    assert kept["on"] < 50 < 150 < kept["off"]


def test_the_environments_own_limit_wins(monkeypatch):
    from codetr_cli.runtime.malloc import return_large_blocks

    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1048576")
    assert not return_large_blocks()
