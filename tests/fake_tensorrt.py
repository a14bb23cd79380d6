"""A strict stand-in for TensorRT's Python package, with the signatures of its release 11.

It keeps the rules whose violation gives wrong results or a crash on a GPU: shapes before addresses and before output
shapes, shapes within the profile, addresses of all tensors, contiguous memory that is alive, a stream that is not the
default one. An engine is the ONNX file that it was built from, and ONNX Runtime computes what the GPU would.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import importlib
import itertools
import json
import sys
import types
from typing import Any

import numpy as np
import pytest

VERSION = "11.4.0.106"


class DataType(enum.Enum):
    FLOAT, HALF, INT64, INT32, UINT8, BF16 = range(6)


DTYPES = {DataType.FLOAT: np.float32, DataType.INT64: np.int64, DataType.UINT8: np.uint8, DataType.HALF: np.float16}
ONNX_TYPES = {
    1: DataType.FLOAT,
    2: DataType.UINT8,
    6: DataType.INT32,
    7: DataType.INT64,
    10: DataType.HALF,
    16: DataType.BF16,
}


class ILogger:
    """TensorRT refuses loggers whose base class was not initialised."""

    class Severity(enum.Enum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self) -> None:
        self.initialised = True


class NetworkDefinitionCreationFlag(enum.IntEnum):
    EXPLICIT_BATCH, STRONGLY_TYPED = 0, 1


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0


class _Layer:
    num_outputs = 1

    def __init__(self, dtype: DataType) -> None:
        self.dtype = dtype

    def get_output(self, index: int) -> Any:
        return types.SimpleNamespace(dtype=self.dtype)


class _Network:
    def __init__(self, flags: int) -> None:
        self.flags, self.onnx, self.layers = flags, b"", []

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def get_layer(self, index: int) -> _Layer:
        return self.layers[index]


class _Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        if not all(low <= usual <= high for low, usual, high in zip(min, opt, max, strict=True)):
            raise ValueError(f"{input}: {min} <= {opt} <= {max} does not hold")
        self.shapes[input] = tuple(min), tuple(opt), tuple(max)


class _Config:
    def __init__(self, state: State) -> None:
        self.state, self.profiles, self.limits, self.cache = state, [], {}, None

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        assert isinstance(pool_size, int)
        self.limits[pool] = pool_size

    def add_optimization_profile(self, profile: _Profile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
        self.state.timing_caches.append(serialized_timing_cache)
        return types.SimpleNamespace(serialize=lambda: b"timings")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self.cache


class State:
    """What happened in the fake, and what it shall do wrong."""

    def __init__(self) -> None:
        self.plugins_loaded = False
        self.parse_error: str | None = None
        self.build_error: str | None = None
        self.layer_types: list[DataType] | None = None
        self.timing_caches: list[bytes] = []
        self.limits: dict[MemoryPoolType, int] = {}
        self.version = VERSION
        self.batches: list[int] = []


class _Engine:
    def __init__(self, state: State, onnx: bytes, shapes: dict[str, Any]) -> None:
        import onnx as package

        self.state, self.onnx, self.shapes = state, onnx, shapes
        graph = package.load_model_from_string(onnx).graph
        self.inputs = [value.name for value in graph.input]
        self.types = {value.name: value.type.tensor_type for value in (*graph.input, *graph.output)}

    @property
    def num_io_tensors(self) -> int:
        return len(self.types)

    def get_tensor_name(self, index: int) -> str:
        return list(self.types)[index]

    def get_tensor_dtype(self, name: str) -> DataType:
        return ONNX_TYPES[self.types[name].elem_type]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        assert profile_index == 0
        return [tuple(shape) for shape in self.shapes[name]]

    def create_execution_context(self) -> _Context:
        return _Context(self)


class _Context:
    def __init__(self, engine: _Engine) -> None:
        import onnxruntime

        self.engine = engine
        self.given: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.session = onnxruntime.InferenceSession(engine.onnx, providers=["CPUExecutionProvider"])

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name in self.engine.inputs, f"{name} is no input"
        least, _, most = self.engine.shapes[name]
        if len(shape) != len(least) or not all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True)):
            return False
        self.given[name] = tuple(shape)
        # Addresses of before are of freed memory, or too small.
        self.addresses = {
            each: at for each, at in self.addresses.items() if each in self.engine.inputs and each != name
        }
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        dims = self.engine.types[name].shape.dim
        assert set(self.given) == set(self.engine.inputs), "output shapes are known when all input shapes are"
        batch = next(iter(self.given.values()))[0]
        return tuple(dim.dim_value or batch for dim in dims)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert isinstance(memory, int)
        assert memory, f"{name} has no memory"
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle, "the default stream makes TensorRT wait"
        missing = set(self.engine.types) - set(self.addresses)
        assert not missing, f"no address of {missing}"
        feeds = {name: self._array(name, self.given[name]).copy() for name in self.engine.inputs}
        names = [name for name in self.engine.types if name not in self.engine.inputs]
        for name, value in zip(names, self.session.run(names, feeds), strict=True):
            self._array(name, self.get_tensor_shape(name))[...] = value
        self.engine.state.batches.append(next(iter(self.given.values()))[0])
        self.addresses.clear()
        return True

    def _array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        dtype = np.dtype(DTYPES[self.engine.get_tensor_dtype(name)])
        size = int(np.prod(shape)) * dtype.itemsize
        memory = (ctypes.c_char * size).from_address(self.addresses[name])
        return np.frombuffer(memory, dtype).reshape(shape)


def install(monkeypatch: pytest.MonkeyPatch) -> State:
    """Puts the fake in the place of `tensorrt` and of CUDA in the modules that use it."""
    state = State()
    module = types.ModuleType("tensorrt")

    class Builder:
        def __init__(self, logger: ILogger) -> None:
            assert logger.initialised
            self.logger = logger

        def create_network(self, flags: int = 0) -> _Network:
            return _Network(flags)

        def create_builder_config(self) -> _Config:
            return _Config(state)

        def create_optimization_profile(self) -> _Profile:
            return _Profile()

        def build_serialized_network(self, network: _Network, config: _Config) -> bytes | None:
            assert network.flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED, "types of layers are free"
            assert network.onnx, "nothing was parsed"
            state.limits = config.limits
            (profile,) = config.profiles
            if state.build_error:
                self.logger.log(ILogger.Severity.ERROR, state.build_error)
                return None
            return json.dumps([state.version, profile.shapes, network.onnx.hex()]).encode()

    class OnnxParser:
        def __init__(self, network: _Network, logger: ILogger) -> None:
            assert state.plugins_loaded, "plugins of the graph are unknown before init_libnvinfer_plugins"
            self.network = network

        @property
        def num_errors(self) -> int:
            return 1 if state.parse_error else 0

        def get_error(self, index: int) -> str | None:
            return state.parse_error

        def parse_from_file(self, model: str) -> bool:
            import onnx

            if state.parse_error:
                return False
            loaded = onnx.load(model)
            found = [ONNX_TYPES.get(v.type.tensor_type.elem_type, DataType.INT32) for v in loaded.graph.value_info]
            self.network.layers = [_Layer(dtype) for dtype in state.layer_types or found]
            self.network.onnx = loaded.SerializeToString()
            return True

    class Runtime:
        def __init__(self, logger: ILogger) -> None:
            assert logger.initialised
            self.logger = logger

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> _Engine | None:
            try:
                version, shapes, onnx = json.loads(serialized_engine)
            except ValueError:
                self.logger.log(ILogger.Severity.ERROR, "Magic tag does not match")
                return None
            if version != state.version:
                self.logger.log(ILogger.Severity.ERROR, "Version tag does not match")
                return None
            return _Engine(state, bytes.fromhex(onnx), shapes)

    def init_libnvinfer_plugins(logger: ILogger, namespace: str) -> bool:
        assert namespace == ""
        state.plugins_loaded = True
        return True

    for each in (
        Builder, OnnxParser, Runtime, ILogger, DataType, NetworkDefinitionCreationFlag, MemoryPoolType,
        init_libnvinfer_plugins,
    ):  # fmt: skip
        setattr(module, each.__name__, each)
    module.__version__ = VERSION  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    _install_cuda(monkeypatch)
    return state


def _install_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of the host stand for those of a GPU."""
    handles = itertools.count(1)

    class Stream:
        def __init__(self, device: Any) -> None:
            self.cuda_stream, self.waited_for = next(handles), []

        def wait_stream(self, other: Any) -> None:
            self.waited_for.append(other)

    current = Stream(None)
    current.cuda_stream = 0
    fake = types.SimpleNamespace(
        Stream=Stream,
        current_stream=lambda device: current,
        device=lambda device: contextlib.nullcontext(),
        is_available=lambda: True,
        mem_get_info=lambda: (10 * 2**30, 16 * 2**30),
        get_device_name=lambda: "NVIDIA Fake 1",
    )
    for name in ("codetr_cli.inference.exported.tensorrt", "codetr_cli.export.tensorrt_engine"):
        module = importlib.import_module(name)
        monkeypatch.setattr(module, "torch", _Torch(module.torch, fake))
    monkeypatch.setattr("codetr_cli.inference.exported.tensorrt._check_device", lambda device: None)


class _Torch:
    """PyTorch with another `cuda`."""

    def __init__(self, real: Any, cuda: Any) -> None:
        self.real, self.cuda = real, cuda

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)
