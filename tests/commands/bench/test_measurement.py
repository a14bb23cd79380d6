from __future__ import annotations

import logging

import pytest

from codetr_cli.commands.bench._measurement import CPU_RUNS, GPU_RUNS, check_target, parse_size, run_counts
from codetr_cli.errors import ConfigError


@pytest.mark.parametrize("text", ["800x1333", "800X1333", " 800 x 1333", "800,1333", "800*1333"])
def test_sizes_are_height_and_width(text):
    assert parse_size(text) == (800, 1333)


@pytest.mark.parametrize("text", ["800", "0x10", "31x64", "64x16385", "axb", ""])
def test_other_sizes_are_refused(text):
    with pytest.raises(ConfigError, match="--size 800x1333"):
        parse_size(text)


def test_few_runs_on_a_cpu_are_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        assert run_counts("cpu", None, None) == CPU_RUNS
    assert "--iterations N" in caplog.text
    caplog.clear()
    assert run_counts("cpu", 0, 7) == (0, 7, 1)
    assert run_counts("cuda", None, None) == GPU_RUNS
    assert run_counts("cuda", 2, 5) == (2, 5, 5)
    assert not caplog.records


def test_one_network_is_measured():
    check_target("co_dino_r50", None)
    with pytest.raises(ConfigError, match="not both"):
        check_target("co_dino_r50", "m.safetensors")
