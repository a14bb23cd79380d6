"""Number types per device."""

from __future__ import annotations

import pytest
import torch

from codetr_cli.errors import ConfigError
from codetr_cli.runtime.precision import autocast_dtype

CPU = torch.device("cpu")


def test_precision_on_a_cpu():
    assert autocast_dtype("auto", CPU) is None
    assert autocast_dtype("fp32", CPU) is None
    assert autocast_dtype("bf16", CPU) is torch.bfloat16
    with pytest.raises(ConfigError, match="fp16 needs a CUDA GPU"):
        autocast_dtype("fp16", CPU)
