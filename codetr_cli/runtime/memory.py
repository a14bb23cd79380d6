"""Memory that a process may use: how much there is, out-of-memory errors, and releasing it."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from codetr_cli.errors import is_out_of_memory as is_out_of_memory
from codetr_cli.runtime.devices import proc_bytes, read_text
from codetr_cli.runtime.timing import memory_in_use, return_freed_memory

GIB = 2**30
UNLIMITED = 2**60  # control groups version 1 have no limit at a value slightly below 2**63


def gib_text(count: float) -> str:
    """Bytes as GiB with one digit after the point, or two below 1."""
    return f"{count / GIB:.1f}" if count >= 0.95 * GIB else f"{count / GIB:.2f}"


def free_unused(device: torch.device) -> None:
    """Releases memory that no tensor uses: a failed step leaves cycles and cached blocks."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    else:
        return_freed_memory()


# ---------------------------------------------------------------------------------------------------- how much there is


def capacity(device: torch.device, processes: int = 1) -> int | None:
    """Bytes that this process may use in total, including what it uses now; None where the system does not report it.

    Args:
        device: whose memory.
        processes: processes of this node that share the main memory; each has its own GPU.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    left, held = main_memory_left(), memory_in_use(device)
    return None if left is None or held is None else held + left // processes


def main_memory_left(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes of main memory that are available: the system's, or less where a control group has a limit.

    Args:
        proc: mount point of procfs.
        groups: mount point of control groups, version 1 or 2.
    """
    available = proc_bytes(str(proc / "meminfo"), "MemAvailable")
    return None if available is None else max(0, min([available, *_left_in_groups(proc, groups)]))


def _left_in_groups(proc: Path, groups: Path) -> Iterator[int]:
    """Bytes left below each limit of the groups of this process and of their parents."""
    for line in ["::/", "0:memory:/", *read_text(str(proc / "self/cgroup")).splitlines()]:
        controllers, _, name = line.partition(":")[2].partition(":")
        old = "memory" in controllers.split(",")
        if controllers and not old:
            continue
        root = groups / "memory" if old else groups
        limit_file, used_file, cache = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            if old
            else ("memory.max", "memory.current", "inactive_file")
        )
        place = root / name.lstrip("/")
        for folder in (place, *place.parents):
            limit, used = (read_text(str(folder / name)).strip() for name in (limit_file, used_file))
            if limit.isdigit() and used.isdigit() and int(limit) < UNLIMITED:
                # Cached files are dropped when memory is needed.
                cached = re.search(rf"^{cache} (\d+)", read_text(str(folder / "memory.stat")), re.MULTILINE)
                yield int(limit) - int(used) + (int(cached[1]) if cached else 0)
            if folder == root:
                break


def local_processes(world_size: int) -> int:
    """Training processes of this node, as the launcher set it; else all."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or world_size)
