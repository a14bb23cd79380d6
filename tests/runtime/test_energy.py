from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from codetr_cli.runtime.energy import GpuEnergy

GPU = torch.device("cuda", 0)


class FakeNvml:
    """The part of pynvml that is used, of one GPU."""

    def __init__(self, *counts: int | Exception) -> None:
        self.counts = list(counts)
        self.uuids: list[str] = []

    def nvmlInit(self) -> None:  # noqa: N802 (the library's name)
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        self.uuids.append(uuid)
        return f"handle of {uuid}"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        assert handle == "handle of GPU-1234"
        count = self.counts.pop(0)
        if isinstance(count, Exception):
            raise count
        return count


@pytest.fixture(autouse=True)
def _one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1234"))


def use(monkeypatch: pytest.MonkeyPatch, library: Any) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", library)


def test_joules_since_the_last_call(monkeypatch: pytest.MonkeyPatch):
    library = FakeNvml(5_000, 6_500, 6_500, 10_000)
    use(monkeypatch, library)
    energy = GpuEnergy(GPU)
    assert [energy.joules(), energy.joules(), energy.joules()] == [1.5, 0.0, 3.5]
    assert library.uuids == ["GPU-1234"]


def test_where_nothing_is_counted_there_is_no_number(monkeypatch: pytest.MonkeyPatch):
    assert GpuEnergy(torch.device("cpu")).joules() is None
    use(monkeypatch, None)  # as if it were not installed
    assert GpuEnergy(GPU).joules() is None
    use(monkeypatch, FakeNvml(RuntimeError("Not Supported")))
    assert GpuEnergy(GPU).joules() is None
    use(monkeypatch, SimpleNamespace())  # another package of this name
    assert GpuEnergy(GPU).joules() is None


def test_a_counter_that_fails_or_starts_again_gives_no_number(monkeypatch: pytest.MonkeyPatch):
    use(monkeypatch, FakeNvml(5_000, RuntimeError("lost"), 9_000, 1_000, 2_000))
    energy = GpuEnergy(GPU)
    assert [energy.joules() for _ in range(4)] == [None, 4.0, None, 1.0]
