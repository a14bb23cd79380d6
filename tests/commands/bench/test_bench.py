from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from codetr_cli.benchmark import roofline
from codetr_cli.commands._bench_tables import without_folders
from codetr_cli.data.demo import write_demo
from codetr_cli.inference import loading
from codetr_cli.ops.deform_attn import BACKENDS
from tests.inference.fakes import write_checkpoint

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


SMALL_OPS = ("bench", "--ops", "--size", "64x96", "--levels", 2, "--iterations", 1, "--warmup", 0, "--device", "cpu")
SMALL_RUN = ("--size", "64x96", "--iterations", 2, "--warmup", 0, "--device", "cpu")


@pytest.fixture
def small_limits(monkeypatch):
    """Measures the machine's limits on small tensors."""
    real = roofline.measure_limits
    monkeypatch.setattr(roofline, "measure_limits", lambda device, dtype: real(device, dtype, scale=0.05))


def test_every_backend_of_the_operator(codetr, small_limits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = codetr(*SMALL_OPS, "--json", "--out", tmp_path / "results" / "ops.json", "--threads", 1)
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


def test_one_backend_of_the_classic_entry_for_people(codetr, small_limits):
    ran = codetr(*SMALL_OPS, "--shape", "decoder", "--backend", "torch", "--classic", "--dtype", "fp64", "--batch", 2)
    assert ran.code == 0, ran.err
    assert "Deformable attention, classic entry: decoder of 64x96, batch 2, 900 queries, 2 levels, float64" in ran.out
    rows = [line.split()[0] for line in ran.out.splitlines() if re.match(r"(torch|reference|cpu) +[\d.,]+ ", line)]
    assert rows == ["torch", "reference"] * 2
    assert "limit of a backward pass" in ran.out
    assert "GFLOP/s" in ran.out
    assert "encoder of" not in ran.out


def test_reasons_stand_below_the_table(codetr, small_limits):
    ran = codetr(*SMALL_OPS, "--shape", "encoder", "--backend", "torch-ms-deform-attn")
    if find_spec("torch_ms_deform_attn"):
        pytest.skip("torch-ms-deform-attn is installed")
    assert ran.code == 0, ran.err
    assert "torch-ms-deform-attn is not measured: It is not installed." in ran.out


def test_detection_beside_the_plain_way(codetr, checkpoint):
    ran = codetr("bench", "--fps", "--compare", "torch", "--checkpoint", checkpoint, *SMALL_RUN, "--json")
    assert ran.code == 0, ran.err
    found = ran.json["inference"]
    assert found["order"] == ["ours", "plain"] * 2
    assert found["attention"]["plain"] == "reference"
    assert list(found["ours"]["stages_ms"]) == list(found["plain"]["stages_ms"]) == STAGES
    assert found["agreement"]["detections_ours"] == 20
    assert found["agreement"]["unmatched"] == 0
    assert "times as fast as plain" in ran.err
    assert "20 of 20 detections are the same" in ran.err


def test_training_beside_the_plain_way(codetr, checkpoint):
    words = ("--train", "--compare", "torch", "--checkpoint", checkpoint, "--batch", 1, "--objects", 5)
    ran = codetr("bench", *words, *SMALL_RUN, "--json")
    assert ran.code == 0, ran.err
    found = ran.json["training"]
    assert "inference" not in ran.json
    assert (found["batch"], found["objects"]) == (1, 5)
    assert list(found["plain"]["stages_ms"]) == ["data", "forward", "backward", "optimizer"]
    assert found["agreement"]["relative_difference"] < 1e-4


def test_plain_is_not_lean(codetr, checkpoint, monkeypatch):
    asked = []
    real = loading.load_detector

    def load(*arguments, **options):
        asked.append(options["optimize"])
        return real(*arguments, **options)

    monkeypatch.setattr(loading, "load_detector", load)
    assert codetr("bench", "--compare", "torch", "--checkpoint", checkpoint, *SMALL_RUN).code == 0
    assert asked == [True, False, True]


@pytest.fixture
def small_data(tmp_path, monkeypatch) -> list[str]:
    """Words for a measurement of few small images."""
    write_demo(tmp_path / "set", train=8, val=1, size=96)
    monkeypatch.chdir(tmp_path)
    words = ["--iterations", "4", "--device", "cpu", "--set", "data.short_sides=[64]", "--set", "data.long_side=100"]
    return ["bench", "--data", "set", *words]


def test_reading_data_is_measured_and_its_bottleneck_named(codetr, small_data):
    ran = codetr(*small_data, "--workers", 1, "--step-images-per-s", "0.5", "--json", "--out", "results/data.json")
    assert ran.code == 0, ran.err
    found = ran.json["data"]
    assert "inference" not in ran.json
    assert list(found["loader_images_per_s"]) == ["0", "1"]
    assert set(found["stages_ms"]) == {
        "read", "decode", "objects", "augment", "paste", "batch", "hand-over", "copy",
    }  # fmt: skip
    assert (found["enough_workers"], found["needed_from"]) == (1, "given")
    assert (found["images"], found["data_set_images"], found["micro_batch"]) == (4, 8, 2)
    assert "1 worker feeds the 0.5 images/s of a training step: --set data.workers=1" in found["sentence"]
    assert json.loads(Path("results/data.json").read_text()) == ran.json


def test_reading_data_for_people(codetr, small_data, monkeypatch):
    monkeypatch.setenv("CODETR_DATA", small_data.pop(2))
    ran = codetr(*small_data, "--workers", 1)
    assert ran.code == 0, ran.err
    for part in ("decoding", "handing batches over", "asked to be forgotten", "of a worker's time", "step-images"):
        assert part in ran.out
    assert "beside the workers" in ran.out


@pytest.mark.parametrize(
    ("text", "published"),
    [
        ("/home/someone/runs/1/best.safetensors", "best.safetensors"),
        ("codetr bench --out ~/deep/r.json --size 64x96", "codetr bench --out r.json --size 64x96"),
        ("codetr bench --out='/tmp/x/r.json'", "codetr bench --out='r.json'"),
        ("images/s, runs/1, see https://example.org/a/b", "images/s, runs/1, see https://example.org/a/b"),
        ("C:\\Users\\me\\r.json", "r.json"),
    ],
)
def test_reports_tell_no_folders(text, published):
    assert without_folders({"a": [text, 1, None]}) == {"a": [published, 1, None]}


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["--size", "800"], 2, "800x1333"),
        (["--size", "0x10"], 2, "0x10"),
        (["--preset", "co_dino_r05"], 2, "co_dino_r50"),
        (["--checkpoint", "gone.safetensors"], 4, "gone.safetensors"),
        (["--preset", "co_dino_r50", "--checkpoint", "m.safetensors"], 2, "not both"),
        (["--device", "cuda:77"], 5, "cuda"),
        (["--ops", "--fps"], 2, "--fps"),
        (["--ops", "--preset", "co_dino_r50"], 2, "--preset"),
        (["--ops", "--compare", "torch"], 2, "--compare"),
        (["--ops", "--precision", "bf16"], 2, "--dtype"),
        (["--ops", "--set", "train.lr=1"], 2, "--set"),
        (["--ops", "--backend", "cpy"], 2, "cpu"),
        (["--ops", "--shape", "encodr"], 2, "encodr"),
        (["--ops", "--dtype", "fp8"], 2, "fp8"),
        (["--ops", "--levels", "9"], 2, "--levels"),
        (["--backend", "cpu"], 2, "--backend"),
        (["--fps", "--classic"], 2, "--classic"),
        (["--levels", "5"], 2, "--levels"),
        (["--fps", "--objects", "5"], 2, "--objects"),
        (["--data", "--train"], 2, "--train"),
        (["--data", "--size", "64x64"], 2, "--size"),
        (["--data", "nowhere"], 3, "nowhere"),
        (["--fps", "--workers", "2"], 2, "--workers"),
        (["set"], 2, "a folder"),
        (["--compare", "tensorflow"], 2, "tensorflow"),
        (["--precision", "fp16", "--device", "cpu", "--checkpoint", "m.safetensors", "--size", "64x64"], 2, "fp16"),
    ],
)
def test_wrong_words(codetr, checkpoint, words, code, part):
    ran = codetr("bench", *words)
    assert ran.code == code, ran.err
    assert part in ran.err
    assert "Traceback" not in ran.err
