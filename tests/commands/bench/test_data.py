from __future__ import annotations

import json
from pathlib import Path

import pytest

from codetr_cli.data.demo import write_demo


@pytest.fixture
def small_data(tmp_path, monkeypatch) -> list[str]:
    """Words for a measurement of few small images, which are in the folder `set`."""
    write_demo(tmp_path / "set", train=8, val=1, size=96)
    monkeypatch.chdir(tmp_path)
    words = ["--iterations", "4", "--device", "cpu", "--set", "data.short_sides=[64]", "--set", "data.long_side=100"]
    return ["bench", "data", *words, "--workers", "1"]


def test_the_pipeline_is_measured_and_its_bottleneck_named(codetr, small_data):
    ran = codetr(*small_data, "--data", "set", "--step-images-per-s", "0.5", "--json", "--out", "results/data.json")
    assert ran.code == 0, ran.err
    found = ran.json["data"]
    assert "inference" not in ran.json
    assert list(found["loader_images_per_s"]) == ["0", "1"]
    assert set(found["stages_ms"]) == {
        "read", "decode", "objects", "augment", "paste", "batch", "transfer", "copy",
    }  # fmt: skip
    assert (found["enough_workers"], found["needed_from"]) == (1, "given")
    assert (found["images"], found["data_set_images"], found["micro_batch"]) == (4, 8, 2)
    assert "1 worker supplies the 0.5 images/s of a training step: --set data.workers=1" in found["sentence"]
    assert json.loads(Path("results/data.json").read_text()) == ran.json


def test_tables_without_json(codetr, small_data, monkeypatch):
    monkeypatch.setenv("CODETR_DATA", "set")
    ran = codetr(*small_data)
    assert ran.code == 0, ran.err
    for part in (
        "decoding",
        "transferring batches",
        "from the disk",
        "of a worker's time",
        "step-images",
        "in parallel",
    ):
        assert part in ran.out


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["--size", "64x64"], 2, "--size"),
        (["--step-images-per-s", "0"], 2, "--step-images-per-s"),
        (["nowhere"], 3, "nowhere"),
        (["one", "--data", "two"], 2, "give one of them"),
    ],
)
def test_wrong_words(codetr, words, code, part):
    ran = codetr("bench", "data", *words)
    assert ran.code == code, ran.err
    assert part in ran.err
    assert "Traceback" not in ran.err
