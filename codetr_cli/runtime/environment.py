"""The report on this machine: what PyTorch can use here, and what is missing for it to be faster."""

from __future__ import annotations

import platform
import shutil
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from codetr_cli import __version__
from codetr_cli.errors import CodetrError, counted
from codetr_cli.ops.deform_attn import active_backend, available_backends
from codetr_cli.runtime.devices import (
    INFERENCE_DEVICES,
    Gpu,
    cpu_count,
    cpu_name,
    gpu_driver,
    gpu_library,
    inference_devices,
    list_gpus,
    proc_bytes,
    read_text,
    why_no_gpu,
)
from codetr_cli.runtime.memory import GIB, main_memory_left

PACKAGES = (
    *("torch", "torchvision", "numpy", "scipy", "pillow", "opencv-python-headless", "typer", "rich", "pydantic"),
    *("pycocotools", "safetensors", "matplotlib", "triton", "mmcv"),
)
OPTIONAL_PACKAGES = frozenset(("triton", "mmcv"))
COMPILERS = ("cc", "gcc", "g++", "clang", "nvcc")  # torch.compile and Triton use them

LOW_DISK = 5 * GIB
LOW_SHARED_MEMORY = GIB


@dataclass(frozen=True)
class Disk:
    """Disk space of a folder, in bytes."""

    path: str
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class MachineReport:
    """What this machine offers.

    Attributes:
        python: version.
        system: operating system and processor architecture.
        torch: version of PyTorch.
        built_for: "CUDA 13.2", "ROCm 6.4" or "CPU".
        driver: the GPU driver of the system, None without one.
        gpus: usable GPUs.
        no_gpu: why there is none, a sentence; None when there is one.
        other_devices: "mps" and "xpu" where they are; they evaluate and predict, but do not train.
        transports: communication backends, name -> None (works) or why not.
        cpus: processors this process may use.
        threads: of PyTorch's operators.
        memory_bytes: main memory this process may use; None when unknown.
        free_memory_bytes: the part of it not in use; None when unknown.
        shared_memory_bytes: size of /dev/shm, through which loader workers send images; None without one.
        disks: free space of the given folders.
        attention: device type -> deformable-attention backends, fastest first: name -> None (runs) or why not.
        active_attention: device type -> backend in use; None when the requested one cannot run.
        attention_notes: device type -> one sentence: the backend in use, and why no faster one is.
        compilers: names of those in the search path.
        packages: name -> version, None when absent.
        remarks: what should be fixed or considered, sentences.
    """

    python: str
    system: str
    torch: str
    built_for: str
    driver: str | None
    gpus: list[Gpu]
    no_gpu: str | None
    other_devices: list[str]
    transports: dict[str, str | None]
    cpus: int
    threads: int
    memory_bytes: int | None
    free_memory_bytes: int | None
    shared_memory_bytes: int | None
    disks: list[Disk]
    attention: dict[str, dict[str, str | None]]
    active_attention: dict[str, str | None]
    attention_notes: dict[str, str]
    compilers: list[str]
    packages: dict[str, str | None]
    remarks: list[str] = field(default_factory=list)

    def rows(self) -> list[tuple[str, str]]:
        """Headings and values of a table; nothing in it names the user or a folder."""
        memory = f"{_gib(self.memory_bytes)}, {_gib(self.free_memory_bytes)} free"
        return [
            ("codetr", __version__),
            ("Python", f"{self.python} on {self.system}"),
            ("PyTorch", f"{self.torch}, built for {self.built_for}, {counted(self.threads, 'thread')}"),
            ("GPU driver", self.driver or "none visible"),
            *((f"GPU {index}", _gpu_text(gpu)) for index, gpu in enumerate(self.gpus)),
            *([("GPU", f"none: {self.no_gpu}")] if self.no_gpu else []),
            *(
                (
                    INFERENCE_DEVICES[name],
                    f"--device {name} evaluates and predicts; training needs a CUDA GPU or the CPU",
                )
                for name in self.other_devices
            ),
            ("communication", ", ".join(f"no {k} ({why})" if why else k for k, why in self.transports.items())),
            *((f"attention on {kind}", note) for kind, note in self.attention_notes.items()),
            ("processors", f"{self.cpus}, {cpu_name()}, {torch.backends.cpu.get_cpu_capability()}"),
            ("RAM", memory),
            *([("/dev/shm", _gib(self.shared_memory_bytes))] if self.shared_memory_bytes is not None else []),
            ("compilers", ", ".join(self.compilers) or "none"),
            ("packages", ", ".join(f"{name} {version}" for name, version in self.packages.items() if version)),
        ]

    def bug_report_text(self) -> str:
        """The report as a Markdown block for a bug report; it names neither the user nor the machine."""
        return "\n".join(["```", *(f"{name}: {value}" for name, value in self.rows()), "```"])


def machine_report(*folders: Path) -> MachineReport:
    """Examines this machine; changes nothing.

    Args:
        folders: whose free disk space is reported; they need not exist.
    """
    gpus = list_gpus()
    free_memory, memory = _memory()
    other = inference_devices()
    kinds = (*(["cuda"] if gpus else []), *other, "cpu")
    attention = {kind: available_backends(kind) for kind in kinds}
    active, warned = _active_attention(kinds)
    report = MachineReport(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()}, {platform.machine()}",
        torch=torch.__version__,
        built_for=gpu_library(),
        driver=gpu_driver(),
        gpus=gpus,
        no_gpu=None if gpus or other else why_no_gpu(),
        other_devices=other,
        transports=_transports(),
        cpus=cpu_count(),
        threads=torch.get_num_threads(),
        memory_bytes=memory,
        free_memory_bytes=free_memory,
        shared_memory_bytes=shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else None,
        disks=_disks(folders),
        attention=attention,
        active_attention=active,
        attention_notes={kind: attention_note(active[kind], attention[kind]) for kind in kinds},
        compilers=[name for name in COMPILERS if shutil.which(name)],
        packages={name: _version(name) for name in PACKAGES},
    )
    report.remarks.extend([*warned, *_remarks(report)])
    return report


def benchmark_conditions(device: torch.device) -> dict[str, Any]:
    """What the numbers of a benchmark depend on beside the network: machine, versions, threads, attention backend.

    Results are published, so it contains neither the host name nor a path.
    """
    machine = machine_report()
    packages = ("torch", "torchvision", "numpy", "opencv-python-headless", "triton")
    return {
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else INFERENCE_DEVICES.get(device.type, cpu_name()),
        "device_type": device.type,
        "threads": torch.get_num_threads(),
        "attention": machine.active_attention.get(device.type),
        "attention_backends": machine.attention.get(device.type, {}),
        "attention_note": machine.attention_notes.get(device.type, ""),
        "system": machine.system,
        "cpu": cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpus": machine.cpus,
        "memory_bytes": machine.memory_bytes,
        "gpus": [gpu.name for gpu in machine.gpus],
        "built_for": machine.built_for,
        "versions": {
            "codetr": __version__,
            "python": machine.python,
            **{name: machine.packages[name] for name in packages},
        },
    }


# ------------------------------------------------------------------------------------------------- deformable attention


def attention_note(active: str | None, backends: Mapping[str, str | None]) -> str:
    """One sentence: the backend in use, and why no faster one is.

    Args:
        active: the backend in use; None when the requested one cannot run.
        backends: fastest first, name -> None (runs) or why not.
    """
    if active is None:
        return "none: the requested backend cannot run here"
    names = list(backends)
    faster = names[: names.index(active)]
    why = [f"{name}: {(backends[name] or 'it runs, but is not chosen').rstrip('.')}" for name in faster]
    return f"{active} (not {'; not '.join(why)})" if why else active


def _active_attention(kinds: Iterable[str]) -> tuple[dict[str, str | None], list[str]]:
    """The backend of each device type, and remarks about the choice."""
    active: dict[str, str | None] = {}
    remarks: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for kind in kinds:
            try:
                active[kind] = active_backend(kind)
            except CodetrError as error:  # the requested one cannot run or does not exist
                active[kind] = None
                remarks.append(f"{str(error).rstrip('.')}.")
    remarks += [f"{str(warning.message).rstrip('.')}." for warning in caught]
    return active, remarks


def _transports() -> dict[str, str | None]:
    """NCCL (or AMD's RCCL under that name) for GPUs, gloo for CPUs."""
    built_in = torch.distributed  # noqa: TID251 (only queries what was built in)
    if not built_in.is_available():
        return dict.fromkeys(("nccl", "gloo"), "this PyTorch is built without torch.distributed")
    missing = "this PyTorch is built without it"
    return {
        "nccl": None if built_in.is_nccl_available() else missing,
        "gloo": None if built_in.is_gloo_available() else missing,
    }


def _memory() -> tuple[int | None, int | None]:
    """Free and total main memory in bytes, within the limit of a container."""
    total, limit = proc_bytes("/proc/meminfo", "MemTotal"), read_text("/sys/fs/cgroup/memory.max").strip()
    if total is not None and limit.isdigit():
        total = min(total, int(limit))
    return main_memory_left(), total


def _disks(folders: tuple[Path, ...]) -> list[Disk]:
    """One entry per file system."""
    disks: dict[int, Disk] = {}
    for folder in folders:
        place = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
        usage = shutil.disk_usage(place)
        disks.setdefault(place.stat().st_dev, Disk(str(place), usage.free, usage.total))
    return list(disks.values())


def _version(package: str) -> str | None:
    names = [package]
    if package.startswith("opencv"):  # four packages provide the same module
        names += ["opencv-contrib-python-headless", "opencv-python", "opencv-contrib-python"]
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _remarks(report: MachineReport) -> list[str]:
    remarks = []
    for disk in report.disks:
        if disk.free_bytes < LOW_DISK:
            remarks.append(
                f"only {_gib(disk.free_bytes)} are free on the disk of {disk.path}: a run of co_dino_r50 keeps about "
                "2 GiB of checkpoints."
            )
    if report.shared_memory_bytes is not None and report.shared_memory_bytes < LOW_SHARED_MEMORY:
        remarks.append(
            f"/dev/shm has {report.shared_memory_bytes / GIB:.2f} GiB: loader workers may run out of it. Start the "
            "container with --shm-size 8g, or train with --set data.workers=0."
        )
    for index, gpu in enumerate(report.gpus):
        if gpu.free_bytes is not None and gpu.free_bytes < gpu.memory_bytes / 2:
            remarks.append(
                f"GPU {index} has {gpu.free_bytes / GIB:.1f} of {gpu.memory_bytes / GIB:.1f} GiB free: another program "
                "uses it."
            )
        if gpu.capability.startswith("7.") and not gpu.bf16:
            remarks.append(
                f"GPU {index} has neither bf16 nor TF32: auto computes in fp32 there, and --precision fp16 uses its "
                "tensor cores."
            )
    if report.gpus and report.transports["nccl"]:
        remarks.append("without NCCL, training on several GPUs does not work: install a PyTorch build with NCCL.")
    absent = [name for name, version in report.packages.items() if version is None and name not in OPTIONAL_PACKAGES]
    if absent:
        remarks.append(f"packages missing: {', '.join(absent)}. Reinstall codetr-cli with pip.")
    return remarks


def _gib(count: int | None) -> str:
    return "unknown" if count is None else f"{count / GIB:.1f} GiB"


def _gpu_text(gpu: Gpu) -> str:
    memory = f"{_gib(gpu.memory_bytes)}, {_gib(gpu.free_bytes)} free"
    arithmetic = ", ".join(("" if there else "no ") + kind for kind, there in (("bf16", gpu.bf16), ("tf32", gpu.tf32)))
    return f"{gpu.name}, {memory}, {gpu.capability}, {arithmetic}"
