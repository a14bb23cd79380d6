"""An emulated GPU: tensors on `cuda:0` whose values are in host memory, and that are strict about it.

    with strict_device() as gpu:
        model = build().to("cuda")
        ...
    print(gpu.report())

It is strict about what a CPU hides, and names the line of the package each time:

* mixing: an operator that gets tensors of the device and of the host raises, as PyTorch's CUDA kernels do (a host
  tensor without dimensions is a number for pointwise operators; indices may be on the host);
* waits: what makes the host wait for the device (`item`, `nonzero`, boolean indices, copies that are not
  asynchronous, `torch.cuda.synchronize`, ...) is counted;
* asynchronous copies: a copy to page-locked host memory holds NaN until somebody waits for it, and a page-locked source
  that changes before its copy is over is reported; so is an event on another device than the work;
* precision: autocast has the rules of CUDA;
* determinism: operators whose CUDA kernels add in no fixed order, while deterministic algorithms are asked for;
* launches: an estimate of kernels; and the peak of live device memory, with an out-of-memory error at a limit.

`strict_device("mps")` and `strict_device("xpu")` are Apple's and Intel's GPU, for what the package does there: evaluate
and predict. They are as strict about mixing, and Apple's about the types and operators that it lacks; autocast has the
rules of CUDA there, too.

It works in every thread (autograd's, a pool's): factories are registered with the dispatcher under the key of the
device, and everything else is a tensor subclass. It does not emulate the dtypes that a CUDA kernel lacks, real
concurrency, several processes or `torch.compile`.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.cuda.amp.common as amp_common
import torch.optim.optimizer as optimizers
import torch.utils._foreach_utils as foreach
from torch.utils._device import _device_constructors

from tests.strict import autocast, cuda, others
from tests.strict.recorder import GPU, Recorder, StrictTensor, values

__all__ = ["Recorder", "StrictTensor", "strict_device", "values", "why_not"]

_plain_group = getattr(torch._C, "_group_tensors_by_device_and_dtype", None)
_libraries: dict[str, Any] = {}


def why_not() -> str | None:
    """Why there is no emulation here: a real GPU, or a PyTorch without the private functions that it needs."""
    if not _libraries and torch.cuda.is_available():
        return "there is a real GPU"
    needed = {
        torch._C: (
            "_only_lift_cpu_tensors", "_set_only_lift_cpu_tensors", "_ensureCUDADeviceGuardSet",
            "_current_autograd_node", "_group_tensors_by_device_and_dtype", "_ExcludeDispatchKeyGuard",
        ),
        torch._C._nn: ("_parse_to",),
        torch: ("accelerator",),
        optimizers: ("_foreach_supported_types",),
    }  # fmt: skip
    missing = [name for owner, names in needed.items() for name in names if not hasattr(owner, name)]
    return f"PyTorch {torch.__version__} has no {', '.join(missing)}" if missing else None


@contextlib.contextmanager
def strict_device(
    kind: str = "cuda",
    *,
    total_memory: int = 80 * 2**30,
    capability: tuple[int, int] = (9, 0),
    own_rng: bool = False,
    triton: bool = True,
    index: int = 0,
    sizes_only: bool = False,
) -> Iterator[Recorder]:
    """Emulates a machine with GPUs while the context lasts; one of them can be used.

    Args:
        kind: its type, "cuda", "mps" or "xpu". The last two ignore `capability` and `triton`, and have the index 0.
        total_memory: of the GPU, bytes.
        capability: of the GPU.
        own_rng: the device has random numbers of its own, as a GPU; else it shares the host's, so that a run can be
            compared with one on the CPU.
        triton: the package's Triton kernels run, as its compiled ones for CPUs.
        index: of the GPU that can be used. The current device of `torch.cuda` is 0 until the program says otherwise,
            and the GPUs before this one are older and smaller.
        sizes_only: see `Recorder`; memory and kernels only.
    """
    _device_constructors()  # torch keeps the set that it makes first: it must not be of the emulation's factories
    GPU.device, cuda.current.index = torch.device(kind, index), 0
    _register(kind)
    GPU.clear()
    GPU.start_memory(total_memory)
    GPU.sizes_only = sizes_only
    GPU.rng = torch.Generator().manual_seed(1).get_state() if own_rng else None
    with contextlib.ExitStack() as stack:
        stack.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)
        # Module.to must exchange parameters, not the data of what only wraps the values. Identity is kept.
        stack.callback(
            torch.__future__.set_swap_module_params_on_conversion,
            torch.__future__.get_swap_module_params_on_conversion(),
        )
        torch.__future__.set_swap_module_params_on_conversion(True)
        stack.callback(setattr, GPU, "device", torch.device("cuda", 0))
        clear = torch.clear_autocast_cache
        both = {"clear_autocast_cache": lambda: (autocast.clear_cast_weights(), clear())[1]}
        patches = _patches(total_memory, capability) if kind == "cuda" else others.patches(kind)
        for owner, replacements in [(torch, both), *patches]:
            stack.enter_context(cuda.patched(owner, replacements))
        if triton and kind == "cuda":
            for owner, replacements in _triton_patches():
                stack.enter_context(cuda.patched(owner, replacements))
        GPU.active = True
        stack.callback(setattr, GPU, "active", False)
        yield GPU


def _patches(total_memory: int, capability: tuple[int, int]) -> Iterator[tuple[Any, dict[str, Any]]]:
    yield torch.cuda, cuda.cuda_functions(total_memory, capability)
    yield torch.accelerator, cuda.accelerator_functions()
    yield torch.Tensor, cuda.tensor_methods()
    yield torch, cuda.factories()
    for module in (amp_common, torch.amp.grad_scaler):
        if hasattr(module, "amp_definitely_not_available"):
            yield module, {"amp_definitely_not_available": lambda: False}
    yield torch._C, {"_group_tensors_by_device_and_dtype": _group}


def _triton_patches() -> Iterator[tuple[Any, dict[str, Any]]]:
    from codetr_cli.ops import deform_attn as seam
    from codetr_cli.ops import deform_attn_backends as backends

    def choose(wanted: str, device: torch.device | str) -> str:
        return "triton" if torch.device(device).type == "cuda" else "cpu" if wanted == "auto" else wanted

    yield backends, {"proven": lambda name, device: True, "choose_backend": choose}
    yield seam, {"choose_backend": choose}


def _group(tensors: Any, with_indices: bool = False) -> Any:
    """Multi-tensor functions ask C++ for the device of a list."""
    ours = any(isinstance(tensor, StrictTensor) for tensor in tensors[0])
    groups = _plain_group(tensors, with_indices)
    return {(GPU.device if ours else device, dtype): value for (device, dtype), value in groups.items()}


def _register(kind: str) -> None:
    """Registers `torch.empty(device=kind)` and all that is made of it, in every thread and for good."""
    if kind in _libraries:
        return
    if not _libraries:
        for module in (optimizers, foreach):
            module._foreach_supported_types.append(StrictTensor)
        torch._C._ensureCUDADeviceGuardSet()  # autograd asks it how many devices there are
    library = _libraries[kind] = torch.library.Library("aten", "IMPL")

    def empty(size, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
        layout = memory_format or torch.contiguous_format
        return GPU.wrap(torch.empty(size, dtype=dtype, memory_format=layout, device=GPU.storage_device))

    def empty_strided(size, stride, dtype=None, layout=None, device=None, pin_memory=None):
        return GPU.wrap(torch.empty_strided(size, stride, dtype=dtype, device=GPU.storage_device))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library.impl("empty.memory_format", empty, kind.upper())
        library.impl("empty_strided", empty_strided, kind.upper())
        autocast.register_autocast(library, kind)
