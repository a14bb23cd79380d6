from __future__ import annotations

from pathlib import Path

import pytest
import torch

from codetr_cli.errors import ConfigError, ResourceError
from codetr_cli.runtime.devices import choose_device, why_no_gpu
from tests.runtime.fake_machine import pretend_build, pretend_files, pretend_gpus


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
