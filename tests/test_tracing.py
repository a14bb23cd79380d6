from __future__ import annotations

import torch
from torch import Tensor, nn

from codetr_cli.tracing import is_exporting


class Shifted(nn.Module):
    """Adds 1 in a file, 2 elsewhere."""

    def forward(self, values: Tensor) -> Tensor:
        return values + (1 if is_exporting() else 2)


def test_a_compiled_network_is_no_file():
    zero = torch.zeros(1)
    assert Shifted()(zero) == 2
    assert torch.export.export(Shifted(), (zero,), strict=False).module()(zero) == 1
    assert torch.compile(Shifted(), backend="eager", fullgraph=True)(zero) == 2
