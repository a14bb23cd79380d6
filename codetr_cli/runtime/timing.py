"""Time and memory of a call, as every benchmark measures them: with an idle device, and contenders in turn."""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from codetr_cli.runtime.devices import proc_bytes

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

Tick = Callable[[], object]
Measured = TypeVar("Measured")

RESET_PEAK = "5"
"""Written to clear_refs, it resets the peak resident size on Linux, see proc(5)."""


# ---------------------------------------------------------------------------------------------------------------- time


def synchronize(device: torch.device) -> None:
    """Waits until the device has finished its queued work; does nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type != "cpu":
        torch.accelerator.synchronize()


def seconds_of(function: Callable[[], object], device: torch.device) -> float:
    """Wall time of a call, with the device idle before and after."""
    synchronize(device)
    started = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - started


class Stopwatch:
    """Times parts of a program without waiting for a CUDA GPU: its events mark beginning and end among its work.

    Other GPUs are waited for at both ends: else a part that downloads would be timed with all work before it.
    """

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []  # of parts that may not be over

    @contextmanager
    def measure(self, device: torch.device) -> Iterator[None]:
        """Times what is done inside the context on this device."""
        if device.type != "cuda":
            synchronize(device)
            started = time.perf_counter()
            yield
            synchronize(device)
            self._seconds.append(time.perf_counter() - started)
            return
        stream = torch.cuda.current_stream(device)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record(stream)
        yield
        end.record(stream)
        self._marks.append((begin, end))

    @property
    def seconds(self) -> list[float]:
        """Of every part so far; waits for a GPU to finish the last one."""
        if self._marks:
            self._marks[-1][1].synchronize()
        self._seconds += [begin.elapsed_time(end) / 1000 for begin, end in self._marks]
        self._marks.clear()
        return self._seconds


def in_turn(
    contenders: Mapping[str, Callable[[], Measured]], rounds: int, tick: Tick = lambda: None
) -> dict[str, list[Measured]]:
    """Measures contenders in turn, A B C A B C, so that other load on the machine affects all equally.

    Args:
        contenders: name -> one measurement.
        rounds: measurements of each.
        tick: called after each measurement.

    Returns:
        name -> its measurements, in the order of the rounds.
    """
    measured: dict[str, list[Measured]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, measure in contenders.items():
            measured[name].append(measure())
            tick()
    return measured


@contextmanager
def timed_children(model: nn.Module, names: Sequence[str], device: torch.device) -> Iterator[dict[str, float]]:
    """Sums the seconds spent in the named children of a network while the context lasts."""
    seconds = dict.fromkeys(names, 0.0)

    def add(name: str, sign: int, *_: Any) -> None:
        synchronize(device)
        seconds[name] += sign * time.perf_counter()

    handles = []
    for name in names:
        child: nn.Module = getattr(model, name)
        handles.append(child.register_forward_pre_hook(partial(add, name, -1)))
        handles.append(child.register_forward_hook(partial(add, name, 1)))
    try:
        yield seconds
    finally:
        for handle in handles:
            handle.remove()


# -------------------------------------------------------------------------------------------------------------- memory


def reset_peak_memory(device: torch.device) -> bool:
    """Starts a new measurement of the peak memory.

    Freed memory is returned to the system first, so that it is not counted for the call.

    Returns:
        whether `peak_memory` then is the peak since this call: True for a GPU and on Linux; elsewhere the peak of a
        process cannot be reset.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    return_freed_memory()
    try:
        Path("/proc/self/clear_refs").write_text(RESET_PEAK, encoding="ascii")
    except OSError:
        return False
    return True


def peak_memory(device: torch.device) -> int | None:
    """Bytes: the GPU allocator's peak, or the process's peak resident size, since the reset; None where unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = proc_bytes("/proc/self/status", "VmHWM")
    if peak is not None or resource is None:
        return peak
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


def memory_in_use(device: torch.device) -> int | None:
    """Bytes allocated on the GPU, or the process's resident size now; None where unknown."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else proc_bytes("/proc/self/status", "VmRSS")


def extra_peak_memory(function: Callable[[], Sequence[torch.Tensor]], device: torch.device) -> int | None:
    """Peak memory of a call beyond the memory in use before and its results, in bytes; None where unknown.

    The call should have run before, because first calls load libraries.

    Args:
        function: returns its new tensors.
        device: where it runs.
    """
    synchronize(device)
    if not reset_peak_memory(device):
        return None
    before = memory_in_use(device)
    returned = function()
    synchronize(device)
    peak = peak_memory(device)
    if before is None or peak is None:
        return None
    return max(0, peak - before - sum(tensor.nbytes for tensor in returned))


def return_freed_memory() -> None:
    """Makes glibc return freed memory to the system; does nothing with another C library."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
