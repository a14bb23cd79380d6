"""What stands in for `torch.cuda` while the emulated GPU is there: devices, streams, events, memory, random numbers."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch

from tests.strict.recorder import GPU, is_pinned, pin, to_strict

OTHER_CAPABILITY, OTHER_MEMORY = (7, 0), 2**30
"""GPUs that nobody chose are old and small: code that asks them by accident gets another answer."""


class _Current(threading.local):
    """The current device of each thread, 0 until the thread says otherwise, as in CUDA."""

    index = 0


current = _Current()


class Event:
    """`torch.cuda.Event`.

    Args:
        enable_timing: accepted.
        blocking: whether `synchronize` sleeps; else it uses a whole core.
    """

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None:
        self.blocking, self.copies, self.time = blocking, [], 0.0

    def record(self, stream: Any = None) -> None:
        """Without a stream: on that of the thread's current device, which need not be the one with the work."""
        index = current.index if stream is None else stream.index
        if index != GPU.device.index and GPU.active:
            GPU.misplaced[GPU.where(), f"event recorded on cuda:{index}, the work is on {GPU.device}"] += 1
        self.copies = list(GPU.pending) if index == GPU.device.index else []
        self.time = time.perf_counter()

    def synchronize(self) -> None:
        GPU.finish(self.copies)
        if not GPU.active:
            return
        if threading.current_thread() is threading.main_thread():
            GPU.syncs[GPU.where(), "event.synchronize"] += 1
        elif not self.blocking:
            GPU.spins[GPU.where(), "event.synchronize of a thread"] += 1

    def query(self) -> bool:
        return False

    def wait(self, stream: Any = None) -> None: ...

    def elapsed_time(self, other: Event) -> float:
        return (other.time - self.time) * 1000


class Stream:
    """`torch.cuda.Stream`; the same for the current and the default stream of a device."""

    def __init__(self, device: Any = None, *args: Any, **kwargs: Any) -> None:
        self.index = _index(device)
        self.device = torch.device("cuda", self.index)

    def synchronize(self) -> None:
        GPU.sync("stream.synchronize")

    def wait_stream(self, other: Any) -> None: ...

    def wait_event(self, event: Any) -> None: ...

    def record_event(self, event: Any = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *args: Any) -> None: ...


class DeviceContext:
    """`torch.cuda.device`."""

    def __init__(self, device: Any) -> None:
        self.idx = -1 if getattr(device, "index", device) is None else _index(device)

    def __enter__(self) -> None:
        self.before, current.index = current.index, current.index if self.idx < 0 else self.idx

    def __exit__(self, *args: Any) -> bool:
        current.index = self.before
        return False


def _index(device: Any) -> int:
    """The index of a device in any form; None, and a device without index, is the current one."""
    device = torch.device(device) if isinstance(device, str) else device
    index = getattr(device, "index", device)
    return current.index if index is None else int(index)


def _set_device(device: Any) -> None:
    if _index(device) >= 0:
        current.index = _index(device)


def cuda_functions(total_memory: int, capability: tuple[int, int]) -> dict[str, Any]:
    """Replacements in `torch.cuda`. Questions without a device go to the thread's current one, as in CUDA."""

    def is_ours(device: Any) -> bool:
        return _index(device) == GPU.device.index

    def capability_of(device: Any = None) -> tuple[int, int]:
        return capability if is_ours(device) else OTHER_CAPABILITY

    def memory_of(device: Any = None) -> int:
        return total_memory if is_ours(device) else OTHER_MEMORY

    def properties(device: Any = None) -> SimpleNamespace:
        major, minor = capability_of(device)
        return SimpleNamespace(
            name=name_of(device), total_memory=memory_of(device), major=major, minor=minor,
            multi_processor_count=132, L2_cache_size=50 * 2**20, warp_size=32, gcnArchName="",
            max_threads_per_multi_processor=2048, regs_per_multiprocessor=65536, shared_memory_per_block_optin=232448,
        )  # fmt: skip

    def name_of(device: Any = None) -> str:
        return "Strict GPU" if is_ours(device) else "Other GPU"

    def counted(read: Callable[[], int]) -> Callable[..., int]:
        return lambda device=None: read() if is_ours(device) else 0

    def synchronize(device: Any = None) -> None:
        if is_ours(device):
            GPU.sync("cuda.synchronize")
        elif GPU.active:
            GPU.misplaced[GPU.where(), f"waits for cuda:{_index(device)}, the work is on {GPU.device}"] += 1

    def seed(number: int) -> None:
        if GPU.rng is not None:
            GPU.rng = torch.Generator().manual_seed(int(number) + 1).get_state()

    def get_state(device: Any = None) -> torch.Tensor:
        return torch.get_rng_state() if GPU.rng is None else GPU.rng.clone()

    def set_state(state: torch.Tensor, device: Any = None) -> None:
        if GPU.rng is not None:
            GPU.rng = state.clone()

    return {
        "is_available": lambda: True, "device_count": lambda: GPU.device.index + 1,
        "current_device": lambda: current.index,
        "_lazy_init": lambda: None, "_initialized": True, "is_initialized": lambda: True, "init": lambda: None,
        "set_device": _set_device, "device": DeviceContext,
        "_exchange_device": lambda index: 0, "_maybe_exchange_device": lambda index: 0,
        "synchronize": synchronize,
        "Event": Event, "Stream": Stream, "current_stream": Stream, "default_stream": Stream,
        "stream": lambda stream: contextlib.nullcontext(),
        "is_current_stream_capturing": lambda: False, "empty_cache": lambda: None,
        "mem_get_info": lambda device=None: (
            (total_memory - GPU.bytes_now, total_memory) if is_ours(device) else (OTHER_MEMORY, OTHER_MEMORY)
        ),
        "memory_allocated": counted(lambda: GPU.bytes_now), "memory_reserved": counted(lambda: GPU.bytes_now),
        "max_memory_allocated": counted(lambda: GPU.bytes_peak),
        "max_memory_reserved": counted(lambda: GPU.bytes_peak),
        "reset_peak_memory_stats": lambda device=None: setattr(GPU, "bytes_peak", GPU.bytes_now),
        "memory_stats": lambda device=None: {},
        "is_bf16_supported": lambda including_emulation=True: including_emulation or capability_of() >= (8, 0),
        "get_device_name": name_of, "get_device_capability": capability_of, "get_device_properties": properties,
        "manual_seed": seed, "manual_seed_all": seed, "seed": lambda: None, "seed_all": lambda: None,
        "get_rng_state": get_state, "set_rng_state": set_state, "get_rng_state_all": lambda: [get_state()],
        "_is_in_bad_fork": lambda: False,
    }  # fmt: skip


def accelerator_functions() -> dict[str, Any]:
    """Replacements in `torch.accelerator`."""
    return {
        "is_available": lambda: True, "current_accelerator": lambda check_available=False: torch.device("cuda"),
        "device_count": lambda: 1, "current_device_index": lambda: 0, "set_device_index": lambda device: None,
        "synchronize": lambda device=None: GPU.sync("accelerator.synchronize"),
    }  # fmt: skip


def tensor_methods() -> dict[str, Any]:
    """Replacements in `torch.Tensor`."""
    return {
        "pin_memory": lambda self, *args, **kwargs: self if is_pinned(self) else pin(self.clone()),
        "is_pinned": lambda self, *args, **kwargs: is_pinned(self),
        "record_stream": lambda self, stream: None,
        "to": to_strict,
    }


def factories() -> dict[str, Any]:
    """Functions of `torch` that know `pin_memory=True`."""
    names = ("empty", "empty_like", "zeros", "ones", "full", "tensor", "zeros_like", "empty_strided")
    return {name: _pinning(getattr(torch, name)) for name in names}


def _pinning(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        wanted = kwargs.pop("pin_memory", False)
        made = function(*args, **kwargs)
        return pin(made) if wanted and made.device.type == "cpu" else made

    return call


@contextlib.contextmanager
def patched(owner: Any, values: dict[str, Any]) -> Iterator[None]:
    """Replaces attributes of a module or class while the context lasts."""
    missing = object()
    before = {name: owner.__dict__.get(name, missing) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is missing:
                delattr(owner, name)
            else:
                setattr(owner, name, value)
