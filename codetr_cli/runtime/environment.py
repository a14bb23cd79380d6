"""Facts about this machine: what PyTorch can use here, and what is missing for it to be faster. Changes nothing."""

from __future__ import annotations

import importlib.util
import math
import os
import platform
import re
import shutil
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from codetr_cli import __version__
from codetr_cli.errors import CodetrError, ConfigError, ResourceError, nearest
from codetr_cli.ops.deform_attn import active_backend, available_backends

PACKAGES = (
    *("torch", "torchvision", "numpy", "scipy", "pillow", "opencv-python-headless", "typer", "rich", "pydantic"),
    *("pycocotools", "safetensors", "matplotlib", "triton", "mmcv"),
)
OPTIONAL_PACKAGES = frozenset(("triton", "mmcv"))

GIB = 1024**3
LITTLE_DISK = 5 * GIB
LITTLE_SHARED_MEMORY = GIB


@dataclass(frozen=True)
class Gpu:
    """One GPU that PyTorch can use.

    Args:
        name: as the driver calls it.
        memory_bytes: all of it.
        free_bytes: what no program holds now; None when the driver does not say.
        capability: compute capability, e.g. "9.0", or the architecture of an AMD GPU.
        bf16: whether it computes in bfloat16 natively.
    """

    name: str
    memory_bytes: int
    free_bytes: int | None
    capability: str
    bf16: bool


@dataclass(frozen=True)
class Disk:
    """Space where something is to be written, in bytes."""

    path: str
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Environment:
    """What this machine offers.

    Args:
        python: version.
        system: operating system and processor.
        torch: version of PyTorch.
        built_for: "CUDA 13.2", "ROCm 6.4" or "CPU".
        driver: what GPU driver the system shows, None for none.
        gpus: usable GPUs.
        no_gpu: why there is none, a sentence; None when there is one.
        transports: how processes can talk, name -> None (works) or why not.
        cpus: processors this process may use.
        memory_bytes: main memory this process may use; None when unknown.
        free_memory_bytes: of it, not in use; None when unknown.
        shared_memory_bytes: size of /dev/shm, through which loader processes hand over images; None without one.
        disks: free space of the given folders.
        attention: device type -> deformable-attention backends, fastest first: name -> None (runs) or why not.
        active_attention: device type -> backend that is used; None when the one that is asked for cannot run.
        attention_notes: device type -> one sentence: what is used, and why nothing faster is.
        packages: name -> version, None for absent.
        remarks: what should be mended or minded, sentences.
    """

    python: str
    system: str
    torch: str
    built_for: str
    driver: str | None
    gpus: list[Gpu]
    no_gpu: str | None
    transports: dict[str, str | None]
    cpus: int
    memory_bytes: int | None
    free_memory_bytes: int | None
    shared_memory_bytes: int | None
    disks: list[Disk]
    attention: dict[str, dict[str, str | None]]
    active_attention: dict[str, str | None]
    attention_notes: dict[str, str]
    packages: dict[str, str | None]
    remarks: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Plain values under the names of `--json`."""
        return asdict(self)


def describe(*folders: Path) -> Environment:
    """Looks at this machine.

    Args:
        folders: whose free disk space is of interest; need not exist.
    """
    gpus = list_gpus()
    free_memory, memory = _memory()
    kinds = ("cuda", "cpu") if gpus else ("cpu",)
    attention = {kind: available_backends(kind) for kind in kinds}
    active, warned = _active_attention(kinds)
    facts = Environment(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()}, {platform.machine()}",
        torch=torch.__version__,
        built_for=_built_for(),
        driver=_driver(),
        gpus=gpus,
        no_gpu=None if gpus else why_no_gpu(),
        transports=_transports(),
        cpus=cpu_count(),
        memory_bytes=memory,
        free_memory_bytes=free_memory,
        shared_memory_bytes=shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else None,
        disks=_disks(folders),
        attention=attention,
        active_attention=active,
        attention_notes={kind: attention_note(active[kind], attention[kind]) for kind in kinds},
        packages={name: _version(name) for name in PACKAGES},
    )
    facts.remarks.extend([*warned, *_remarks(facts)])
    return facts


def describe_place(device: torch.device) -> dict[str, Any]:
    """What a benchmark's numbers depend on beside the network: machine, versions, threads and the attention that runs.

    Neither the machine's name nor any path of it: results are published.
    """
    machine = describe()
    packages = ("torch", "torchvision", "numpy", "opencv-python-headless", "triton")
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
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


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name.

    Args:
        name: "auto" (the first GPU, else the CPU), "cpu", "cuda" or one GPU as "cuda:1".

    Raises:
        ConfigError: not such a name.
        ResourceError: a GPU was asked for that is not there; says what is.
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
        raise ResourceError(f"a GPU was asked for ({name}), but {why_no_gpu()} Or use --device cpu.")
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
    quota = _read("/sys/fs/cgroup/cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():
        count = min(count, max(1, math.ceil(int(quota[0]) / int(quota[1]))))
    return count


def cpu_name() -> str:
    """The processor's name as the system tells it."""
    named = (line.partition(":")[2].strip() for line in _read("/proc/cpuinfo").splitlines() if "model name" in line)
    return next(named, platform.processor() or platform.machine())


# ------------------------------------------------------------------------------------------------- deformable attention


def attention_note(active: str | None, backends: Mapping[str, str | None]) -> str:
    """One sentence: the backend in use, and for each faster one why it is not.

    Args:
        active: the backend in use; None when the one that is asked for cannot run.
        backends: fastest first, name -> None (runs) or why not.
    """
    if active is None:
        return "none: the one that is asked for cannot run here"
    names = list(backends)
    faster = names[: names.index(active)]
    why = [f"{name}: {(backends[name] or 'it runs, but is not chosen').rstrip('.')}" for name in faster]
    return f"{active} (not {'; not '.join(why)})" if why else active


def _active_attention(kinds: Iterable[str]) -> tuple[dict[str, str | None], list[str]]:
    """The backend of each device type, and what a person should know about the choice."""
    active: dict[str, str | None] = {}
    remarks: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for kind in kinds:
            try:
                active[kind] = active_backend(kind)
            except CodetrError as error:  # the environment asks for one that cannot run or does not exist
                active[kind] = None
                remarks.append(f"{str(error).rstrip('.')}.")
    remarks += [f"{str(warning.message).rstrip('.')}." for warning in caught]
    if _mmcv_without_operators():
        remarks.append(
            "mmcv is installed without its compiled operators (mmcv._ext), which pip does silently when it finds no "
            "wheel for this PyTorch: it makes nothing faster here, and nothing of it is needed."
        )
    return active, remarks


def _mmcv_without_operators() -> bool:
    """Whether there is an mmcv that lacks its extension module; looks at its files, imports nothing."""
    spec = importlib.util.find_spec("mmcv")
    places = (spec.submodule_search_locations or []) if spec else []
    return spec is not None and not any(list(Path(place).glob("_ext*")) for place in places)


# ----------------------------------------------------------------------------------------------------------------- GPUs


def _gpu_count() -> int:
    with warnings.catch_warnings():
        # A driver that is too old announces itself by a warning; `why_no_gpu` tells it in full.
        warnings.simplefilter("ignore")
        return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _gpu(index: int) -> Gpu:
    properties = torch.cuda.get_device_properties(index)
    try:
        free = torch.cuda.mem_get_info(index)[0]
    except RuntimeError:  # e.g. another program holds the GPU for itself
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
    driver, built_for = _driver(), _built_for()
    if built_for == "CPU":
        if driver:
            return (
                f"this PyTorch ({torch.__version__}) is built for the CPU only, although {driver} is here: install a "
                "build with GPU support (see pytorch.org/get-started)."
            )
        return f"this PyTorch ({torch.__version__}) is built for the CPU only and no GPU driver is visible here."
    if not driver:
        return (
            f"no GPU driver is visible here, although PyTorch is built for {built_for}: install the driver, or "
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
        return f"{driver} is here, but PyTorch (built for {built_for}) cannot use it: {reason}."
    return f"{driver} is here, but it shows PyTorch (built for {built_for}) no GPU: check nvidia-smi or rocm-smi."


def _built_for() -> str:
    if torch.version.hip:
        return f"ROCm {torch.version.hip}"
    return f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"


def _driver() -> str | None:
    """The GPU driver that the system shows, without asking PyTorch."""
    text = _read("/proc/driver/nvidia/version")
    found = re.search(r"(\d+\.\d+(?:\.\d+)?)", text)
    if found:
        return f"the NVIDIA driver {found[1]}"
    if Path("/dev/dxg").exists() or shutil.which("nvidia-smi"):  # WSL and Windows have no such file
        return "an NVIDIA driver"
    if Path("/dev/kfd").exists():
        version = _read("/sys/module/amdgpu/version").strip()
        return f"the AMD driver {version}".strip()
    return None


def _transports() -> dict[str, str | None]:
    """NCCL (or AMD's RCCL under that name) for GPUs, gloo for CPUs."""
    asks = torch.distributed  # noqa: TID251 (asks what was built in, talks to nobody)
    if not asks.is_available():
        return dict.fromkeys(("nccl", "gloo"), "this PyTorch is built without torch.distributed")
    missing = "this PyTorch is built without it"
    return {
        "nccl": None if asks.is_nccl_available() else missing,
        "gloo": None if asks.is_gloo_available() else missing,
    }


# --------------------------------------------------------------------------------------------------------- the machine


def _memory() -> tuple[int | None, int | None]:
    """Free and total main memory in bytes, the container's limit taken into account."""
    lines = dict(line.split(":", 1) for line in _read("/proc/meminfo").splitlines() if ":" in line)
    if "MemTotal" not in lines:
        return None, None
    total, free = (int(lines[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    used = _read("/sys/fs/cgroup/memory.current").strip()
    if limit.isdigit() and int(limit) < total:
        total = int(limit)
        free = min(free, total - int(used or 0))
    return max(free, 0), total


def _disks(folders: tuple[Path, ...]) -> list[Disk]:
    """One entry for each file system."""
    disks: dict[int, Disk] = {}
    for folder in folders:
        place = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
        usage = shutil.disk_usage(place)
        disks.setdefault(place.stat().st_dev, Disk(str(place), usage.free, usage.total))
    return list(disks.values())


def _version(package: str) -> str | None:
    names = [package]
    if package.startswith("opencv"):  # four packages bring the same module
        names += ["opencv-contrib-python-headless", "opencv-python", "opencv-contrib-python"]
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _remarks(facts: Environment) -> list[str]:
    remarks = []
    for disk in facts.disks:
        if disk.free_bytes < LITTLE_DISK:
            remarks.append(
                f"only {disk.free_bytes / GIB:.1f} GiB are free on the disk of {disk.path}: a run of co_dino_r50 keeps "
                "about 2 GiB of checkpoints."
            )
    if facts.shared_memory_bytes is not None and facts.shared_memory_bytes < LITTLE_SHARED_MEMORY:
        remarks.append(
            f"/dev/shm has {facts.shared_memory_bytes / GIB:.2f} GiB: loader processes may die of it. Start the "
            "container with --shm-size 8g, or train with --set data.workers=0."
        )
    for index, gpu in enumerate(facts.gpus):
        if gpu.free_bytes is not None and gpu.free_bytes < gpu.memory_bytes / 2:
            remarks.append(
                f"GPU {index} has {gpu.free_bytes / GIB:.1f} of {gpu.memory_bytes / GIB:.1f} GiB free: another program "
                "uses it."
            )
    if facts.gpus and facts.transports["nccl"]:
        remarks.append("without NCCL several GPUs cannot train together: install a PyTorch build that has it.")
    absent = [name for name, version in facts.packages.items() if version is None and name not in OPTIONAL_PACKAGES]
    if absent:
        remarks.append(f"packages missing: {', '.join(absent)}. Install codetr-cli again with pip.")
    return remarks


def _read(path: str) -> str:
    """A small system file's text, empty where it does not exist."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
