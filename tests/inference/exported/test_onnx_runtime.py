"""ONNX files in ONNX Runtime: what runs where, on the CPU and on a GPU that is not there."""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("onnx", reason="the optional package onnx writes the files")
pytest.importorskip("onnxruntime", reason="the optional package ONNX Runtime runs the files")

import onnx

from codetr_cli.errors import CheckpointError, ResourceError
from codetr_cli.inference.exported import onnx_runtime
from codetr_cli.inference.exported.engine_info import EngineInfo
from codetr_cli.inference.exported.onnx_runtime import OnnxRuntimeEngine
from tests.inference.exported import handmade

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 1)
INPUT = (1, 3, 96, 160)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return handmade.write_onnx(tmp_path_factory.mktemp("onnx") / "model.onnx")


def inputs(batch: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, *INPUT[1:], generator=generator), torch.tensor([[96, 160]] * batch)


def test_what_runs_where(path: Path):
    engine = OnnxRuntimeEngine.open(path, CPU)
    assert engine.info.library.startswith("ONNX Runtime 1.")
    assert (engine.info.provider, engine.info.precision) == ("CPUExecutionProvider", "fp32")
    assert engine.info.elsewhere in (0, None)
    assert "on the CPU" not in str(engine.info)
    found = engine.run(*inputs(3))
    assert {name: tuple(value.shape) for name, value in found.items()} == {"logits": (3, 30, 3), "boxes": (3, 30, 4)}


def test_threads_are_those_of_torch(path: Path):
    torch.set_num_threads(2)
    assert OnnxRuntimeEngine.open(path, CPU)._session.get_session_options().intra_op_num_threads == 2


def test_several_threads_use_one_session(path: Path):
    engine = OnnxRuntimeEngine.open(path, CPU)
    expected = {batch: engine.run(*inputs(batch)) for batch in (1, 2, 3)}
    wrong: list[int] = []

    def work(batch: int) -> None:
        for _ in range(10):
            found = engine.run(*inputs(batch))
            wrong.extend(batch for name, value in found.items() if not torch.equal(value, expected[batch][name]))

    threads = [threading.Thread(target=work, args=(batch,)) for batch in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_files_of_others_are_refused(tmp_path: Path):
    path = tmp_path / "model.onnx"
    onnx.save_model(handmade.build_model(None), str(path))
    with pytest.raises(CheckpointError, match="not written by `codetr export`"):
        OnnxRuntimeEngine.open(path, CPU)


def test_a_graph_that_onnx_runtime_cannot_load(tmp_path: Path):
    model = handmade.build_model(handmade.metadata_of())
    model.graph.node[0].op_type = "NoSuchOperator"
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match=r"cannot load .*NoSuchOperator"):
        OnnxRuntimeEngine.open(path, CPU)


def test_outputs_that_are_not_those_of_the_metadata(tmp_path: Path):
    text = handmade.metadata_of(postprocess=True).to_json()
    path = tmp_path / "model.onnx"
    onnx.save_model(handmade.build_model(handmade.metadata_of(), text=text), str(path))
    with pytest.raises(CheckpointError, match="it was changed after the export"):
        OnnxRuntimeEngine.open(path, CPU)


def test_an_input_of_another_size_is_no_traceback(path: Path):
    engine = OnnxRuntimeEngine.open(path, CPU)
    with pytest.raises(CheckpointError, match="cannot run the file"):
        engine.run(torch.zeros(1, 3, 64, 64), torch.tensor([[64, 64]]))


def test_memory_that_runs_out_is_known_as_such():
    error = RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer")
    assert isinstance(onnx_runtime._run_error(error), MemoryError)
    assert isinstance(onnx_runtime._run_error(RuntimeError("std::bad_alloc")), MemoryError)
    assert isinstance(onnx_runtime._run_error(RuntimeError("INVALID_ARGUMENT")), CheckpointError)


def test_onnx_runtime_is_not_installed(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ResourceError, match=r"pip install 'codetr-cli\[onnx\]'"):
        OnnxRuntimeEngine.open(path, CPU)
    assert not onnx_runtime.has_gpu_provider()


# ------------------------------------------------------------------------------------------------------------ GPUs


class FakeBinding:
    """Notes addresses, as a binding of a GPU does."""

    def __init__(self) -> None:
        self.inputs: dict[str, Any] = {}
        self.outputs: dict[str, Any] = {}
        self.synchronized = False

    def bind_input(self, *arguments: Any) -> None:
        self.inputs[arguments[0]] = arguments[1:]

    def bind_output(self, *arguments: Any) -> None:
        self.outputs[arguments[0]] = arguments[1:]

    def synchronize_outputs(self) -> None:
        self.synchronized = True


class FakeSession:
    """A session with a GPU's provider, whose run writes to the bound addresses."""

    def __init__(self, provider: str = "CUDAExecutionProvider", nodes: dict[str, int] | None = None) -> None:
        self.provider, self.nodes = provider, nodes or {}
        self.binding = FakeBinding()
        self.streams = 0

    def get_providers(self) -> list[str]:
        return [self.provider, "CPUExecutionProvider"]

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="images"), SimpleNamespace(name="image_sizes")]

    def get_outputs(self) -> list[Any]:
        return [
            SimpleNamespace(name="logits", shape=["batch", 30, 3], type="tensor(float)"),
            SimpleNamespace(name="boxes", shape=["batch", 30, 4], type="tensor(float)"),
        ]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        return [
            SimpleNamespace(ep_name=name, get_nodes=lambda count=count: [None] * count)
            for name, count in self.nodes.items()
        ]

    def io_binding(self) -> FakeBinding:
        return self.binding

    def run_with_iobinding(self, binding: FakeBinding) -> None:
        assert self.streams == 1, "the inputs may not be complete"
        device, index, dtype, shape, address = binding.inputs["images"]
        assert (device, index, dtype) == ("cuda", 0, "float32")
        pixels = np.ctypeslib.as_array(
            ctypes.cast(address, ctypes.POINTER(ctypes.c_float)), shape=(int(np.prod(shape)),)
        )
        for name, value in (("logits", pixels.sum()), ("boxes", pixels.max())):
            device, index, dtype, shape, address = binding.outputs[name]
            assert (device, dtype) == ("cuda", "float32")
            output = ctypes.cast(address, ctypes.POINTER(ctypes.c_float))
            np.ctypeslib.as_array(output, shape=(int(np.prod(shape)),))[:] = value


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> FakeSession:
    fake = FakeSession(nodes={"CUDAExecutionProvider": 700, "CPUExecutionProvider": 12})

    def synchronize() -> None:
        fake.streams += 1

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(synchronize=synchronize))
    return fake


def test_tensors_of_a_gpu_are_not_copied(session: FakeSession, monkeypatch: pytest.MonkeyPatch):
    info = EngineInfo("ONNX Runtime", "CUDAExecutionProvider", "fp32")
    engine = OnnxRuntimeEngine(session, handmade.metadata_of(), info, CPU)
    monkeypatch.setattr(torch.Tensor, "numpy", lambda self: pytest.fail("a copy to the host"))
    images, sizes = inputs(2)
    found = engine._run_on_gpu({"images": images, "image_sizes": sizes})
    assert session.binding.synchronized
    assert session.binding.inputs["image_sizes"][2:4] == ("int64", (2, 2))
    assert tuple(found["logits"].shape) == (2, 30, 3)
    torch.testing.assert_close(found["boxes"], torch.full((2, 30, 4), images.max().item()))
    torch.testing.assert_close(found["logits"], torch.full((2, 30, 3), images.sum().item()), rtol=1e-3, atol=1e-3)


class FakeRuntime:
    """The module onnxruntime of a machine with some providers."""

    __version__ = "1.99.0"

    def __init__(self, session: FakeSession, *providers: str) -> None:
        self.session, self.providers, self.given = session, providers, {}
        self.InferenceSession = self._start

    def get_available_providers(self) -> list[str]:
        return [*self.providers, "CPUExecutionProvider"]

    def SessionOptions(self) -> Any:  # noqa: N802 (its name)
        return SimpleNamespace(add_session_config_entry=lambda name, value: None)

    def _start(self, path: str, options: Any, **given: Any) -> FakeSession:
        self.given = given
        return self.session


def test_nodes_that_fall_to_the_cpu_are_counted(path: Path, session: FakeSession, monkeypatch: pytest.MonkeyPatch):
    runtime = FakeRuntime(session, "CUDAExecutionProvider")
    monkeypatch.setattr(onnx_runtime, "_import_runtime", lambda: runtime)
    engine = OnnxRuntimeEngine.open(path, CUDA)
    assert str(engine.info).endswith("CUDAExecutionProvider, fp32, 12 of 712 nodes on the CPU")
    assert engine.info.as_dict()["nodes_on_cpu"] == 12
    # TF32 is no fp32
    assert runtime.given["providers"] == [("CUDAExecutionProvider", {"device_id": "1", "use_tf32": "0"})]


def test_no_provider_for_the_device(path: Path, session: FakeSession, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(onnx_runtime, "_import_runtime", lambda: FakeRuntime(session))
    with pytest.raises(ResourceError, match=r"no execution provider for the device cuda:1.*onnxruntime-gpu"):
        OnnxRuntimeEngine.open(path, CUDA)
    with pytest.raises(ResourceError, match=r"no execution provider for the device mps"):
        OnnxRuntimeEngine.open(path, torch.device("mps"))


def test_a_provider_that_does_not_start(path: Path, monkeypatch: pytest.MonkeyPatch):
    runtime = FakeRuntime(FakeSession("CPUExecutionProvider"), "CUDAExecutionProvider")
    monkeypatch.setattr(onnx_runtime, "_import_runtime", lambda: runtime)
    with pytest.raises(ResourceError, match="would use CPUExecutionProvider"):
        OnnxRuntimeEngine.open(path, CUDA)


def test_nodes_are_not_known_in_older_releases():
    class Old(FakeSession):
        def get_provider_graph_assignment_info(self) -> list[Any]:
            raise RuntimeError("no such function")

    assert onnx_runtime._assigned(Old(), "CUDAExecutionProvider") == (None, None)
