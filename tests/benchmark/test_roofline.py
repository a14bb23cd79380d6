from __future__ import annotations

import pytest
import torch

from codetr_cli.benchmark.roofline import MachineLimits, Work, cache_size, measure_limits

CPU = torch.device("cpu")


def test_rates_are_those_of_a_computer():
    limits = measure_limits(CPU, scale=0.05)
    assert 1e8 < limits.copy_bytes_per_second < 1e13
    assert 1e8 < limits.cache_bytes_per_second < 1e14
    assert 1e8 < limits.flops_per_second < 1e14
    assert limits.cache_bytes == cache_size(CPU) >= 2**16
    assert limits.dtype == "float32"
    assert torch.get_float32_matmul_precision() == "highest"


def test_float64_is_held_against_float64():
    assert measure_limits(CPU, torch.float64, scale=0.02).dtype == "float64"
    assert measure_limits(CPU, torch.bfloat16, scale=0.02).dtype == "float32"


def test_bounds_are_work_over_rate():
    limits = MachineLimits(
        copy_bytes_per_second=1e9, cache_bytes_per_second=4e9, flops_per_second=1e10, cache_bytes=1, dtype="float32"
    )
    bounds = Work(memory_bytes=2_000_000, cache_bytes=4_000_000, flops=5_000_000).bounds_ms(limits)
    assert bounds == pytest.approx({"copy bandwidth": 2.0, "cache bandwidth": 1.0, "matrix rate": 0.5})
