"""`codetr export`: its words, its file, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from codetr_cli.export import job
from codetr_cli.export.request import WriteRequest
from tests.inference.fakes import write_checkpoint, write_run


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[WriteRequest]:
    """A short file in the place of a graph, which would take seconds."""
    found: list[WriteRequest] = []

    def write(request: WriteRequest) -> None:
        found.append(request)
        request.step("tracing the network")
        request.path.write_bytes(b"graph")

    monkeypatch.setitem(job.WRITERS, "onnx", write)
    return found


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_settings) -> Path:
    return write_checkpoint(tmp_path / "network.safetensors", tiny_settings)


def test_what_is_printed(codetr, checkpoint: Path, requests: list[WriteRequest]):
    ran = codetr("export", checkpoint, "--size", "96x160")
    assert ran.code == 0, ran.err
    assert "tracing the network ..." in ran.out
    assert "input images: float32 (B, 3, 96, 160), normalised RGB, 0 where padded" in ran.out
    assert "output logits: float32 (B, 30, 3), before the sigmoid" in ran.out
    assert "upright images are reduced" in ran.out
    path = checkpoint.with_suffix(".onnx")
    assert f"wrote {path}: 5 B" in ran.out.replace("\n", "")
    assert "codetr predict IMAGES --checkpoint" in ran.out
    said = "".join(ran.out.split())
    assert f"codetrexport{checkpoint}--verify-only{path}" in said


def test_settings_are_part_of_what_verifies(codetr, checkpoint: Path, requests: list[WriteRequest]):
    ran = codetr("export", checkpoint, "--size", "96x160", "--set", "test.nms=hard")
    assert "--set test.nms=hard --verify-only" in " ".join(ran.out.split())


def test_a_model_of_triton(codetr, checkpoint: Path, requests: list[WriteRequest], tmp_path: Path):
    folder = tmp_path / "models" / "cells"
    words = ("export", checkpoint, "--layout", "triton", "--out", folder, "--postprocess", "--size", "96x160")
    ran = codetr(*words, "--device", "cpu")
    assert ran.code == 0, ran.err
    files = [folder / "1/model.onnx", folder / "config.pbtxt", folder / "labels.txt"]
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file() and path != checkpoint) == files
    config = (folder / "config.pbtxt").read_text()
    assert 'name: "cells"' in config
    assert "kind: KIND_CPU" in config
    assert f"tritonserver--model-repository{folder.parent}" in "".join(ran.out.split())
    again = codetr(*words, "--force")
    assert again.code == 2
    assert "is there already" in again.err
    assert len(requests) == 1, "refused before the export"
    other = tmp_path / "models" / "other"
    found = json.loads(codetr("export", checkpoint, "--layout", "triton", "--out", other, "--json").out)
    assert found["output"] == str(other / "1/model.onnx")
    assert found["files"] == [str(other / name) for name in ("1/model.onnx", "config.pbtxt", "labels.txt")]
    assert "kind: KIND_GPU" in (other / "config.pbtxt").read_text()


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        ([], 2, "needs the folder of the model, --out REPOSITORY/MODEL"),
        (["--out", "models/a b"], 2, "the model's name 'a b' has characters other than"),
        (["--out", "network.safetensors/model"], 2, "is a file, where a folder is needed"),
        (["--out", "models/a", "--format", "openvino", "--device", "cuda"], 2, "openvino runs on a cpu in Triton"),
        (["--out", "models/a", "--format", "tensorrt"], 5, "none can be built here"),
        (["--out", "models/a", "--format", "tensorrt", "--verify"], 2, "Verify the engine without --layout"),
    ],
)
def test_no_model_of_triton(codetr, checkpoint, requests, monkeypatch: pytest.MonkeyPatch, words, code, named):
    monkeypatch.chdir(checkpoint.parent)
    monkeypatch.setattr("codetr_cli.export.triton_repository.why_not_here", lambda: "TensorRT is not installed")
    ran = codetr("export", checkpoint, "--layout", "triton", *words)
    assert ran.code == code
    assert named in " ".join(ran.err.split())
    assert not requests
    assert not (checkpoint.parent / "models").exists()


def test_json(codetr, checkpoint: Path, requests: list[WriteRequest]):
    ran = codetr("export", "--checkpoint", checkpoint, "--json", "--preprocess", "--postprocess", "--batch", "4")
    found = json.loads(ran.out)
    assert found["output"] == str(checkpoint.with_suffix(".onnx"))
    assert found["files"] == [found["output"]]
    assert found["bytes"] == 5
    assert found["metadata"]["input"]["pixels"] is True
    assert found["metadata"]["input"]["batch"] == 4
    assert found["metadata"]["output"]["detections"] is True
    assert "tracing" in ran.err


def test_options_reach_the_writer(codetr, checkpoint: Path, requests: list[WriteRequest], tmp_path: Path):
    words = ["--dynamic-size", "--precision", "fp16", "--attention", "gather", "--tiles", "640x512", "--overlap", "0.1"]
    ran = codetr("export", checkpoint, *words, "--out", tmp_path / "other.onnx", "--set", "test.max_detections=7")
    assert ran.code == 0, ran.err
    metadata = requests[0].metadata
    assert (metadata.input.height, metadata.input.width, metadata.input.batch) == (None, None, None)
    assert (metadata.precision, metadata.attention) == ("fp16", "gather")
    assert metadata.tiles is not None
    assert (metadata.tiles.size, metadata.tiles.overlap) == ((640, 512), 0.1)
    assert metadata.output.max_detections == 7


def test_where_the_file_is_written(codetr, tmp_path: Path, tiny_settings, requests, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (best,) = write_run(tmp_path / "runs/tiny/1", tiny_settings, "best")
    assert codetr("export", "runs/tiny/1").code == 0
    assert best.with_suffix(".onnx").is_file()
    assert codetr("export", "co_dino_tiny", "--quiet").code == 0
    assert (tmp_path / "co_dino_tiny.onnx").is_file()


def test_an_existing_file_is_kept(codetr, checkpoint: Path, requests: list[WriteRequest]):
    assert codetr("export", checkpoint).code == 0
    ran = codetr("export", checkpoint)
    assert ran.code == 2
    assert "--force" in ran.err
    assert codetr("export", checkpoint, "--force").code == 0


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--size", "800"], "--size 800: give height and width in pixels as in 800x1344"),
        (["--size", "0x5"], "--size 0x5: sides are from 1"),
        (["--batch", "some"], "--batch some: give a number of images, or dynamic"),
        (["--batch", "0"], "--batch 0"),
        (["--size", "96x96", "--dynamic-size"], "use one of them"),
        (["--overlap", "0.1"], "--overlap is of tiles: give --tiles, too"),
        (["--tiles", "wide"], "give width and height"),
        (["--out", "x.bin"], "ends in .onnx"),
    ],
)
def test_wrong_words(codetr, checkpoint: Path, requests: list[WriteRequest], words: list[str], named: str):
    ran = codetr("export", checkpoint, *words)
    assert ran.code == 2
    assert named in " ".join(ran.err.split())
    assert not requests


def test_no_checkpoint(codetr, tmp_path: Path):
    ran = codetr("export", "--format", "onnx")
    assert ran.code == 2
    assert "codetr export CKPT --format onnx" in ran.err
    assert codetr("export", tmp_path / "missing.safetensors").code == 4
