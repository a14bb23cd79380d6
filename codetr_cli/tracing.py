"""What a network is being traced for."""

from __future__ import annotations

import torch


def is_exporting() -> bool:
    """Whether a program is traced for a file by `torch.export`, not compiled by `torch.compile`.

    Parts of a network are written otherwise for files. To torch 2.7 both are an export while the graph is captured, so
    that compiled networks would get the parts of files, which are slower.
    """
    return torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()
