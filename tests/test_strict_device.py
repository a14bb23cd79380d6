"""The emulated GPU is as strict as a real one, and the package runs on it: what a CPU cannot show."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from codetr_cli.config.overrides import apply_overrides
from codetr_cli.inference.detector import Detector
from codetr_cli.runtime.memory import is_out_of_memory
from codetr_cli.runtime.precision import autocast_dtype
from tests.inference.fakes import write_checkpoint
from tests.strict.workloads import Work, evaluated_batch, predicted_image, random_network, training_step
from tests.strict_device import StrictTensor, strict_device, values, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=why_not() or "")
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
SMALL = Work(size=(64, 96), objects=5)


# ---------------------------------------------------------------------------------------------------- the emulation


def test_tensors_of_two_devices_cannot_be_mixed():
    with strict_device() as gpu:
        a, b = torch.ones(3, device="cuda"), torch.ones(3)
        with pytest.raises(RuntimeError, match="same device"):
            a + b
        assert sum(gpu.mixes.values()) == 1
        assert values(a + torch.tensor(1.0)).tolist() == [2, 2, 2]  # a number
        assert values(a[torch.tensor([0, 2])]).tolist() == [1, 1]  # an index may be on the host
        with pytest.raises(TypeError, match="to numpy"):
            a.numpy()


@pytest.mark.parametrize(
    ("call", "waits"),
    [
        (lambda x: x.sum().item(), 1),
        (lambda x: x.nonzero(), 1),
        (lambda x: x[x > 0], 1),
        (lambda x: x.tolist(), 1),
        (lambda x: x.cpu(), 1),
        (lambda x: bool(x.all()), 1),
        (lambda x: x.new_tensor([1.0]), 1),
        (lambda x: torch.cuda.synchronize(), 1),
        (lambda x: x.masked_fill(x > 0, 0.0), 0),
        (lambda x: x.to("cpu", non_blocking=True), 0),
        (lambda x: torch.zeros(2).pin_memory().to("cuda", non_blocking=True), 0),
        (lambda x: torch.where(x > 0, x, 0.0).sort(), 0),
    ],
)
def test_waits_are_counted(call, waits):
    with strict_device() as gpu:
        x = torch.ones(4, device="cuda")
        gpu.clear()
        call(x)
        assert sum(gpu.syncs.values()) == waits


def test_values_are_missing_until_their_copy_is_over():
    with strict_device():
        host = torch.zeros(3, pin_memory=True)
        host.copy_(torch.ones(3, device="cuda"), non_blocking=True)
        assert host.isnan().all()
        event = torch.cuda.Event()
        event.record()
        event.synchronize()
        assert host.tolist() == [1, 1, 1]


def test_an_event_on_another_device_waits_for_nothing():
    with strict_device(index=1) as gpu:
        host = torch.zeros(3, pin_memory=True)
        host.copy_(torch.ones(3, device="cuda:1"), non_blocking=True)
        event = torch.cuda.Event()
        event.record()  # the current device is cuda:0
        event.synchronize()
        assert host.isnan().all()
        assert sum(gpu.misplaced.values()) == 1
        with torch.cuda.device(1):
            event.record()
        event.synchronize()
        assert host.tolist() == [1, 1, 1]


def test_a_source_that_changes_during_its_copy_is_reported():
    with strict_device() as gpu:
        host = torch.zeros(3).pin_memory()
        host.to("cuda", non_blocking=True)
        host.fill_(1.0)
        torch.cuda.synchronize()
        assert sum(gpu.raced.values()) == 1


def test_autocast_has_the_rules_of_cuda():
    with strict_device():
        x = torch.randn(2, 4, device="cuda")
        with torch.autocast("cuda", dtype=torch.bfloat16):
            assert (x @ x.T).dtype == torch.bfloat16
            assert torch.nn.functional.layer_norm((x @ x.T), (2,)).dtype == torch.float32  # bfloat16 on a CPU


def test_memory_has_a_limit_and_a_peak():
    with strict_device(total_memory=4096) as gpu:
        x = torch.zeros(512, device="cuda")
        with pytest.raises(torch.OutOfMemoryError) as caught:
            x + torch.ones(512, device="cuda")
        assert is_out_of_memory(caught.value)
        assert gpu.bytes_peak == 4096
        del x, caught
        assert gpu.bytes_now == 0


def test_gradients_are_on_the_device():
    with strict_device():
        layer = torch.nn.Linear(3, 2).to("cuda")
        layer(torch.ones(4, 3, device="cuda")).sum().backward()
        assert isinstance(layer.weight.grad, StrictTensor)
        assert values(layer.weight.grad).tolist() == [[4.0] * 3] * 2


# ------------------------------------------------------------------------------------------------------ the package


def test_a_step_on_the_second_gpu_waits_for_the_right_device(tiny_settings):
    with strict_device(index=1) as gpu:
        device = torch.device("cuda", 1)
        training_step(random_network(tiny_settings).to(device), tiny_settings, SMALL, device)
        assert not gpu.problems


def test_a_detector_uses_the_gpu_that_was_chosen(tiny_settings, tmp_path, monkeypatch):
    """The automatic precision of training, and all that names no device, are those of the second GPU."""
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "max_split_size_mb:128")
    path = write_checkpoint(tmp_path / "model.safetensors", tiny_settings)
    with strict_device(index=1) as gpu:
        detector = Detector.load(path, "cuda:1")
        assert torch.cuda.current_device() == 1
        assert autocast_dtype("auto", detector.device) is torch.bfloat16
        assert autocast_dtype("auto", GPU) is None
        assert len(detector.predict(np.zeros((60, 80, 3), np.uint8), score=0.0)) > 0
        assert not gpu.problems


def test_the_matching_thread_sleeps_while_it_waits(tiny_settings):
    with strict_device() as gpu:
        training_step(random_network(tiny_settings).to(GPU), tiny_settings, SMALL, GPU, update=False)
        assert not gpu.spins


@pytest.mark.parametrize("run", [evaluated_batch, predicted_image])
def test_detections_are_those_of_the_cpu(tiny_settings, run):
    settings = apply_overrides(tiny_settings, ["test.nms=soft"])
    model = random_network(settings)
    expected = run(copy.deepcopy(model), settings, SMALL, CPU)
    with strict_device() as gpu:
        found = run(model.to(GPU), settings, SMALL, GPU)
        assert not gpu.problems
    assert len(found) == len(expected) > 0
    torch.testing.assert_close(found.scores, expected.scores)
