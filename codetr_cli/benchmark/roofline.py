"""Measures how fast this machine copies, reads its caches and multiplies: upper limits for every kernel.

They are measured in the same run and with the same threads as the kernels. Rates are the best of a few repetitions: a
limit is the machine's best, not its average.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from codetr_cli.runtime.precision import float32_arithmetic
from codetr_cli.runtime.timing import seconds_of

COPY_BYTES = {"cpu": 256 * 2**20, "cuda": 2**30}
"""Size of the copied tensor: larger than any cache."""

MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
REPEATS = 5
CACHE_READS = 64
"""How often one call reads the buffer in the cache, so that the overhead of a call is small."""

DEFAULT_CACHE_BYTES = 2**20
"""L2 cache of a core where the system does not report its size."""


@dataclass(frozen=True)
class MachineLimits:
    """Measured rates of a device with the threads in use.

    Attributes:
        copy_bytes_per_second: of a large copy, bytes read and bytes written together.
        cache_bytes_per_second: of reading or copying data in the L2 caches.
        flops_per_second: of a large matrix product; a multiply-add counts two.
        cache_bytes: L2 cache of a core, or of the GPU.
        dtype: of the matrix product, "float32" or "float64".
    """

    copy_bytes_per_second: float
    cache_bytes_per_second: float
    flops_per_second: float
    cache_bytes: int
    dtype: str


@dataclass(frozen=True)
class Work:
    """The least work of a call.

    Attributes:
        memory_bytes: inputs read once and results written once.
        cache_bytes: rows gathered, and in a backward pass scattered.
        flops: multiplications and additions.
    """

    memory_bytes: int
    cache_bytes: int
    flops: int

    def bounds_ms(self, limits: MachineLimits) -> dict[str, float]:
        """Lower bound of the time by each limit: "copy bandwidth", "cache bandwidth", "matrix rate"."""
        return {
            "copy bandwidth": self.memory_bytes / limits.copy_bytes_per_second * 1000,
            "cache bandwidth": self.cache_bytes / limits.cache_bytes_per_second * 1000,
            "matrix rate": self.flops / limits.flops_per_second * 1000,
        }


def measure_limits(device: torch.device, dtype: torch.dtype = torch.float32, *, scale: float = 1.0) -> MachineLimits:
    """Measures the device with the current number of torch threads.

    Args:
        device: CPU or GPU.
        dtype: float64 measures the matrix product in float64, anything else in float32 without TF32: kernels that
            gather accumulate in float32.
        scale: of the sizes; below 1 the rates are those of the caches.
    """
    real = torch.float64 if dtype == torch.float64 else torch.float32
    cache = cache_size(device)
    return MachineLimits(
        copy_bytes_per_second=_copy_rate(int(COPY_BYTES[device.type] * scale) // 4, device),
        cache_bytes_per_second=_cache_rate(cache, device),
        flops_per_second=_matrix_rate(int(MATRIX_SIDE[device.type] * scale), device, real),
        cache_bytes=cache,
        dtype=str(real).removeprefix("torch."),
    )


def cache_size(device: torch.device) -> int:
    """Bytes of the L2 cache: of a GPU, or of one core."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index2/size").read_text(encoding="ascii").strip()
    except OSError:
        return DEFAULT_CACHE_BYTES
    match = re.fullmatch(r"(\d+)([KM])", text)
    return int(match[1]) * {"K": 2**10, "M": 2**20}[match[2]] if match else DEFAULT_CACHE_BYTES


def _copy_rate(count: int, device: torch.device) -> float:
    source = torch.ones(count, device=device)
    target = torch.zeros_like(source)  # written once, so that its pages are allocated
    return 2 * source.nbytes / _best(lambda: target.copy_(source), device)


def _cache_rate(cache: int, device: torch.device) -> float:
    """The better of two methods: every thread reads a buffer of half its cache, or copies within its cache."""
    buffer = torch.ones(cache // 2 // 4, device=device)
    many = buffer.expand(max(CACHE_READS, 4 * torch.get_num_threads()), -1)  # no copy: every row is the same buffer
    read = max(many.nbytes / _best(reduce, device) for reduce in (lambda: many.sum(1), lambda: many.amax(1)))
    if device.type == "cuda":
        return read
    halves = torch.ones(2, torch.get_num_threads() * cache // 4 // 4)
    return max(read, halves.nbytes / _best(lambda: halves[0].copy_(halves[1]), device, repeats=20 * REPEATS))


def _matrix_rate(side: int, device: torch.device, dtype: torch.dtype) -> float:
    left, right = (torch.rand(side, side, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(left)
    with float32_arithmetic("fp32", device):
        return 2 * side**3 / _best(lambda: torch.mm(left, right, out=product), device)


def _best(function: Callable[[], Tensor], device: torch.device, repeats: int = REPEATS) -> float:
    """Seconds of the fastest call, after a warm-up call."""
    function()
    return min(seconds_of(function, device) for _ in range(repeats))
