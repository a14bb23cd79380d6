"""The processors of this machine: the choice of a device, GPUs, and why there are none."""

from __future__ import annotations

import math
import os
import platform
import re
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from codetr_cli.errors import ConfigError, ResourceError, nearest

INFERENCE_DEVICES = {"mps": "Apple GPU", "xpu": "Intel GPU"}
"""Devices beside CUDA and the CPU: for evaluation and prediction, with the deformable attention of plain PyTorch."""

TF32_CAPABILITY = (8, 0)
"""The first compute capability with TF32: Ampere. Volta and Turing (V100, T4) have fp32 and fp16 only."""

NVIDIA_DRIVER_FILE = "/proc/driver/nvidia/version"

ALLOCATOR_VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""Environment variables that configure PyTorch's memory allocator."""


def choose_device(name: str = "auto") -> torch.device:
    """The device with a given name.

    Args:
        name: "auto" (the first GPU, else the CPU), "cpu", "cuda", one GPU as "cuda:1", "mps" (Apple), "xpu" (Intel).
            AMD's GPUs, and those of vendors whose builds present themselves as CUDA, are "cuda".

    Raises:
        ConfigError: an unknown name.
        ResourceError: there is no such GPU; the message lists the GPUs.
    """
    match = re.fullmatch(r"(auto|cpu|cuda|mps|xpu)|cuda:(\d+)", name)
    if not match:
        word = re.sub("gpu|hip|rocm", "cuda", name.lower())
        known = ["auto", "cpu", "cuda", "cuda:0", "cuda:1", "mps", "xpu"]
        raise ConfigError(f"unknown device {name!r}: {nearest(word, known)}")
    if name == "cpu":
        return torch.device("cpu")
    if name in INFERENCE_DEVICES:
        if name not in inference_devices():
            raise ResourceError(
                f"this PyTorch ({torch.__version__}) finds no {INFERENCE_DEVICES[name]} for device {name}: install a "
                "build for it (see pytorch.org/get-started), or use --device cpu."
            )
        return torch.device(name)
    count = _gpu_count()
    if name == "auto":
        return torch.device("cuda", 0) if count else torch.device("cpu")
    if not count:
        raise ResourceError(f"no GPU for device {name}: {why_no_gpu()} Or use --device cpu.")
    index = int(match[2] or 0)
    if index >= count:
        names = ", ".join(f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(count))
        raise ResourceError(f"there is no {name}: this machine has {names}.")
    return torch.device("cuda", index)


def inference_devices() -> list[str]:
    """Names of the devices of this machine that evaluate and predict, but do not train."""
    available = {"mps": torch.backends.mps.is_available(), "xpu": torch.xpu.is_available()}
    return [name for name, here in available.items() if here]


def why_no_training(device: torch.device) -> str | None:
    """What training lacks on a device, one sentence; None where it trains."""
    if device.type not in INFERENCE_DEVICES:
        return None
    return (
        f"--device {device.type} evaluates and predicts, but does not train: the memory check and the random state of "
        "checkpoints are implemented for CUDA GPUs and CPUs only. Use --device cpu, or a machine with such a GPU."
    )


def use_device(device: torch.device) -> torch.device:
    """Makes a GPU the current one of this thread; to be called when a device was chosen, before anything is put there.

    What a program does without naming a device then concerns this one. On NVIDIA's GPUs the memory allocator gets
    segments that grow, unless the environment configures it: freed memory of batches of other sizes stays usable.

    Returns:
        the device.
    """
    if device.type == "cuda":
        configured = any(os.environ.get(name) for name in ALLOCATOR_VARIABLES)
        # Builds of other vendors present themselves as CUDA, but may lack this.
        if not configured and torch.version.cuda and read_text(NVIDIA_DRIVER_FILE):
            os.environ["PYTORCH_CUDA_ALLOC_CONF"] = (
                "expandable_segments:True"  # PyTorch reads it when it starts the GPU
            )
        torch.cuda.set_device(device)
    return device


def has_bf16(device: torch.device) -> bool:
    """Whether a GPU has bfloat16 arithmetic in hardware; False for any other device."""
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):  # the question is about the current one
        return torch.cuda.is_bf16_supported(including_emulation=False)


def list_gpus() -> list[Gpu]:
    """Every GPU that PyTorch can use, in the order of their indices."""
    return [_gpu(index) for index in range(_gpu_count())]


def cpu_count() -> int:
    """Processors this process may use: by affinity and by the container's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = read_text("/sys/fs/cgroup/cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():
        count = min(count, max(1, math.ceil(int(quota[0]) / int(quota[1]))))
    return count


def cpu_name() -> str:
    """The name of the processor."""
    named = (line.partition(":")[2].strip() for line in read_text("/proc/cpuinfo").splitlines() if "model name" in line)
    return next(named, platform.processor() or platform.machine())


@dataclass(frozen=True)
class Gpu:
    """One GPU that PyTorch can use.

    Attributes:
        name: of the driver.
        memory_bytes: total memory.
        free_bytes: memory that no program uses now; None when the driver does not report it.
        capability: compute capability, e.g. "9.0", or the architecture of an AMD GPU.
        bf16: whether it has bfloat16 arithmetic in hardware.
        tf32: whether it has TF32, matrix products of float32 values rounded to 10 bits.
    """

    name: str
    memory_bytes: int
    free_bytes: int | None
    capability: str
    bf16: bool
    tf32: bool


def _gpu_count() -> int:
    with warnings.catch_warnings():
        # A driver that is too old causes a warning; `why_no_gpu` reports it in full.
        warnings.simplefilter("ignore")
        return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _gpu(index: int) -> Gpu:
    properties = torch.cuda.get_device_properties(index)
    try:
        free = torch.cuda.mem_get_info(index)[0]
    except RuntimeError:  # e.g. another program has exclusive use of the GPU
        free = None
    architecture = getattr(properties, "gcnArchName", "") if torch.version.hip else ""
    return Gpu(
        name=properties.name,
        memory_bytes=properties.total_memory,
        free_bytes=free,
        capability=architecture or f"{properties.major}.{properties.minor}",
        bf16=has_bf16(torch.device("cuda", index)),
        tf32=why_no_tf32(torch.device("cuda", index)) is None,
    )


def why_no_tf32(device: torch.device) -> str | None:
    """Why a device computes in float32 where TF32 is asked for, without a full stop; None where it has TF32."""
    if device.type != "cuda":
        return f"the device is {device}"
    if torch.version.hip:
        return "this PyTorch is built for AMD GPUs"
    properties = torch.cuda.get_device_properties(device)
    capability = properties.major, properties.minor
    if capability >= TF32_CAPABILITY:
        return None
    return f"{properties.name} has compute capability {capability[0]}.{capability[1]}, and TF32 came with 8.0"


def why_no_gpu() -> str:
    """Why PyTorch sees no GPU here and what to do about it, one sentence."""
    driver, library = gpu_driver(), gpu_library()
    if library == "CPU":
        if driver:
            return (
                f"this PyTorch ({torch.__version__}) is built for the CPU only, although {driver} is here: install a "
                "build with GPU support (see pytorch.org/get-started)."
            )
        return f"this PyTorch ({torch.__version__}) is built for the CPU only and no GPU driver is visible here."
    if not driver:
        return (
            f"no GPU driver is visible here, although PyTorch is built for {library}: install the driver, or "
            "start the container with access to the GPUs (docker run --gpus all)."
        )
    for variable in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        if variable in os.environ and os.environ[variable] in ("", "-1", "NoDevFiles"):
            return f"the environment hides every GPU ({variable}={os.environ[variable]!r}): unset {variable}."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.cuda.current_device()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        return f"{driver} is here, but PyTorch (built for {library}) cannot use it: {reason}."
    return f"{driver} is here, but PyTorch (built for {library}) finds no GPU: check nvidia-smi, rocm-smi or ixsmi."


def gpu_library() -> str:
    """The GPU library that PyTorch is built for, with its version and vendor, or "CPU"."""
    if torch.version.hip:
        return f"ROCm {torch.version.hip}"
    if torch.version.cuda:
        vendor = vendor_build()
        return f"CUDA {torch.version.cuda}" + (f" as {vendor} presents it" if vendor else "")
    other = inference_devices()
    return f"the {INFERENCE_DEVICES[other[0]]} ({other[0]})" if other else "CPU"


def vendor_build() -> str | None:
    """The vendor whose GPUs present themselves as CUDA in this build of PyTorch; None for NVIDIA's."""
    return "Iluvatar CoreX" if "+corex" in torch.__version__ else None


def gpu_driver() -> str | None:
    """The GPU driver of the system, without asking PyTorch."""
    text = read_text(NVIDIA_DRIVER_FILE)
    found = re.search(r"(\d+\.\d+(?:\.\d+)?)", text)
    if found:
        return f"the NVIDIA driver {found[1]}"
    if Path("/dev/dxg").exists() or shutil.which("nvidia-smi"):  # WSL and Windows have no such file
        return "an NVIDIA driver"
    if shutil.which("ixsmi"):
        return "the Iluvatar driver"
    if Path("/dev/kfd").exists():
        version = read_text("/sys/module/amdgpu/version").strip()
        return f"the AMD driver {version}".strip()
    return None


def proc_bytes(path: str, field: str) -> int | None:
    """A size in a file of /proc, such as MemTotal in meminfo, in bytes; None where it is not there."""
    found = re.search(rf"^{field}:\s*(\d+)", read_text(path), re.MULTILINE)
    return None if found is None else int(found[1]) * 1024


def read_text(path: str) -> str:
    """The text of a system file, empty where it does not exist."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
