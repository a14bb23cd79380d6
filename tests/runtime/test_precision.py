"""Number types per device."""

from __future__ import annotations

import pytest
import torch

from codetr_cli.errors import ConfigError
from codetr_cli.runtime import precision
from codetr_cli.runtime.devices import why_no_tf32
from codetr_cli.runtime.precision import autocast_dtype, float32_arithmetic, resolve_precision
from tests.runtime.fake_machine import pretend_gpus

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)


def test_precision_on_a_cpu():
    assert autocast_dtype("auto", CPU) is None
    assert autocast_dtype("fp32", CPU) is None
    assert autocast_dtype("bf16", CPU) is torch.bfloat16
    with pytest.raises(ConfigError, match="fp16 needs a CUDA GPU"):
        autocast_dtype("fp16", CPU)
    with pytest.raises(ConfigError, match=r"tf32 needs an NVIDIA GPU with TF32: the device is cpu\. Use fp32"):
        autocast_dtype("tf32", CPU)


@pytest.mark.parametrize(
    ("name", "capability", "has_tf32"),
    [("Tesla V100", (7, 0), False), ("Tesla T4", (7, 5), False), ("A10", (8, 6), True)],
)
def test_tf32_on_gpus(monkeypatch, name, capability, has_tf32):
    pretend_gpus(monkeypatch, 1, name=name, capability=capability)
    assert autocast_dtype("fp32", CUDA) is None
    assert autocast_dtype("fp16", CUDA) is torch.float16
    if has_tf32:
        assert autocast_dtype("tf32", CUDA) is None
        return
    with pytest.raises(ConfigError, match=rf"{name} has compute capability 7\.\d, and TF32 came with 8\.0\. Use fp32"):
        autocast_dtype("tf32", CUDA)


def test_tf32_on_amd_gpus(monkeypatch):
    pretend_gpus(monkeypatch, 1)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    with pytest.raises(ConfigError, match="built for AMD GPUs"):
        autocast_dtype("tf32", CUDA)


def test_automatic_inference_is_fp32_on_every_device(monkeypatch):
    pretend_gpus(monkeypatch, 1)
    assert resolve_precision("auto") == "fp32"
    assert resolve_precision("tf32") == "tf32"
    assert precision.resolve_training_precision("auto", CUDA) == "bf16"


def switches() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.fixture
def switched():
    """Sets the switches and restores PyTorch's defaults."""

    def switch(matmul: bool, convolutions: bool) -> None:
        torch.backends.cuda.matmul.allow_tf32 = matmul
        torch.backends.cudnn.allow_tf32 = convolutions

    yield switch
    switch(False, True)


@pytest.mark.parametrize("before", [(False, True), (True, True), (False, False)])
def test_tf32_is_set_while_the_work_lasts(switched, before):
    """PyTorch's default is the first: its convolutions are not float32."""
    switched(*before)
    with float32_arithmetic("fp32", CUDA):
        assert switches() == (False, False)
        with float32_arithmetic("tf32", CUDA):
            assert switches() == (True, True)
            with torch.backends.cudnn.flags(enabled=False):  # reads the switches in its own way
                pass
        assert switches() == (False, False)
    assert switches() == before
    for name, device in (("bf16", CUDA), ("fp16", CUDA), ("fp32", CPU)):
        with float32_arithmetic(name, device):
            assert switches() == before


def test_tf32_is_restored_after_an_error(switched):
    switched(True, True)
    with pytest.raises(ValueError, match="inside"), float32_arithmetic("fp32", CUDA):
        raise ValueError("inside")
    assert switches() == (True, True)


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="this PyTorch has allow_tf32 only")
def test_tf32_that_was_set_by_the_newer_switches(switched):
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    with float32_arithmetic("fp32", CUDA):
        assert switches() == (False, False)
    assert switches() == (True, False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_the_arithmetic_of_a_gpu():
    """Products of values with more than 10 bits are exact in float32 and rounded in TF32."""
    x = torch.full((256, 256), 1 + 2**-12, device=CUDA)
    images, weight = x[None, None], torch.full((1, 1, 3, 3), 1 + 2**-12, device=CUDA)
    found = {}
    for name in ("fp32", "tf32") if why_no_tf32(CUDA) is None else ("fp32",):
        with float32_arithmetic(name, CUDA):
            found[name] = [float((x @ x)[0, 0]) / 256, float(torch.conv2d(images, weight)[0, 0, 0, 0]) / 9]
    exact = (1 + 2**-12) ** 2
    assert found["fp32"] == pytest.approx([exact] * 2, rel=1e-6)
    assert found.get("tf32", [1.0] * 2)[0] == pytest.approx(1.0, abs=1e-6)
