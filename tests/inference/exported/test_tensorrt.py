"""The runner of TensorRT engines, with a strict stand-in for TensorRT."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from codetr_cli.errors import CheckpointError, ResourceError
from codetr_cli.export.tensorrt_engine import build_engine
from codetr_cli.inference.exported import tensorrt
from codetr_cli.inference.exported.engine import Engine, open_engine
from codetr_cli.inference.exported.metadata import ExportMetadata
from codetr_cli.inference.exported.tensorrt import TensorRTEngine, sidecar_path
from tests import fake_tensorrt
from tests.export.tiny_graph import SIZE, tiny_metadata, write_tiny_graph

pytest.importorskip("onnx", reason="the engines of these tests are made from ONNX files")
pytest.importorskip("onnxruntime", reason="the stand-in computes with ONNX Runtime")

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _trusted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "unknown" not in request.node.name:
        monkeypatch.setattr(tensorrt, "check_trusted", lambda path: None)


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> fake_tensorrt.State:
    return fake_tensorrt.install(monkeypatch)


def built(folder: Path, **options) -> Path:
    """An engine file with its metadata."""
    metadata = tiny_metadata(format="tensorrt", **options)
    write_tiny_graph(folder / "net.onnx", metadata)
    path = folder / "net.engine"
    metadata = build_engine(folder / "net.onnx", path, metadata)
    sidecar_path(path).write_text(metadata.to_json(), encoding="utf-8")
    return path


def run(engine: Engine, batch: int) -> None:
    """Runs images and compares with what the graph computes."""
    images = torch.randn(batch, 3, *SIZE, generator=torch.Generator().manual_seed(batch))
    sizes = torch.arange(2 * batch).view(batch, 2)
    outputs = engine.run(images, sizes)
    assert list(outputs) == ["logits", "boxes"]
    torch.testing.assert_close(outputs["logits"], images.mean((2, 3))[:, None])
    torch.testing.assert_close(outputs["boxes"], torch.cat([sizes, sizes], 1)[:, None] / 1000)


def test_outputs_are_those_of_the_graph(trt: fake_tensorrt.State, tmp_path: Path) -> None:
    engine = open_engine(built(tmp_path), CPU)
    assert isinstance(engine, TensorRTEngine)
    for batch in (1, 3, 8, 2):  # of one engine, in turn
        run(engine, batch)
    assert trt.batches == [1, 3, 8, 2]
    assert str(engine.info) == f"TensorRT {fake_tensorrt.VERSION}, cpu, fp32"


def test_more_images_than_the_profile_run_in_several_batches(trt: fake_tensorrt.State, tmp_path: Path) -> None:
    run(open_engine(built(tmp_path), CPU), 19)
    assert trt.batches == [8, 8, 3]


def test_a_fixed_number_of_images(trt: fake_tensorrt.State, tmp_path: Path) -> None:
    run(open_engine(built(tmp_path, batch=2), CPU), 2)
    assert trt.batches == [2]


def test_images_in_another_memory_layout_are_copied(trt: fake_tensorrt.State, tmp_path: Path) -> None:
    engine = open_engine(built(tmp_path), CPU)
    images = torch.randn(2, 3, *SIZE).to(memory_format=torch.channels_last)
    outputs = engine.run(images, torch.ones(2, 2, dtype=torch.int32))
    torch.testing.assert_close(outputs["logits"], images.mean((2, 3))[:, None])


def test_another_size_is_refused(trt: fake_tensorrt.State, tmp_path: Path) -> None:
    engine = open_engine(built(tmp_path), CPU)
    with pytest.raises(CheckpointError, match=r"does not take images of shape \(1, 3, 96, 64\)"):
        engine.run(torch.zeros(1, 3, 96, 64), torch.ones(1, 2, dtype=torch.int64))


def test_the_work_is_ordered_with_the_callers_stream(trt: fake_tensorrt.State, tmp_path: Path) -> None:
    engine = TensorRTEngine.open(built(tmp_path), CPU)
    stream = engine._stream._stream
    run(engine, 1)
    (caller,) = stream.waited_for
    assert caller.waited_for == [stream]


def test_engines_run_on_gpus_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", type(sys)("tensorrt"))
    with pytest.raises(ResourceError, match="--device cuda"):
        TensorRTEngine.open(tmp_path / "net.engine", CPU)


def test_without_tensorrt_the_command_that_installs_it_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(ResourceError, match=r"pip install 'codetr-cli\[tensorrt\]'"):
        TensorRTEngine.open(tmp_path / "net.engine", CPU)


# ---------------------------------------------------------------------------------------------------------------- files


def test_an_engine_without_its_metadata(trt: fake_tensorrt.State, tmp_path: Path) -> None:
    path = built(tmp_path)
    sidecar_path(path).unlink()
    with pytest.raises(CheckpointError, match=r"no net\.engine\.json beside it.*copy both files"):
        TensorRTEngine.open(path, CPU)


def test_no_engine_at_all(trt: fake_tensorrt.State, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no engine"):
        TensorRTEngine.open(tmp_path / "net.engine", CPU)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"{}", b"[1]", b"no JSON"])
def test_metadata_that_codetr_does_not_write(trt: fake_tensorrt.State, tmp_path: Path, content) -> None:
    path = built(tmp_path)
    sidecar_path(path).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"net\.engine\.json"):
        TensorRTEngine.open(path, CPU)


def test_an_engine_of_another_release_names_both(trt: fake_tensorrt.State, tmp_path: Path) -> None:
    path = built(tmp_path)
    trt.version = "12.0"
    with pytest.raises(CheckpointError, match=r"built with 11\.4\.0\.106 on NVIDIA Fake 1: Version tag") as found:
        TensorRTEngine.open(path, CPU)
    assert "export the checkpoint again here" in str(found.value)


def test_a_damaged_engine(trt: fake_tensorrt.State, tmp_path: Path) -> None:
    path = built(tmp_path)
    path.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="Magic tag does not match"):
        TensorRTEngine.open(path, CPU)


def test_metadata_of_another_export(trt: fake_tensorrt.State, tmp_path: Path) -> None:
    path = built(tmp_path)
    other: ExportMetadata = tiny_metadata(format="tensorrt", postprocess=True)
    sidecar_path(path).write_text(other.to_json(), encoding="utf-8")
    with pytest.raises(CheckpointError, match="they are of different exports"):
        TensorRTEngine.open(path, CPU)


def test_an_engine_that_does_not_fit_into_memory(trt: fake_tensorrt.State, tmp_path: Path, monkeypatch) -> None:
    path = built(tmp_path)
    monkeypatch.setattr(fake_tensorrt._Engine, "create_execution_context", lambda engine: None)
    with pytest.raises(ResourceError, match="not enough memory"):
        TensorRTEngine.open(path, CPU)


@pytest.mark.parametrize(
    ("reason", "error"), [("Cuda Runtime (out of memory)", MemoryError), ("Invalid argument", CheckpointError)]
)
def test_a_run_that_fails(trt: fake_tensorrt.State, tmp_path: Path, monkeypatch, reason, error) -> None:
    engine = TensorRTEngine.open(built(tmp_path), CPU)

    def fail(context: object, stream: int) -> bool:
        engine._log.log(fake_tensorrt.ILogger.Severity.ERROR, reason)
        return False

    monkeypatch.setattr(fake_tensorrt._Context, "execute_async_v3", fail)
    with pytest.raises(error, match=re.escape(reason)):
        engine.run(torch.zeros(1, 3, *SIZE), torch.ones(1, 2, dtype=torch.int64))


def test_an_engine_of_unknown_origin_is_not_loaded(trt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = built(tmp_path)
    monkeypatch.setenv("CODETR_CACHE", str(tmp_path / "cache"))  # of a user who has built no equal engine
    with pytest.raises(CheckpointError, match="contains compiled code") as refused:
        TensorRTEngine.open(path, CPU)
    digest = re.search(r"CODETR_TRUST=([0-9a-f]{64})", str(refused.value))
    assert digest
    monkeypatch.setenv("CODETR_TRUST", digest[1])
    TensorRTEngine.open(path, CPU)
