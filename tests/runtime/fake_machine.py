"""System files, PyTorch builds and GPUs that the machine of a test does not have."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
import torch

from codetr_cli.runtime import devices, environment, memory

SYSTEM_FILES = {
    "/proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release\n",
    "/sys/fs/cgroup/cpu.max": "150000 100000\n",
    "/sys/fs/cgroup/memory.max": f"{8 * 1024**3}\n",
    "/sys/fs/cgroup/memory.current": f"{6 * 1024**3}\n",
    "/proc/meminfo": f"MemTotal: {64 * 1024**2} kB\nMemFree: 1 kB\nMemAvailable: {32 * 1024**2} kB\n",
}


def pretend_files(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Makes some system files visible and no others."""
    for module in (devices, environment, memory):
        monkeypatch.setattr(module, "read_text", lambda path: SYSTEM_FILES[path] if path in names else "")
    monkeypatch.setattr(shutil, "which", lambda name: None)


def pretend_build(monkeypatch: pytest.MonkeyPatch, cuda: str | None, hip: str | None = None) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", hip)


def pretend_gpus(
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    free_share: float = 0.9,
    *,
    name: str = "Test GPU",
    capability: tuple[int, int] = (9, 0),
) -> None:
    size = 80 * 1024**3
    properties = SimpleNamespace(name=name, total_memory=size, major=capability[0], minor=capability[1])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: name)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (int(size * free_share), size))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: capability >= (8, 0))
    monkeypatch.setattr(torch.cuda, "device", lambda index: torch.device("cpu"))
    backends = {"triton": "It needs triton.", "mmcv": "It is not installed.", "torch": None}
    monkeypatch.setattr(environment, "available_backends", lambda kind: backends)
    monkeypatch.setattr(environment, "active_backend", lambda kind: "torch")


def pretend_inference_device(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Makes Apple's ("mps") or Intel's ("xpu") GPU visible."""
    owner = {"mps": torch.backends.mps, "xpu": torch.xpu}[name]
    monkeypatch.setattr(owner, "is_available", lambda: True)
