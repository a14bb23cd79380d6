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


def choose_device(name: str = "auto") -> torch.device:
    """The device with a given name.

    Args:
        name: "auto" (the first GPU, else the CPU), "cpu", "cuda" or one GPU as "cuda:1".

    Raises:
        ConfigError: an unknown name.
        ResourceError: there is no such GPU; the message lists the GPUs.
    """
    match = re.fullmatch(r"(auto|cpu|cuda)|cuda:(\d+)", name)
    if not match:
        word = re.sub("gpu|hip|rocm", "cuda", name.lower())
        raise ConfigError(f"unknown device {name!r}: {nearest(word, ['auto', 'cpu', 'cuda', 'cuda:0', 'cuda:1'])}")
    if name == "cpu":
        return torch.device("cpu")
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
    """

    name: str
    memory_bytes: int
    free_bytes: int | None
    capability: str
    bf16: bool


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
    with torch.cuda.device(index):
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    architecture = getattr(properties, "gcnArchName", "") if torch.version.hip else ""
    return Gpu(
        name=properties.name,
        memory_bytes=properties.total_memory,
        free_bytes=free,
        capability=architecture or f"{properties.major}.{properties.minor}",
        bf16=bf16,
    )


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
    return f"{driver} is here, but PyTorch (built for {library}) finds no GPU: check nvidia-smi or rocm-smi."


def gpu_library() -> str:
    """The GPU library that PyTorch is built for, with its version, or "CPU"."""
    if torch.version.hip:
        return f"ROCm {torch.version.hip}"
    return f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"


def gpu_driver() -> str | None:
    """The GPU driver of the system, without asking PyTorch."""
    text = read_text("/proc/driver/nvidia/version")
    found = re.search(r"(\d+\.\d+(?:\.\d+)?)", text)
    if found:
        return f"the NVIDIA driver {found[1]}"
    if Path("/dev/dxg").exists() or shutil.which("nvidia-smi"):  # WSL and Windows have no such file
        return "an NVIDIA driver"
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
