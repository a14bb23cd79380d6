from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from codetr_cli.errors import ConfigError, ResourceError
from codetr_cli.runtime import devices
from codetr_cli.runtime.devices import ALLOCATOR_VARIABLES, choose_device, has_bf16, use_device, why_no_gpu
from tests.runtime.fake_machine import pretend_build, pretend_files, pretend_gpus, pretend_inference_device
from tests.strict_device import strict_device, why_not

needs_emulation = pytest.mark.skipif(why_not() is not None, reason=why_not() or "")


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


@needs_emulation
def test_each_gpu_of_a_machine_is_asked_about_itself() -> None:
    """The first GPU is older than the second one, whichever is current."""
    first, second = torch.device("cuda", 0), torch.device("cuda", 1)
    with strict_device(index=1):
        for current in (first, second):
            assert use_device(current) == current
            assert torch.cuda.current_device() == current.index
            assert has_bf16(second)
            assert not has_bf16(first)
            assert torch.cuda.current_device() == current.index
    assert not has_bf16(torch.device("cpu"))
    assert use_device(torch.device("cpu")) == torch.device("cpu")


@needs_emulation
@pytest.mark.parametrize(
    ("files", "cuda", "own", "expected"),
    [
        (["/proc/driver/nvidia/version"], "12.8", None, "expandable_segments:True"),
        (["/proc/driver/nvidia/version"], "12.8", "max_split_size_mb:64", "max_split_size_mb:64"),
        (["/proc/driver/nvidia/version"], None, None, None),  # ROCm
        ([], "10.2", None, None),  # another vendor's build that presents itself as CUDA
    ],
)
def test_segments_of_the_allocator_grow(
    monkeypatch: pytest.MonkeyPatch, files: list[str], cuda: str | None, own: str | None, expected: str | None
) -> None:
    pretend_files(monkeypatch, *files)
    pretend_build(monkeypatch, cuda)
    for name in ALLOCATOR_VARIABLES:
        monkeypatch.setenv(name, "")  # restored after the test
        monkeypatch.delenv(name)
    if own:
        monkeypatch.setenv("PYTORCH_ALLOC_CONF", own)
    with strict_device():
        use_device(torch.device("cuda", 0))
    assert next(filter(None, map(os.environ.get, ALLOCATOR_VARIABLES)), None) == expected


@pytest.mark.parametrize(("name", "words"), [("mps", "Apple GPU"), ("xpu", "Intel GPU")])
def test_devices_for_inference_are_chosen_where_they_are(
    monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    with pytest.raises(ResourceError, match=rf"finds no {words} for device {name}.*--device cpu"):
        choose_device(name)
    pretend_inference_device(monkeypatch, name)
    device = choose_device(name)
    assert device == torch.device(name)
    assert use_device(device) == device
    assert choose_device("auto").type == "cpu", "only on request"
    assert not devices.has_bf16(device)
    reason = devices.why_no_training(device)
    assert reason is not None
    assert reason.startswith(f"--device {name} evaluates and predicts, but does not train: ")
    assert [devices.why_no_training(torch.device(other)) for other in ("cpu", "cuda:1")] == [None, None]


def test_builds_of_vendors_are_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_files(monkeypatch)
    pretend_build(monkeypatch, "10.2")
    assert devices.gpu_library() == "CUDA 10.2"
    monkeypatch.setattr(torch, "__version__", "2.7.1+corex.4.4.0")
    assert devices.gpu_library() == "CUDA 10.2 as Iluvatar CoreX presents it"
    assert devices.gpu_driver() is None
    monkeypatch.setattr(devices.shutil, "which", lambda name: "/usr/bin/ixsmi" if name == "ixsmi" else None)
    assert devices.gpu_driver() == "the Iluvatar driver"
    pretend_build(monkeypatch, None, "6.4")
    assert devices.gpu_library() == "ROCm 6.4"
    pretend_build(monkeypatch, None)
    pretend_inference_device(monkeypatch, "mps")
    assert devices.gpu_library() == "the Apple GPU (mps)"
