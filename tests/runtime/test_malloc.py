from __future__ import annotations

import subprocess
import sys

import pytest

from codetr_cli.runtime.malloc import return_large_blocks, share_one_heap

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

# The heaps of glibc after three threads have allocated, one line each.
THREADS = """
import ctypes
import sys
import threading
from codetr_cli.runtime.malloc import share_one_heap
libc = ctypes.CDLL(None)
libc.fopen.restype, libc.malloc.restype = ctypes.c_void_p, ctypes.c_void_p
if sys.argv[1] == "on":
    assert share_one_heap()
barrier = threading.Barrier(3)
def run():
    libc.malloc(ctypes.c_size_t(1000))
    barrier.wait()
threads = [threading.Thread(target=run) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
file = ctypes.c_void_p(libc.fopen(b"/dev/stdout", b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_threads_share_a_heap(monkeypatch):
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    heaps = {
        mode: subprocess.run([sys.executable, "-c", THREADS, mode], capture_output=True, text=True, check=True).stdout
        for mode in ("on", "off")
    }
    assert heaps["on"].count("<heap nr=") == 1
    assert heaps["off"].count("<heap nr=") > 1


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
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1048576")
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    assert not return_large_blocks()
    assert not share_one_heap()
