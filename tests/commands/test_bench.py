from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.engine.detectors import write_checkpoint

STAGES = ["data", "backbone", "neck", "encoder", "decoder", "heads and query selection", "post-processing"]


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_settings, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_checkpoint(Path("m.safetensors"), tiny_settings)


def test_detection_is_the_default(codetr, checkpoint):
    ran = codetr("bench", "--checkpoint", checkpoint, "--size", "64x96", "--json", "--threads", 1, "--device", "cpu")
    assert ran.code == 0, ran.err
    assert "CPU" in ran.err
    report = ran.json
    assert "training" not in report
    assert report["inference"]["size"] == [64, 96]
    assert report["inference"]["precision"] == "fp32"
    assert list(report["inference"]["stages_ms"]) == STAGES
    assert set(report["inference"]["latency_ms"]) == {"mean", "p50", "p90", "p99"}
    assert report["machine"]["threads"] == 1
    assert report["command"].startswith("codetr")
    assert report["date"]


def test_tables_for_people(codetr, checkpoint):
    ran = codetr(
        "bench", "--checkpoint", checkpoint, "--fps", "--train", "--iterations", 1, "--size", "64X96", "--device", "cpu"
    )
    assert ran.code == 0, ran.err
    assert "warning" not in ran.err  # the person chose how long to measure
    for part in ("Detection: tiny at 64x96, batch 1, fp32", "Training step: tiny at 64x96, batch 2", "backward", "p99"):
        assert part in ran.out
    assert "deformable attention by" in ran.out


def test_the_report_is_written_beside_an_older_one(codetr, checkpoint):
    words = (
        "bench",
        "--checkpoint",
        checkpoint,
        "--size",
        "64x96",
        "--iterations",
        1,
        "--warmup",
        0,
        "--device",
        "cpu",
    )
    for _ in range(2):
        assert codetr(*words, "--out", "results/r.json").code == 0
    assert sorted(path.name for path in Path("results").iterdir()) == ["r.json", "r_2.json"]
    assert json.loads(Path("results/r.json").read_text())["inference"]["iterations"] == 1


def test_a_preset_with_changes(codetr, checkpoint):
    small = ("embed_dim=32", "ffn_dim=32", "norm_groups=8", "num_queries=20", "encoder_layers=1", "decoder_layers=1")
    options = [word for setting in small for word in ("--set", f"model.{setting}")]
    ran = codetr("bench", "--size", "64x64", "--iterations", 1, "--warmup", 0, "--device", "cpu", "--json", *options)
    assert ran.code == 0, ran.err
    assert ran.json["inference"]["name"] == "co_dino_r50"


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["--size", "800"], 2, "800x1333"),
        (["--size", "0x10"], 2, "0x10"),
        (["--preset", "co_dino_r05"], 2, "co_dino_r50"),
        (["--checkpoint", "gone.safetensors"], 4, "gone.safetensors"),
        (["--preset", "co_dino_r50", "--checkpoint", "m.safetensors"], 2, "not both"),
        (["--device", "cuda:77"], 5, "cuda"),
        (["--precision", "fp16", "--device", "cpu", "--checkpoint", "m.safetensors", "--size", "64x64"], 2, "fp16"),
    ],
)
def test_wrong_words(codetr, checkpoint, words, code, part):
    ran = codetr("bench", *words)
    assert ran.code == code, ran.err
    assert part in ran.err
    assert "Traceback" not in ran.err
