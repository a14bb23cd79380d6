"""The tensors of the emulated GPU and the record of what happened on it."""

from __future__ import annotations

import contextlib
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

import codetr_cli
from tests.strict import lacks, sizes
from tests.strict.operators import INDEXING, KERNELS, NO_KERNEL, SYNCING, UNORDERED, WHOLE, name_of, takes_numbers

aten = torch.ops.aten
COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
CPU_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
PACKAGE = f"{Path(codetr_cli.__file__).parent}/"
_plain_to = torch.Tensor.to
_pinned: set[int] = set()


class StrictTensor(torch.Tensor):
    """A tensor on the emulated device; `elem` holds its values in host memory."""

    elem: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, elem: torch.Tensor) -> StrictTensor:
        # C++ sees a CPU tensor with the dispatch keys of the device, Python sees the device: autograd would ask the
        # driver for the streams of what C++ knows as CUDA, and autocast goes by the keys.
        made = torch.Tensor._make_subclass(cls, elem, False, device_for_backend_keys=GPU.device)
        made.elem = elem
        return made

    device = property(lambda self: GPU.device)
    is_cuda = property(lambda self: GPU.device.type == "cuda")
    is_xpu = property(lambda self: GPU.device.type == "xpu")
    is_mps = property(lambda self: GPU.device.type == "mps")
    is_cpu = property(lambda self: False)

    def get_device(self) -> int:
        return GPU.device.index

    def cpu(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return aten._to_copy(self, device=torch.device("cpu"))

    def cuda(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self

    def new_tensor(self, data: Any, *, dtype: Any = None, device: Any = None, **kwargs: Any) -> torch.Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype, device=device or GPU.device, **kwargs)

    def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        device, dtype, eager, memory_format = torch._C._nn._parse_to(*_parsable(args), **_parsable(kwargs))
        copy = kwargs.get("copy", False) or (len(args) > 3 and args[3]) or False
        if device is not None and device.type == GPU.device.type and not copy:
            device = None  # C++ would copy
            if dtype is None and memory_format is None:
                return self
        more = {} if memory_format is None else {"memory_format": memory_format}
        if device is None:
            return _plain_to(self, dtype or self.dtype, non_blocking=eager, copy=copy, **more)
        return aten._to_copy(self, dtype=dtype, device=device, non_blocking=eager, **more)

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"StrictTensor({self.elem!r})"

    def tolist(self) -> Any:
        GPU.sync("tolist")
        return torch.zeros_like(self.elem, device="cpu").tolist() if GPU.sizes_only else self.elem.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"can't convert {GPU.device} device type tensor to numpy. Use Tensor.cpu() first")

    def __array__(self, *args: Any) -> Any:
        return self.numpy()

    def data_ptr(self) -> int:
        return self.elem.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return GPU.run(func, args, kwargs or {})


def values(tensor: torch.Tensor) -> torch.Tensor:
    """The values of a tensor of either device, without a wait."""
    return tensor.elem if isinstance(tensor, StrictTensor) else tensor


def to_strict(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """`host.to(other)` with a tensor of the emulated device: C++ would use the CPU."""
    other = args[0] if args else kwargs.get("other")
    if isinstance(other, StrictTensor):
        more = {key: value for key, value in kwargs.items() if key != "other"}
        return _plain_to(self, GPU.device, other.dtype, *args[1:], **more)
    return _plain_to(self, *args, **kwargs)


def _parsable(arguments: Any) -> Any:
    """Arguments of `to` without those that the parser of modules does not know: another tensor and `copy`."""
    if isinstance(arguments, dict):
        return {key: value for key, value in arguments.items() if key != "copy"}
    if arguments and isinstance(arguments[0], torch.Tensor):
        return (arguments[0].device, arguments[0].dtype, *arguments[1:2])
    return arguments[:3]


# --------------------------------------------------------------------------------------------------- page-locked memory


def pin(tensor: torch.Tensor) -> torch.Tensor:
    """Makes the memory of a host tensor page-locked."""
    storage = tensor.untyped_storage()
    _pinned.add(storage._cdata)
    weakref.finalize(storage, _pinned.discard, storage._cdata)
    return tensor


def is_pinned(tensor: torch.Tensor) -> bool:
    return not isinstance(tensor, StrictTensor) and tensor.untyped_storage()._cdata in _pinned


# ----------------------------------------------------------------------------------------------------------- the record


@dataclass
class Recorder:
    """What happened on the emulated device. Counters are by line of the package.

    Attributes:
        device: the emulated one.
        active: whether anything is counted.
        ops: (line, operator) -> calls that launch kernels.
        kernels: line -> estimated kernels.
        syncs: (line, what) -> waits of the host for the device.
        mixes: (line, operator) -> calls with tensors of host and device; each raised.
        unordered: (line, operator) -> kernels without a fixed order while deterministic ones were asked for.
        raced: line -> page-locked sources that changed before their copy was over.
        uploads: line -> copies to the device.
        misplaced: (line, what) -> events recorded on another device than that of the work.
        spins: (line, what) -> waits of other threads that use a whole core.
        timeline: (what, kernels so far) of each wait.
        limit: bytes of the device.
        bytes_now: of live tensors.
        bytes_peak: highest value of `bytes_now`.
        sizes_only: values are not computed: tensors have sizes alone, whatever asks for values gets zeros, and whatever
            asks how many elements fulfil a condition gets all of them. For the memory of networks of any size.
        rng: state of the device's own random numbers; None: it shares the host's.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cuda", 0))
    active: bool = False
    ops: Counter = field(default_factory=Counter)
    kernels: Counter = field(default_factory=Counter)
    syncs: Counter = field(default_factory=Counter)
    mixes: Counter = field(default_factory=Counter)
    unordered: Counter = field(default_factory=Counter)
    raced: Counter = field(default_factory=Counter)
    uploads: Counter = field(default_factory=Counter)
    misplaced: Counter = field(default_factory=Counter)
    spins: Counter = field(default_factory=Counter)
    timeline: list[tuple[str, int]] = field(default_factory=list)
    limit: int = 2**60
    bytes_now: int = 0
    bytes_peak: int = 0
    sizes_only: bool = False
    rng: torch.Tensor | None = None
    pending: list = field(default_factory=list)  # (host tensor, its values, line): copies that nobody waited for
    lock: Any = field(default_factory=threading.RLock)
    _sources: list = field(default_factory=list)
    _storages: dict = field(default_factory=dict)

    def clear(self) -> None:
        """Forgets what was counted; memory in use stays."""
        for counter in (self.ops, self.kernels, self.syncs, self.mixes, self.unordered, self.raced, self.uploads,
                        self.misplaced, self.spins, self.timeline):  # fmt: skip
            counter.clear()

    @property
    def waits(self) -> Counter:
        """Waits by line."""
        lines: Counter = Counter()
        for (line, _), number in self.syncs.items():
            lines[line] += number
        return lines

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Counts nothing."""
        active, self.active = self.active, False
        try:
            yield
        finally:
            self.active = active

    @property
    def problems(self) -> dict[str, Counter]:
        """What is wrong on any GPU: mixes, races, events on other devices, threads that spin."""
        named = {"mixes": self.mixes, "races": self.raced, "misplaced": self.misplaced, "spins": self.spins}
        return {name: counter for name, counter in named.items() if counter}

    def where(self) -> str:
        """The line of the package that is at work; in a backward pass that of the forward one, in anomaly mode."""
        frame = sys._getframe(2)
        optimizer = ""
        while frame is not None:
            path = frame.f_code.co_filename
            if frame.f_code.co_name == "_engine_run_backward":
                node = torch._C._current_autograd_node()
                if node is not None:
                    return _forward_line(node)
            if path.startswith(PACKAGE):
                return f"{_relative(path)}:{frame.f_lineno} {frame.f_code.co_name}"
            if not optimizer and "/torch/optim" in path:
                optimizer = "torch/optim " + frame.f_code.co_name
            frame = frame.f_back
        return optimizer or "outside"

    @property
    def storage_device(self) -> torch.device:
        """Where the values are."""
        return torch.device("meta" if self.sizes_only else "cpu")

    # ------------------------------------------------------------------------------------------------ waits
    def sync(self, what: str) -> None:
        """The host waits for everything."""
        if self.active:
            self._sync_at(self.where(), what)
        else:
            self.flush()

    def flush(self) -> None:
        """Everything that was queued is done."""
        with self.lock:
            done, self.pending = self.pending, []
            for host, numbers, _ in done:
                host.copy_(numbers)
            sources, self._sources = self._sources, []
        for host, before, line in sources:
            if host.numpy().tobytes() != before.numpy().tobytes():
                self.raced[line] += 1

    def finish(self, copies: list) -> None:
        """These copies are done."""
        with self.lock:
            for item in copies:
                if any(item is other for other in self.pending):
                    self.pending = [other for other in self.pending if other is not item]
                    item[0].copy_(item[1])

    def _sync_at(self, line: str, what: str) -> None:
        with self.lock:
            self.syncs[line, what] += 1
            self.timeline.append((what, sum(self.kernels.values())))
        self.flush()

    # ------------------------------------------------------------------------------------------------ memory
    def start_memory(self, limit: int) -> None:
        """An empty device with a limit in bytes; what is kept from earlier, such as constants, does not count."""
        with self.lock:
            self._storages.clear()
            self.limit, self.bytes_now, self.bytes_peak = limit, 0, 0

    def wrap(self, elem: torch.Tensor) -> StrictTensor:
        """A host tensor as one of the device; its memory counts from now on.

        Raises:
            torch.OutOfMemoryError: above the limit.
            TypeError: the device does not have this type.
        """
        lacks.check_dtype(self.device, elem.dtype)
        key = elem.untyped_storage()._cdata
        with self.lock:
            if key not in self._storages:
                size = -(-elem.untyped_storage().nbytes() // 512) * 512
                if self.bytes_now + size > self.limit:
                    raise torch.OutOfMemoryError(
                        f"CUDA out of memory. Tried to allocate {size} bytes. {self.device} has {self.limit} bytes of "
                        f"which {self.bytes_now} are in use."
                    )
                self.bytes_now += size
                self.bytes_peak = max(self.bytes_peak, self.bytes_now)
                self._storages[key] = size
                weakref.finalize(elem.untyped_storage(), self._freed, key)
        return StrictTensor(elem)

    def _freed(self, key: int) -> None:
        with self.lock:
            self.bytes_now -= self._storages.pop(key, 0)

    # ------------------------------------------------------------------------------------------------ operators
    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Runs an operator on the values, as the device would."""
        name = name_of(func)
        if name not in WHOLE and func.has_kernel_for_dispatch_key(COMPOSITE):
            # In inference mode nothing has decomposed these yet.
            out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        flat, spec = tree_flatten((args, kwargs))
        in_backward = torch._C._current_autograd_node() is not None
        if in_backward and any(type(a) is torch.Tensor and a.dim() for a in flat):
            # Autograd makes zeros on the device that C++ believes in.
            flat = [self.wrap(a) if type(a) is torch.Tensor and a.dim() else a for a in flat]
            args, kwargs = tree_unflatten(flat, spec)
        ours = [a for a in flat if isinstance(a, StrictTensor)]
        host = [a for a in flat if isinstance(a, torch.Tensor) and not isinstance(a, StrictTensor)]
        if name in ("aten::copy_", "aten::_copy_from"):
            return self._copy(args, kwargs)
        if in_backward and kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": None}  # autograd asks for the device that C++ believes in
            flat, spec = tree_flatten((args, kwargs))
        if name == "aten::_to_copy" and kwargs.get("device") is not None and _type_of(kwargs["device"]) == "cpu":
            return self._to_host(args, kwargs)
        line = self.where() if self.active else ""
        if host:
            self._check_mixed(func, args, host, line)
        lacks.check_operator(self.device, func)
        if self.active:
            self._note(func, name, args, line)
        plain = [values(a) if isinstance(a, torch.Tensor) else a for a in flat]
        plain = [self.storage_device if isinstance(a, torch.device) else a for a in plain]
        plain_args, plain_kwargs = tree_unflatten(plain, spec)
        if plain_kwargs.get("pin_memory"):
            plain_kwargs["pin_memory"] = False
        if name.startswith("codetr::deform_attn") and not self.sizes_only:
            plain_args = tuple("cpu" if a in ("triton", "mmcv") else a for a in plain_args)
        if self.sizes_only:
            out = sizes.run(func, name, plain_args, plain_kwargs)
        else:
            out = self._with_own_rng(func, plain_args, plain_kwargs)
        for a in ours:
            if a.elem.shape != a.shape:  # results of eye, arange and the like start empty and grow
                aten.resize_.default.redispatch(CPU_KEYS, a, a.elem.shape)
        if kwargs.get("device") is not None and _type_of(kwargs["device"]) != self.device.type:
            return out
        writes = func._schema.is_mutable
        if torch.is_inference_mode_enabled() and getattr(func, "is_view", False) and not ours[0].is_inference():
            with torch.inference_mode(mode=False):  # a view of a normal tensor is one
                return self._wrapped(out, flat, plain, writes)
        return self._wrapped(out, flat, plain, writes)

    def _with_own_rng(self, func: Any, args: Any, kwargs: Any) -> Any:
        if self.rng is None or torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        with self.lock:
            outer = torch.default_generator.get_state()
            torch.default_generator.set_state(self.rng)
            try:
                return func(*args, **kwargs)
            finally:
                self.rng = torch.default_generator.get_state()
                torch.default_generator.set_state(outer)

    def _wrapped(self, out: Any, flat: list, plain: list, writes: bool) -> Any:
        leaves, spec = tree_flatten(out)
        wrapped = []
        for leaf in leaves:
            if isinstance(leaf, torch.Tensor) and not isinstance(leaf, StrictTensor):
                pairs = zip(flat, plain, strict=True)
                same = next((a for a, b in pairs if b is leaf and isinstance(a, StrictTensor)), None)
                wrapped.append(same if same is not None and writes else self.wrap(leaf))
            else:
                wrapped.append(leaf)
        return tree_unflatten(wrapped, spec)

    def _check_mixed(self, func: Any, args: Any, host: list, line: str) -> None:
        """Raises as the device's kernels do; indices may be on the host, and numbers of pointwise operators."""
        large = [a for a in host if a.dim() > 0]
        if name_of(func) in INDEXING and isinstance(args[0], StrictTensor):
            indices = [a for a in args[1] if a is not None]
            on_host = [index for index in indices if not isinstance(index, StrictTensor)]
            if on_host and self.active:
                self.syncs[line, "index from the host"] += len(on_host)
            large = [a for a in large if not any(a is index for index in indices)]
            if not large:
                return
        elif not large and takes_numbers(func):
            return
        what = [(tuple(a.shape), str(a.dtype)) for a in (large or host)]
        self.mixes[line or "outside", func.name()] += 1
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but {func.name()} got host tensors {what} beside "
            f"{self.device}"
        )

    def _note(self, func: Any, name: str, args: Any, line: str) -> None:
        if name in SYNCING and not (name == "aten::repeat_interleave" and len(args) > 1):
            self._sync_at(line, name.split("::")[1])
        if name in INDEXING:
            mask = any(a is not None and a.dtype in (torch.bool, torch.uint8) for a in args[1])
            number = len(args) > 2 and args[2].numel() == 1 and args[2].device.type == "cpu"
            if mask and not number:
                self._sync_at(line, "boolean index")
        if torch.are_deterministic_algorithms_enabled() and name in UNORDERED:
            self.unordered[line, name] += 1
        if name not in NO_KERNEL and not getattr(func, "is_view", False):
            self._launched(func.name(), line)

    def _launched(self, name: str, line: str) -> None:
        with self.lock:
            self.ops[line, name] += 1
            self.kernels[line] += KERNELS.get(name.split(".")[0], 1)

    # ------------------------------------------------------------------------------------------------ copies
    def _copy(self, args: Any, kwargs: dict[str, Any]) -> Any:
        target, source = args[0], args[1]
        eager = bool(args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        line = self.where() if self.active else ""
        if isinstance(target, StrictTensor) and isinstance(source, StrictTensor):
            target.elem.copy_(source.elem)
            if self.active:
                self._launched("aten::copy_", line)
        elif isinstance(target, StrictTensor):
            if not self.sizes_only:
                target.elem.copy_(source)
            if self.active:
                self._uploaded(source, eager, line)
        else:
            self._download(target, source.elem, eager, line)
        return target

    def _uploaded(self, source: torch.Tensor, eager: bool, line: str) -> None:
        self.uploads[line] += 1
        if eager and is_pinned(source):
            with self.lock:
                self._sources.append((source, source.clone(), line))
        elif eager:
            self.syncs[line, "upload from pageable memory, non_blocking (stages, may wait)"] += 1
        else:
            self._sync_at(line, "upload that blocks")

    def _to_host(self, args: Any, kwargs: dict[str, Any]) -> torch.Tensor:
        source, eager = args[0].elem, bool(kwargs.get("non_blocking"))
        line = self.where() if self.active else ""
        target = torch.empty_like(source, dtype=kwargs.get("dtype") or source.dtype, device="cpu")
        if eager:
            pin(target)
        self._download(target, source, eager, line)
        return target

    def _download(self, target: torch.Tensor, source: torch.Tensor, eager: bool, line: str) -> None:
        """Copies to the host; without a wait the host's values are invalid until somebody waits."""
        if self.sizes_only:
            target.zero_()
            return
        if eager and is_pinned(target):
            with self.lock:
                self.pending.append((target, source.detach().clone(), line))
            with torch.no_grad():
                if target.is_floating_point():
                    target.fill_(float("nan"))
                elif target.dtype != torch.bool:
                    target.fill_(torch.iinfo(target.dtype).max)
            return
        if self.active:
            self._sync_at(line, "download" + (" non_blocking to pageable memory (waits)" if eager else ""))
        else:
            self.flush()
        target.copy_(source)

    # ------------------------------------------------------------------------------------------------ report
    def report(self, top: int = 40) -> str:
        """Everything that was counted, most frequent first."""
        lines = []

        def table(title: str, counter: Counter, unit: str) -> None:
            lines.append(f"\n== {title}: {sum(counter.values())} {unit}")
            for key, number in counter.most_common(top):
                lines.append(f"{number:7d}  {'  '.join(map(str, key)) if isinstance(key, tuple) else key}")

        table("device mixes", self.mixes, "raised")
        table("host synchronizations", self.syncs, "waits")
        table("copies to the device", self.uploads, "copies")
        table("unordered CUDA kernels while deterministic", self.unordered, "calls")
        table("work and event on different devices", self.misplaced, "events")
        table("threads that spin", self.spins, "waits")
        table("page-locked sources that changed during the copy", self.raced, "races")
        table("kernels (estimated) by line", self.kernels, "kernels")
        operators: Counter = Counter()
        for (_, name), number in self.ops.items():
            operators[name] += number
        table("operators", operators, "operators")
        lines.append(f"\npeak of live device memory {self.bytes_peak / 2**20:.1f} MiB")
        return "\n".join(lines)


def _type_of(device: Any) -> str:
    return torch.device(device).type


def _relative(path: str) -> str:
    return path.removeprefix(PACKAGE)


def _forward_line(node: Any) -> str:
    for text in reversed(node.metadata.get("traceback_") or []):
        for line in reversed(text.splitlines()):
            parts = line.strip().split('"')
            if parts[0].startswith("File") and parts[1].startswith(PACKAGE):
                number = parts[2].split(",")[1].strip().removeprefix("line ")
                return f"backward of {_relative(parts[1])}:{number}"
    return f"backward {node.name()}"


GPU = Recorder()
"""The one emulated device of this process."""
