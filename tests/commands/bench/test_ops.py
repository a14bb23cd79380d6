from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from codetr_cli.benchmark import roofline
from codetr_cli.ops.deform_attn import BACKENDS

SMALL = ("--size", "64x96", "--levels", 2, "--iterations", 1, "--warmup", 0, "--device", "cpu")


@pytest.fixture
def small_limits(monkeypatch):
    """Measures the machine's limits on small tensors."""
    real = roofline.measure_limits
    monkeypatch.setattr(roofline, "measure_limits", lambda device, dtype: real(device, dtype, scale=0.05))


def test_every_backend_has_a_row(codetr, small_limits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = codetr("bench", "ops", *SMALL, "--json", "--out", tmp_path / "results" / "ops.json", "--threads", 1)
    assert ran.code == 0, ran.err
    report = ran.json
    assert "weights" not in report
    assert set(report["operators"]["limits"]) == {
        "copy_bytes_per_second", "cache_bytes_per_second", "flops_per_second", "cache_bytes", "dtype",
    }  # fmt: skip
    shapes = report["operators"]["shapes"]
    assert [shape["shape"]["name"] for shape in shapes] == ["encoder", "decoder"]
    assert [shape["shape"]["queries"] for shape in shapes] == [480, 900]
    for shape in shapes:
        assert shape["entry"] == "fused"
        assert {row["name"] for row in shape["rows"]} == set(BACKENDS)
        assert set(shape["forward_bounds_ms"]) == {"copy bandwidth", "cache bandwidth", "matrix rate"}
    written = Path("results/ops.json").read_text()
    assert json.loads(written) == report
    assert str(tmp_path) not in written
    assert str(Path.home()) not in written


@pytest.mark.parametrize("option", ["--unfused", "--classic"])
def test_one_backend_of_the_unfused_operator(codetr, small_limits, option):
    words = ("--shape", "decoder", "--backend", "torch", option, "--dtype", "fp64", "--batch", 2)
    ran = codetr("bench", "ops", *SMALL, *words)
    assert ran.code == 0, ran.err
    assert "Deformable attention, unfused: decoder of 64x96, batch 2, 900 queries, 2 levels, float64" in ran.out
    rows = [line.split()[0] for line in ran.out.splitlines() if re.match(r"(torch|reference|cpu) +[\d.,]+ ", line)]
    assert rows == ["torch", "reference"] * 2
    assert "limit of a backward pass" in ran.out
    assert "GFLOP/s" in ran.out
    assert "encoder of" not in ran.out


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--preset", "co_dino_r50"], "--preset"),
        (["--compare", "torch"], "--compare"),
        (["--precision", "bf16"], "--precision"),
        (["--set", "train.lr=1"], "--set"),
        (["--backend", "cpy"], "cpu"),
        (["--shape", "encodr"], "encodr"),
        (["--dtype", "fp8"], "fp8"),
        (["--levels", "9"], "--levels"),
    ],
)
def test_wrong_words(codetr, words, part):
    ran = codetr("bench", "ops", *words)
    assert ran.code == 2, ran.err
    assert part in ran.err
    assert "Traceback" not in ran.err
