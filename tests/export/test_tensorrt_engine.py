"""TensorRT engines: with a stand-in for TensorRT, and what is written without it."""

from __future__ import annotations

import logging
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from codetr_cli.errors import ConfigError, ResourceError
from codetr_cli.export import job, tensorrt_engine
from codetr_cli.export.request import WriteRequest
from codetr_cli.export.tensorrt_engine import check_limits, input_ranges, trtexec_command, write_tensorrt
from codetr_cli.inference.exported.metadata import ExportMetadata, parse_metadata
from tests import fake_tensorrt
from tests.conftest import REPOSITORY
from tests.document_blocks import fenced
from tests.export.tiny_graph import SIZE, tiny_metadata, tiny_network, write_tiny_graph
from tests.inference.fakes import write_run

pytest.importorskip("onnx", reason="engines are made from ONNX files")


@pytest.fixture(autouse=True)
def _small_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(request: WriteRequest) -> None:
        write_tiny_graph(request.path, request.metadata)

    monkeypatch.setattr(tensorrt_engine, "write_onnx", write)


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> fake_tensorrt.State:
    return fake_tensorrt.install(monkeypatch)


def written(folder: Path, **options: Any) -> ExportMetadata:
    """Writes `net.engine` and returns the metadata beside it."""
    metadata = tiny_metadata(format="tensorrt", **options)
    model: Any = tiny_network().model
    write_tensorrt(WriteRequest(model, metadata, folder / "net.engine"))
    return parse_metadata((folder / "net.engine.json").read_text(encoding="utf-8"), "net.engine.json")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------------------------------------------- without TensorRT


@pytest.fixture
def _no_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)


@pytest.mark.usefixtures("_no_tensorrt")
def test_without_tensorrt_the_files_and_the_command_are_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        metadata = written(tmp_path)
    assert names(tmp_path) == ["net.engine.json", "net.engine.onnx", "net.engine.trtexec.sh"]
    command = (tmp_path / "net.engine.trtexec.sh").read_text(encoding="utf-8").strip()
    (warning,) = (record.getMessage() for record in caplog.records)
    assert "no engine was built" in warning
    assert "TensorRT is not installed (pip install 'codetr-cli[tensorrt]')" in warning
    assert command in warning
    assert metadata == tiny_metadata(format="tensorrt")


def test_without_a_gpu_no_engine_is_built(trt: fake_tensorrt.State, tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(tensorrt_engine.torch.cuda, "is_available", lambda: False)
    written(tmp_path)
    assert "net.engine" not in names(tmp_path)
    assert "PyTorch finds none here" in caplog.text


def test_the_command_gives_the_shapes_of_any_number_of_images() -> None:
    words = shlex.split(trtexec_command("a b.onnx", "net.engine", tiny_metadata(format="tensorrt")))
    assert words == [
        "trtexec",
        "--onnx=a b.onnx",
        "--saveEngine=net.engine",
        "--stronglyTyped",
        "--minShapes=images:1x3x64x96,image_sizes:1x2",
        "--optShapes=images:4x3x64x96,image_sizes:4x2",
        "--maxShapes=images:8x3x64x96,image_sizes:8x2",
    ]


def test_the_command_for_a_fixed_number_of_images_has_no_shapes() -> None:
    command = trtexec_command("net.onnx", "net.engine", tiny_metadata(format="tensorrt", batch=2))
    assert command == "trtexec --onnx=net.onnx --saveEngine=net.engine --stronglyTyped"


def test_shapes_of_pixels_have_the_channels_last() -> None:
    ranges = input_ranges(tiny_metadata(format="tensorrt", preprocess=True, batch=2))
    assert ranges["images"].least == ranges["images"].most == (2, *SIZE, 3)
    assert ranges["image_sizes"].usual == (2, 2)


# --------------------------------------------------------------------------------------------------------------- limits


def test_inputs_of_any_size_are_refused() -> None:
    with pytest.raises(ConfigError, match="one file for each size with --size HxW"):
        check_limits(tiny_metadata(format="tensorrt", size=None, dynamic_size=True))


def test_more_queries_than_topk_selects_are_refused() -> None:
    metadata = tiny_metadata(format="tensorrt")
    table = {**metadata.settings, "model": {**metadata.settings["model"], "num_queries": 3840}}
    check_limits(metadata.model_copy(update={"settings": table}))
    table["model"] = {**table["model"], "num_queries": 3841}
    with pytest.raises(ConfigError, match="num_queries is 3841, and TensorRT selects 3840"):
        check_limits(metadata.model_copy(update={"settings": table}))


# ------------------------------------------------------------------------------------------------------------- building


def test_the_engine_and_its_metadata_are_all_that_is_written(trt: fake_tensorrt.State, tmp_path: Path) -> None:
    metadata = written(tmp_path)
    assert names(tmp_path) == ["net.engine", "net.engine.json"]
    assert metadata.versions["tensorrt"] == fake_tensorrt.VERSION
    assert metadata.versions["gpu"] == "NVIDIA Fake 1"
    assert trt.limits == {fake_tensorrt.MemoryPoolType.WORKSPACE: 8 * 2**30}  # 80 % of 10 GiB


def test_the_second_build_uses_the_timings_of_the_first(trt, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CODETR_CACHE", str(tmp_path / "cache"))
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        written(tmp_path / name)
    assert trt.timing_caches == [b"", b"timings"]


def test_timings_that_cannot_be_saved_do_not_cost_the_engine(trt, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "cache").write_bytes(b"no folder")
    monkeypatch.setenv("CODETR_CACHE", str(tmp_path / "cache"))
    (tmp_path / "out").mkdir()
    written(tmp_path / "out")
    assert "net.engine" in names(tmp_path / "out")


def test_a_graph_that_tensorrt_cannot_read(trt: fake_tensorrt.State, tmp_path: Path) -> None:
    trt.parse_error = "In node 7: no importer for Nonsense"
    with pytest.raises(ResourceError, match=r"no importer for Nonsense.*--attention"):
        written(tmp_path)


def test_a_build_that_fails_gives_tensorrts_reason_and_the_memory(trt: fake_tensorrt.State, tmp_path: Path) -> None:
    trt.build_error = "Could not find any implementation: insufficient workspace"
    with pytest.raises(
        ResourceError, match=r"10.0 GiB of free GPU memory: Could not find any.*smaller --size"
    ) as found:
        written(tmp_path)
    assert found.value.exit_code == 5
    assert "net.engine" not in names(tmp_path)


def test_a_half_precision_network_that_is_read_as_float32_is_refused(trt: fake_tensorrt.State, tmp_path: Path) -> None:
    trt.layer_types = [fake_tensorrt.DataType.FLOAT]
    with pytest.raises(ResourceError, match="read the fp16 network as one of another precision"):
        written(tmp_path, precision="fp16")


def test_a_half_precision_network(trt: fake_tensorrt.State, tmp_path: Path) -> None:
    assert written(tmp_path, precision="fp16").precision == "fp16"
    assert "net.engine" in names(tmp_path)


def test_the_commands_of_the_page_write_what_it_says(codetr, tmp_path, tiny_settings, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(job.WRITERS, "onnx", tensorrt_engine.write_onnx)
    write_run(tmp_path / "runs/co_dino_r50/1", tiny_settings, "last")
    page = (REPOSITORY / "docs/export.md").read_text(encoding="utf-8")
    section = page.split("\n## Half precision and TensorRT\n")[1].split("\n## ")[0]
    lines = [line for block in fenced(section, "bash") for line in block.splitlines()]
    assert len(lines) == 3
    for line in lines:
        ran = codetr(*shlex.split(line)[1:])
        assert ran.code == 0, ran.err
        built = "no engine was built" in " ".join(ran.err.split())
        assert built == ("tensorrt" in line)
    assert sorted(path.name for path in tmp_path.glob("r50*") if not path.name.endswith(".sha256")) == [
        "r50_640.engine.json", "r50_640.engine.onnx", "r50_640.engine.trtexec.sh", "r50_fp16.onnx",
    ]  # fmt: skip
    command = (tmp_path / "r50_640.engine.trtexec.sh").read_text(encoding="utf-8")
    assert command.startswith("trtexec --onnx=r50_640.engine.onnx --saveEngine=r50_640.engine ")


def test_this_file_needs_no_gpu() -> None:
    assert tensorrt_engine.torch is torch
