from __future__ import annotations

import collections
import json
import os
import platform
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from codetr_cli.ops.deform_attn import available_backends
from codetr_cli.runtime import environment
from codetr_cli.runtime.devices import choose_device, cpu_count
from codetr_cli.runtime.environment import (
    attention_note,
    benchmark_conditions,
    machine_report,
)
from tests.runtime.fake_machine import SYSTEM_FILES, pretend_files, pretend_gpus, pretend_inference_device


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
    assert json.loads(json.dumps(asdict(report)))["cpus"] == report.cpus


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


def test_one_thread_is_no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    report = replace(machine_report(), threads=1)
    assert dict(report.rows())["PyTorch"].endswith(", 1 thread")


def test_the_place_of_a_benchmark_names_no_machine() -> None:
    place = benchmark_conditions(torch.device("cpu"))
    assert place["device_type"] == "cpu"
    assert place["device"] == place["cpu"] != ""
    assert place["threads"] == torch.get_num_threads()
    assert place["attention"] in place["attention_backends"]
    assert place["versions"]["torch"]
    assert (platform.node() or "no name") not in json.dumps(place)


def test_gpus_are_listed_with_memory_and_precisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, 2)
    report = machine_report(tmp_path)
    found = [(gpu.name, gpu.capability, gpu.bf16, gpu.tf32) for gpu in report.gpus]
    assert found == [("Test GPU", "9.0", True, True)] * 2
    assert dict(report.rows())["GPU 1"].endswith("9.0, bf16, tf32")
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
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(16), raising=False)
    assert cpu_count() == 2
    assert environment._memory() == (2 * 1024**3, 8 * 1024**3)
    pretend_files(monkeypatch, "/proc/meminfo")
    assert cpu_count() == 16
    assert environment._memory() == (32 * 1024**3, 64 * 1024**3)
    pretend_files(monkeypatch)
    assert environment._memory() == (None, None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_real_gpu(tmp_path: Path) -> None:
    report = machine_report(tmp_path)
    assert report.gpus[0].memory_bytes > report.gpus[0].free_bytes > 0  # type: ignore[operator]
    assert report.driver
    assert torch.zeros(1, device=choose_device("auto")).is_cuda


@pytest.mark.parametrize(("name", "title"), [("mps", "Apple GPU"), ("xpu", "Intel GPU")])
def test_devices_that_only_infer_say_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, title: str) -> None:
    pretend_inference_device(monkeypatch, name)
    report = machine_report(tmp_path)
    assert (report.other_devices, report.no_gpu) == ([name], None)
    rows = dict(report.rows())
    assert rows[title] == f"--device {name} evaluates and predicts; training needs a CUDA GPU or the CPU"
    assert report.active_attention[name] == "torch"
    assert rows[f"attention on {name}"].startswith("torch (not triton: ")


@pytest.mark.parametrize(("capability", "remarked"), [((7, 0), True), ((7, 5), True), ((6, 1), False), ((8, 0), False)])
def test_old_gpus_have_their_own_best_precision(monkeypatch: pytest.MonkeyPatch, capability, remarked) -> None:
    pretend_gpus(monkeypatch, 1, capability=capability)
    report = machine_report()
    assert ("--precision fp16 uses its tensor cores" in " ".join(report.remarks)) == remarked
    assert report.gpus[0].bf16 == report.gpus[0].tf32 == (capability >= (8, 0))
