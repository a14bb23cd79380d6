"""Batches in shared memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from codetr_cli.data.batch import Batch
from codetr_cli.data.loading.transport import pack
from codetr_cli.data.loading.workers import BatchReader
from codetr_cli.errors import ResourceError
from tests.data.loading.fakes import ORDER, Images, same


@pytest.fixture
def expected(tmp_path: Path) -> list[Batch]:
    return list(BatchReader(Images(tmp_path), ORDER, workers=0))


def test_a_shared_batch_has_the_whole_batch(tmp_path: Path, expected: list[Batch]) -> None:
    images = Images(tmp_path)
    shared = pack([images[4], images[5]])
    assert shared.shm_error is None
    assert isinstance(shared.block, bytes)
    assert len(shared.block) < 1000  # what is large is shared, not sent
    assert same([shared.open()], [expected[2]])
    assert expected[2].padding_mask.dtype == torch.bool
    assert expected[2].padding_mask[0, -3:].all()


def test_a_shared_batch_is_opened_by_torchs_thread_for_pinned_memory(
    tmp_path: Path, expected: list[Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor.clone())
        return pinned[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    images = Images(tmp_path)
    arrived = pin_memory(pack([images[4], images[5]]))
    batch = arrived.open()
    assert same([batch], [expected[2]])
    assert any(batch.images is tensor for tensor in pinned)  # not the tensors in shared memory
    error = ResourceError("passes as it is")
    assert pin_memory(error) is error
