from __future__ import annotations

import json
from pathlib import Path

import pytest

from codetr_cli.inference import loading
from tests.commands.bench.fakes import INFER_STAGES, SMALL_RUN


def test_the_report_holds_throughput_latency_and_stages(codetr, checkpoint):
    words = ("--checkpoint", checkpoint, "--size", "64x96", "--json", "--threads", 1, "--device", "cpu")
    ran = codetr("bench", "infer", *words)
    assert ran.code == 0, ran.err
    assert "CPU" in ran.err
    report = ran.json
    assert "training" not in report
    assert report["inference"]["size"] == [64, 96]
    assert report["inference"]["precision"] == "fp32"
    assert list(report["inference"]["stages_ms"]) == INFER_STAGES
    assert set(report["inference"]["latency_ms"]) == {"mean", "p50", "p90", "p99"}
    assert report["machine"]["threads"] == 1
    assert report["command"].startswith("codetr")
    assert report["date"]


def test_tables_without_json(codetr, checkpoint):
    ran = codetr("bench", "infer", "--checkpoint", checkpoint, "--iterations", 1, "--size", "64X96", "--device", "cpu")
    assert ran.code == 0, ran.err
    assert "warning" not in ran.err  # the user chose the number of runs
    for part in ("Inference: tiny at 64x96, batch 1, fp32", "backbone", "p99", "deformable attention by"):
        assert part in ran.out


def test_the_report_is_written_beside_an_older_one(codetr, checkpoint):
    words = ("--checkpoint", checkpoint, "--size", "64x96", "--iterations", 1, "--warmup", 0, "--device", "cpu")
    for _ in range(2):
        assert codetr("bench", "infer", *words, "--out", "results/r.json").code == 0
    assert sorted(path.name for path in Path("results").glob("*.json")) == ["r.json", "r_2.json"]
    Path("results/r_2.json").write_text("mine")
    assert codetr("bench", "infer", *words, "--out", "results/r_2.json", "--force").code == 0
    assert Path("results/r_2.json").read_text() == "mine"
    assert Path("results/r_2_2.json").is_file()
    assert json.loads(Path("results/r.json").read_text())["inference"]["iterations"] == 1


def test_a_preset_with_overrides(codetr, checkpoint):
    small = ("embed_dim=32", "ffn_dim=32", "norm_groups=8", "num_queries=20", "encoder_layers=1", "decoder_layers=1")
    options = [word for setting in small for word in ("--set", f"model.{setting}")]
    run = ("--size", "64x64", "--iterations", 1, "--warmup", 0, "--device", "cpu", "--json")
    ran = codetr("bench", "infer", *run, *options)
    assert ran.code == 0, ran.err
    assert ran.json["inference"]["name"] == "co_dino_r50"


def test_comparison_with_plain_pytorch(codetr, checkpoint, monkeypatch):
    optimized = []
    real = loading.load_detector

    def load(*arguments, **options):
        optimized.append(options["optimize"])
        return real(*arguments, **options)

    monkeypatch.setattr("codetr_cli.benchmark.network.load_detector", load)
    ran = codetr("bench", "infer", "--compare", "torch", "--checkpoint", checkpoint, *SMALL_RUN, "--json")
    assert ran.code == 0, ran.err
    found = ran.json["inference"]
    assert found["order"] == ["ours", "plain"] * 2
    assert found["attention"]["plain"] == "reference"
    assert list(found["ours"]["stages_ms"]) == list(found["plain"]["stages_ms"]) == INFER_STAGES
    assert found["agreement"]["detections_ours"] == 20
    assert found["agreement"]["unmatched"] == 0
    assert "times as fast as plain" in ran.err
    assert "20 of 20 detections agree" in ran.err
    assert optimized == [True, False, True]  # only the plain network is not optimized


def test_from_files_to_results(codetr, checkpoint, tiny_coco):
    words = ("bench", "infer", "--end-to-end", "--checkpoint", checkpoint, "--device", "cpu")
    ran = codetr(*words, "--images", tiny_coco / "train2017", "--json", "--workers", 1, "--batch", 2)
    assert ran.code == 0, ran.err
    found = ran.json["end_to_end"]
    assert (found["images"], found["unreadable"], found["workers"], found["synthetic"]) == (4, 0, 1, False)
    assert set(found["stages_ms"]) == {"wait", "read", "prepare", "network", "finish", "write"}
    assert found["sentence"].startswith("Bottleneck: ")
    ran = codetr(*words, "--images", 2, "--no-draw", "--out", "r.json")
    assert ran.code == 0, ran.err
    for part in ("From files to results: tiny, 2 images", "draw and write", "Bottleneck: ", "images/s, peak memory"):
        assert part in ran.out
    assert json.loads(Path("r.json").read_text())["end_to_end"]["drawn"] is False


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["--size", "800"], 2, "800x1333"),
        (["--size", "0x10"], 2, "0x10"),
        (["--preset", "co_dino_r05"], 2, "co_dino_r50"),
        (["--checkpoint", "gone.safetensors"], 4, "gone.safetensors"),
        (["--preset", "co_dino_r50", "--checkpoint", "m.safetensors"], 2, "not both"),
        (["--device", "cuda:77"], 5, "cuda"),
        (["--compare", "tensorflow"], 2, "tensorflow"),
        (["--precision", "fp16", "--device", "cpu", "--checkpoint", "m.safetensors", "--size", "64x64"], 2, "fp16"),
        (["--objects", "5"], 2, "--objects"),
        (["--backend", "cpu"], 2, "--backend"),
        (["--unfused"], 2, "--unfused"),
        (["--workers", "2"], 2, "--workers needs --end-to-end"),
        (["--images", "2"], 2, "--images needs --end-to-end"),
        (["--no-draw"], 2, "--no-draw needs --end-to-end"),
        (["--end-to-end", "--size", "64x64"], 2, "--size is of no use"),
        (["--end-to-end", "--compare", "torch"], 2, "--compare is of no use"),
        (["--end-to-end", "--procs", "2"], 2, "--procs"),
        (["--end-to-end", "--images", "nowhere"], 3, "nowhere"),
        (["set"], 2, "set"),
    ],
)
def test_wrong_words(codetr, checkpoint, words, code, part):
    ran = codetr("bench", "infer", *words)
    assert ran.code == code, ran.err
    assert part in ran.err
    assert "Traceback" not in ran.err
