"""Copies in host memory: nothing is shared, strides stay, and little memory is page-locked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from codetr_cli.runs.folder import read_state
from codetr_cli.training import host_copies
from codetr_cli.training.host_copies import HostCopies
from tests.strict_device import strict_device, why_not


def test_a_copy_shares_nothing_and_keeps_types(tmp_path: Path):
    base = torch.arange(12.0).reshape(3, 4)
    value = {"step": 1, "a": base.t(), "b": [base[0], 2, "x"], "c": (base[1:], None), "d": torch.nn.Parameter(base)}
    copy = HostCopies(torch.device("cpu"))(value)
    torch.save(copy, tmp_path / "copy.pt")
    base.zero_()
    read = read_state(tmp_path / "copy.pt")
    assert read["a"].stride() == (1, 4)
    assert read["a"].tolist() == torch.arange(12.0).reshape(3, 4).t().tolist()
    assert read["b"][0].tolist() == [0, 1, 2, 3]
    assert read["b"][1:] == [2, "x"]
    assert read["b"][0].untyped_storage().nbytes() == 16
    assert read["c"][1] is None
    assert not read["d"].requires_grad


@pytest.mark.skipif(why_not() is not None, reason=why_not() or "")
@pytest.mark.parametrize("buffer", [64, 100, 2**20])
def test_copies_from_a_gpu_pass_through_two_small_buffers(monkeypatch: pytest.MonkeyPatch, buffer: int):
    monkeypatch.setattr(host_copies, "BUFFER_BYTES", buffer)
    base = torch.arange(60.0).reshape(3, 4, 5)
    values = {
        "dense": base,
        "transposed": base.permute(2, 0, 1),
        "sparse": base[:, ::2],
        "one": base[1, 2, 3],
        "none": base[:0],
        "half": base.half(),
        "flags": base > 7,
        "host": base.clone(),
        "number": 3,
    }
    blocks: list[int] = []
    with strict_device(index=1) as gpu, monkeypatch.context() as patch:
        empty = torch.empty

        def counted(*size, **named):
            if named.get("pin_memory"):
                blocks.append(size[0])
            return empty(*size, **named)

        patch.setattr(torch, "empty", counted)
        ours = {
            name: value.to("cuda:1") if isinstance(value, torch.Tensor) and name != "host" else value
            for name, value in values.items()
        }
        copy = HostCopies(torch.device("cuda", 1))
        copies = copy(ours)
        copy.finish()
        assert not gpu.problems
    for name, value in values.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(copies[name], value), name
            assert not copies[name].is_pinned()
    assert copies["transposed"].stride() == values["transposed"].stride()
    assert blocks == [buffer] * 2
