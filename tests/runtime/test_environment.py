from __future__ import annotations

import collections
import json
import platform
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from codetr_cli.errors import ConfigError, ResourceError
from codetr_cli.ops.deform_attn import available_backends
from codetr_cli.runtime import environment
from codetr_cli.runtime.environment import (
    attention_note,
    benchmark_conditions,
    choose_device,
    cpu_count,
    machine_report,
    why_no_gpu,
)

SYSTEM_FILES = {
    "/proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release\n",
    "/sys/fs/cgroup/cpu.max": "150000 100000\n",
    "/sys/fs/cgroup/memory.max": f"{8 * 1024**3}\n",
    "/sys/fs/cgroup/memory.current": f"{6 * 1024**3}\n",
    "/proc/meminfo": f"MemTotal: {64 * 1024**2} kB\nMemFree: 1 kB\nMemAvailable: {32 * 1024**2} kB\n",
}


def pretend_files(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Lets the module see some system files and no others."""
    monkeypatch.setattr(environment, "_read", lambda path: SYSTEM_FILES[path] if path in names else "")
    monkeypatch.setattr(environment.shutil, "which", lambda name: None)


def pretend_build(monkeypatch: pytest.MonkeyPatch, cuda: str | None, hip: str | None = None) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", hip)


def pretend_gpus(monkeypatch: pytest.MonkeyPatch, count: int, free_share: float = 0.9) -> None:
    size = 80 * 1024**3
    properties = SimpleNamespace(name="Test GPU", total_memory=size, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Test GPU")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (int(size * free_share), size))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.cuda, "device", lambda index: torch.device("cpu"))
    backends = {"triton": "It needs triton.", "mmcv": "It is not installed.", "torch": None}
    monkeypatch.setattr(environment, "available_backends", lambda kind: backends)
    monkeypatch.setattr(environment, "active_backend", lambda kind: "torch")


def test_the_report_is_complete_and_plain(tmp_path: Path) -> None:
    report = machine_report(tmp_path, tmp_path / "not" / "there")
    assert report.torch == torch.__version__
    assert report.cpus >= 1
    assert report.attention["cpu"][report.active_attention["cpu"]] is None
    assert report.attention_notes["cpu"].startswith(report.active_attention["cpu"])
    assert set(report.transports) == {"nccl", "gloo"}
    assert report.packages["torch"]
    assert len(report.disks) == 1
    assert report.disks[0].free_bytes > 0
    assert bool(report.gpus) == (report.no_gpu is None)
    assert json.loads(json.dumps(report.as_dict()))["cpus"] == report.cpus


def test_a_bug_report_names_neither_user_nor_machine(tmp_path: Path) -> None:
    text = machine_report(tmp_path).bug_report_text()
    for name in ("codetr: ", "PyTorch: ", "attention on cpu: ", "processors: ", "RAM: ", "compilers: ", "packages: "):
        assert f"\n{name}" in text
    for private in (str(tmp_path), str(Path.home()), platform.node() or "no name"):
        assert private not in text


def test_every_faster_backend_says_why_it_is_not_used() -> None:
    backends = {"triton": "No GPU is here.", "cpu": None, "mmcv": "It is not installed.", "torch": None}
    assert attention_note("cpu", backends) == "cpu (not triton: No GPU is here)"
    assert attention_note("torch", backends) == (
        "torch (not triton: No GPU is here; not cpu: it runs, but is not chosen; not mmcv: It is not installed)"
    )
    assert attention_note("cpu", {"cpu": None, "torch": None}) == "cpu"
    assert "none" in attention_note(None, backends)


def test_a_backend_that_is_asked_for_and_cannot_run_is_a_remark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODETR_DEFORM_ATTN", "triton")
    reason = available_backends("cpu")["triton"]
    if reason is None:
        pytest.skip("Triton runs on this CPU")
    report = machine_report()
    assert report.active_attention["cpu"] is None
    assert "CODETR_DEFORM_ATTN" in " ".join(report.remarks)
    assert reason in " ".join(report.remarks)


def test_a_backend_that_fails_its_check_is_a_remark(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(kind: str) -> str:
        warnings.warn("its output differs", RuntimeWarning, stacklevel=2)
        return "torch"

    monkeypatch.setattr(environment, "active_backend", check)
    assert "its output differs." in machine_report().remarks


def test_mmcv_without_compiled_operators_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "mmcv"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert "mmcv is installed without its compiled operators" in " ".join(machine_report(tmp_path).remarks)
    (package / "_ext.cpython-311-x86_64-linux-gnu.so").write_text("")
    assert "mmcv" not in " ".join(machine_report(tmp_path).remarks)


def test_the_place_of_a_benchmark_names_no_machine() -> None:
    place = benchmark_conditions(torch.device("cpu"))
    assert place["device_type"] == "cpu"
    assert place["device"] == place["cpu"] != ""
    assert place["threads"] == torch.get_num_threads()
    assert place["attention"] in place["attention_backends"]
    assert place["versions"]["torch"]
    assert (platform.node() or "no name") not in json.dumps(place)


def test_gpus_are_listed_with_memory_and_bf16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, 2)
    report = machine_report(tmp_path)
    assert [(gpu.name, gpu.capability, gpu.bf16) for gpu in report.gpus] == [("Test GPU", "9.0", True)] * 2
    assert report.gpus[0].free_bytes == int(80 * 1024**3 * 0.9)
    assert report.no_gpu is None
    assert "cuda" in report.active_attention


def test_remarks_name_what_should_be_minded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda path: usage(64 * 1024**2, 0, 1024**3))
    monkeypatch.setattr(environment, "_version", lambda name: None)
    pretend_gpus(monkeypatch, 1, free_share=0.25)
    remarks = " ".join(machine_report(tmp_path).remarks)
    assert "only 1.0 GiB are free on the disk of" in remarks
    if Path("/dev/shm").is_dir():
        assert "/dev/shm has 0.06 GiB" in remarks
        assert "--shm-size" in remarks
    assert "GPU 0 has 20.0 of 80.0 GiB free: another program uses it" in remarks
    assert "packages missing: torch, torchvision" in remarks
    assert "mmcv" not in remarks


def test_containers_limit_processors_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_files(monkeypatch, *SYSTEM_FILES)
    monkeypatch.setattr(environment.os, "sched_getaffinity", lambda process: range(16), raising=False)
    assert cpu_count() == 2
    assert environment._memory() == (2 * 1024**3, 8 * 1024**3)
    pretend_files(monkeypatch, "/proc/meminfo")
    assert cpu_count() == 16
    assert environment._memory() == (32 * 1024**3, 64 * 1024**3)
    pretend_files(monkeypatch)
    assert environment._memory() == (None, None)


@pytest.mark.parametrize(
    ("cuda", "files", "words"),
    [
        (None, [], "built for the CPU only and no GPU driver is visible"),
        (
            None,
            ["/proc/driver/nvidia/version"],
            "although the NVIDIA driver 570.86.15 is here: install a build with GPU",
        ),
        ("12.8", [], "no GPU driver is visible here, although PyTorch is built for CUDA 12.8: install the driver"),
    ],
)
def test_why_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch, cuda: str | None, files: list[str], words: str) -> None:
    if Path("/dev/dxg").exists() or Path("/dev/kfd").exists():
        pytest.skip("this machine shows a driver by a device file")
    pretend_files(monkeypatch, *files)
    pretend_build(monkeypatch, cuda)
    assert words in why_no_gpu()


def test_hidden_gpus_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_files(monkeypatch, "/proc/driver/nvidia/version")
    pretend_build(monkeypatch, "12.8")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "unset CUDA_VISIBLE_DEVICES" in why_no_gpu()


def test_a_driver_that_pytorch_refuses_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nMore lines")

    pretend_files(monkeypatch, "/proc/driver/nvidia/version")
    pretend_build(monkeypatch, "12.8")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "current_device", refuse)
    assert why_no_gpu().endswith("cannot use it: The NVIDIA driver on your system is too old (found version 11040).")


def test_devices_by_name_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, 0)
    assert choose_device() == choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    for name in ("cuda", "cuda:0", "cuda:3"):
        with pytest.raises(ResourceError, match=r"no GPU for device .* Or use --device cpu"):
            choose_device(name)


def test_devices_by_name_with_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, 2)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda", 0)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ResourceError, match=r"there is no cuda:2: this machine has cuda:0 \(Test GPU\), cuda:1"):
        choose_device("cuda:2")


@pytest.mark.parametrize(("name", "meant"), [("gpu", "cuda"), ("cudaa", "cuda"), ("cpuu", "cpu"), ("gpu:1", "cuda:1")])
def test_mistyped_devices_get_the_nearest_name(name: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown device '{name}': did you mean '{meant}'"):
        choose_device(name)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_real_gpu(tmp_path: Path) -> None:
    report = machine_report(tmp_path)
    assert report.gpus[0].memory_bytes > report.gpus[0].free_bytes > 0  # type: ignore[operator]
    assert report.driver
    assert torch.zeros(1, device=choose_device("auto")).is_cuda
