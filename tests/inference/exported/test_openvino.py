"""OpenVINO files: the arithmetic that was exported, and files of unknown origin."""

from __future__ import annotations

import random
import shutil
import sys
import threading
from pathlib import Path

import pytest
import torch

pytest.importorskip("onnx", reason="the optional package onnx writes the files")
pytest.importorskip("openvino", reason="the optional package OpenVINO runs the files")

from codetr_cli.errors import CheckpointError, CodetrError, ResourceError
from codetr_cli.export.openvino_model import read_onnx, save_openvino
from codetr_cli.inference.exported.engine import open_engine
from codetr_cli.inference.exported.onnx_runtime import OnnxRuntimeEngine
from codetr_cli.inference.exported.openvino import OpenVinoEngine
from tests.inference.exported import handmade

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return handmade.write_openvino(tmp_path_factory.mktemp("openvino") / "model.xml")


@pytest.fixture
def own(path: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copy(path.with_suffix(".bin"), tmp_path / "model.bin")
    return Path(shutil.copy(path, tmp_path / "model.xml"))


def inputs(batch: int = 1, size: tuple[int, int] = (96, 160)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, 3, *size, generator=generator), torch.tensor([list(size)] * batch)


def test_float32_is_float32(path: Path):
    engine = OpenVinoEngine.open(path, CPU)
    assert engine.info.library.startswith("OpenVINO 20")
    assert (engine.info.provider, engine.info.precision, engine.info.elsewhere) == ("CPU", "fp32", 0)


def test_the_numbers_are_those_of_onnx_runtime(tmp_path: Path):
    pytest.importorskip("onnxruntime", reason="the optional package ONNX Runtime is the reference")
    onnx = OnnxRuntimeEngine.open(handmade.write_onnx(tmp_path / "model.onnx", dynamic_size=True), CPU)
    openvino = OpenVinoEngine.open(handmade.write_openvino(tmp_path / "model.xml", dynamic_size=True), CPU)
    for batch, size in ((1, (96, 160)), (3, (160, 96)), (2, (64, 64)), (1, (96, 160))):
        expected, found = onnx.run(*inputs(batch, size)), openvino.run(*inputs(batch, size))
        assert list(found) == list(expected)
        for name, value in expected.items():
            assert found[name].dtype == value.dtype
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)


def test_half_precision_is_that_of_the_weights(path: Path, tmp_path: Path):
    small = handmade.write_openvino(tmp_path / "small.xml", precision="fp16")
    assert small.with_suffix(".bin").stat().st_size < 0.7 * path.with_suffix(".bin").stat().st_size
    engine = OpenVinoEngine.open(small, CPU)
    assert engine.info.precision == "fp32 with fp16 weights"
    assert engine.metadata.precision == "fp16"


def test_outputs_are_not_overwritten_by_the_next_run(path: Path):
    engine = OpenVinoEngine.open(path, CPU)
    first = engine.run(*inputs(1))
    before = first["logits"].clone()
    engine.run(*inputs(2))
    assert torch.equal(first["logits"], before)


def test_several_threads_use_one_request(path: Path):
    engine = OpenVinoEngine.open(path, CPU)
    expected = {batch: engine.run(*inputs(batch)) for batch in (1, 2, 3)}
    wrong: list[int] = []

    def work(batch: int) -> None:
        for _ in range(20):
            try:
                found = engine.run(*inputs(batch))
                wrong.extend(batch for name, value in found.items() if not torch.equal(value, expected[batch][name]))
            except Exception:
                wrong.append(batch)

    threads = [threading.Thread(target=work, args=(batch,)) for batch in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_threads_are_those_of_torch(path: Path):
    torch.set_num_threads(2)
    engine = OpenVinoEngine.open(path, CPU)
    assert engine._request.get_compiled_model().get_property("INFERENCE_NUM_THREADS") == 2


def test_processors_that_are_not_here(path: Path):
    with pytest.raises(ResourceError, match=r"finds no NPU here, only .*CPU"):
        open_engine(path, CPU, "NPU")
    with pytest.raises(ResourceError, match=r"does not run on the device cuda: use --device cpu"):
        open_engine(path, torch.device("cuda"))


def test_openvino_is_not_installed(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ResourceError, match=r"pip install 'codetr-cli\[openvino\]'"):
        OpenVinoEngine.open(path, CPU)


def test_the_weights_are_missing(own: Path):
    own.with_suffix(".bin").unlink()
    with pytest.raises(CheckpointError, match=r"model\.bin, which cannot be read.*Copy both files"):
        OpenVinoEngine.open(own, CPU)


def test_the_weights_are_truncated(own: Path):
    weights = own.with_suffix(".bin")
    weights.write_bytes(weights.read_bytes()[:-2000])
    with pytest.raises(CheckpointError, match="cannot be read as an OpenVINO model"):
        OpenVinoEngine.open(own, CPU)


def test_entities_are_refused(own: Path):
    bomb = '<!DOCTYPE net [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]>'
    own.write_text(own.read_text().replace("?>", f"?>{bomb}", 1))
    with pytest.raises(CheckpointError, match="XML entities"):
        OpenVinoEngine.open(own, CPU)


@pytest.mark.parametrize("text", ["", "<annotation/>", '<?xml version="1.0"?><annotation/>', "PK\x03\x04", "\xff<net"])
def test_other_xml_files(own: Path, text: str):
    own.write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match="is not an OpenVINO model"):
        OpenVinoEngine.open(own, CPU)


def test_models_of_others(tmp_path: Path):
    import openvino

    openvino.save_model(read_onnx(handmade.build_model(None)), str(tmp_path / "model.xml"))
    with pytest.raises(CheckpointError, match="not written by `codetr export`"):
        OpenVinoEngine.open(tmp_path / "model.xml", CPU)


def test_outputs_that_are_not_those_of_the_metadata(tmp_path: Path):
    model = read_onnx(handmade.build_model(handmade.metadata_of()))
    save_openvino(model, handmade.metadata_of(postprocess=True), tmp_path / "model.xml")
    with pytest.raises(CheckpointError, match="it was changed after the export"):
        OpenVinoEngine.open(tmp_path / "model.xml", CPU)


def test_an_input_of_another_size_is_no_traceback(path: Path):
    engine = OpenVinoEngine.open(path, CPU)
    with pytest.raises(CheckpointError, match="cannot run the file"):
        engine.run(*inputs(1, (64, 64)))


def test_damaged_files_are_our_errors(own: Path):
    content, generator, refused = own.read_bytes(), random.Random(0), 0
    for _ in range(40):
        damaged = bytearray(content[: generator.randrange(len(content))] if generator.random() < 0.5 else content)
        for _ in range(generator.choice([0, 1, 20])):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        own.write_bytes(damaged)
        try:
            OpenVinoEngine.open(own, CPU)
        except CodetrError:
            refused += 1
    assert refused > 20
