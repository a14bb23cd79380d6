from __future__ import annotations

import pytest
import torch

from codetr_cli.inference.cores import cores_shared, network_threads
from codetr_cli.inference.detector import Detector
from tests.inference.fakes import write_checkpoint


@pytest.fixture
def loaded(tmp_path, tiny_settings):
    return Detector.load(write_checkpoint(tmp_path / "m.safetensors", tiny_settings), device="cpu").loaded


def test_a_small_network_leaves_cores_to_what_comes_before_and_after(loaded, monkeypatch):
    assert [network_threads(loaded, threads) for threads in (1, 2, 64)] == [1, 1, 1]
    large = loaded.settings.model_copy(
        update={"test": loaded.settings.test.model_copy(update={"short_side": 80_000, "long_side": 130_000})}
    )
    object.__setattr__(loaded, "settings", large)
    assert [network_threads(loaded, threads) for threads in (1, 2, 64)] == [1, 2, 64]


def test_pytorch_gets_its_threads_back(loaded):
    torch.set_num_threads(2)
    with cores_shared(loaded, torch.device("cuda")):
        assert torch.get_num_threads() == 2
    with cores_shared(loaded, torch.device("cpu")):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
