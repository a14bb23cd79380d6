"""TensorRT engines by TensorRT, on tensors of PyTorch."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codetr_cli.errors import CheckpointError, ResourceError
from codetr_cli.inference.exported.engine_info import EngineInfo
from codetr_cli.inference.exported.metadata import (
    MAX_METADATA,
    ExportMetadata,
    input_names,
    output_names,
    parse_metadata,
)
from codetr_cli.inference.exported.trust import check_trusted
from codetr_cli.reading import read_bytes

logger = logging.getLogger(__name__)

MAX_ERRORS = 5


def sidecar_path(path: Path) -> Path:
    """The file with the metadata of an engine: engines have no place for them that other programs do not read."""
    return path.with_name(f"{path.name}.json")


class TensorRTEngine:
    """See `engine.Engine`.

    Args:
        runtime: an `IRuntime`, which must live as long as its engines.
        engine: an `ICudaEngine`; its tensors are those of the metadata.
        metadata: of the file.
        info: what runs where.
        device: a GPU.
        log: keeps what TensorRT reports.
    """

    def __init__(
        self, runtime: Any, engine: Any, metadata: ExportMetadata, info: EngineInfo, device: torch.device, log: Any
    ) -> None:
        self.metadata, self.info, self.device = metadata, info, device
        self._runtime, self._engine, self._log = runtime, engine, log
        self._context = engine.create_execution_context()
        if self._context is None:
            raise ResourceError(f"TensorRT has not enough memory on {device} to run this engine: {log.errors()}")
        # A context runs one batch at a time: one thread gives it work, in the order of one stream.
        self._lock, self._stream = threading.Lock(), _SideStream(device)
        first, *_ = input_names(metadata)
        self._most = metadata.input.batch or int(engine.get_tensor_profile_shape(first, 0)[2][0])
        trt = import_tensorrt()
        self._dtypes = {name: _dtype(trt, engine.get_tensor_dtype(name)) for name in _tensor_names(engine)}

    @classmethod
    def open(cls, path: Path, device: torch.device) -> TensorRTEngine:
        """Loads a file; as `engine.open_engine`."""
        trt = import_tensorrt()
        _check_device(device)
        metadata = _read_metadata(path)
        check_trusted(path)
        log = TensorRTLog.create(trt)
        load_plugins(trt, log)
        try:
            plan = read_bytes(path)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
        with _current(device):
            runtime = trt.Runtime(log)
            engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            built = metadata.versions.get("tensorrt", "an unknown release"), metadata.versions.get("gpu", "unknown GPU")
            raise CheckpointError(
                f"TensorRT {trt.__version__} cannot load {path}, which was built with {built[0]} on {built[1]}: "
                f"{log.errors() or 'it gave no reason'}. An engine runs with the release and on the kind of GPU that "
                "built it: export the checkpoint again here with --format tensorrt."
            )
        wanted, found = {*input_names(metadata), *output_names(metadata)}, set(_tensor_names(engine))
        if wanted != found:
            raise CheckpointError(
                f"{path} has the tensors {', '.join(sorted(found))}, and its metadata in {sidecar_path(path).name} "
                f"describe {', '.join(sorted(wanted))}: they are of different exports. Export the checkpoint again."
            )
        info = EngineInfo(f"TensorRT {trt.__version__}", str(device), metadata.precision)
        with _current(device):
            return cls(runtime, engine, metadata, info, device, log)

    def run(self, images: Tensor, image_sizes: Tensor) -> dict[str, Tensor]:
        """See `engine.Engine`; more images than the engine takes at once are run in several batches."""
        parts = [
            self._run(part, sizes)
            for part, sizes in zip(*(torch.split(each, self._most) for each in (images, image_sizes)), strict=True)
        ]
        if len(parts) == 1:
            return parts[0]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _run(self, images: Tensor, image_sizes: Tensor) -> dict[str, Tensor]:
        feeds = dict(zip(input_names(self.metadata), (images, image_sizes), strict=True))
        feeds = {name: value.to(self.device, self._dtypes[name]).contiguous() for name, value in feeds.items()}
        context = self._context
        with self._lock, _current(self.device), self._stream as stream:
            for name, value in feeds.items():
                if not context.set_input_shape(name, tuple(value.shape)):
                    raise CheckpointError(
                        f"this engine does not take {name} of shape {tuple(value.shape)}: {self._log.errors()}"
                    )
                context.set_tensor_address(name, value.data_ptr())
            outputs = {}
            for name in output_names(self.metadata):
                shape = tuple(context.get_tensor_shape(name))
                outputs[name] = torch.empty(shape, dtype=self._dtypes[name], device=self.device)
                context.set_tensor_address(name, outputs[name].data_ptr())
            if not context.execute_async_v3(stream):
                raise _run_error(self._log.errors(), self.device)
        return outputs


class TensorRTLog:
    """Keeps TensorRT's last errors; warnings go to the log of codetr."""

    @staticmethod
    def create(trt: Any) -> Any:
        """A logger for TensorRT, with a method `errors` that gives the last ones as text and forgets them."""

        class Log(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)
                self._errors: list[str] = []

            def log(self, severity: Any, message: str) -> None:
                if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                    self._errors = [*self._errors[1 - MAX_ERRORS :], message]
                elif severity == trt.ILogger.Severity.WARNING:
                    logger.debug("TensorRT: %s", message)

            def errors(self) -> str:
                text, self._errors = "; ".join(self._errors), []
                return text

        return Log()


def import_tensorrt() -> Any:
    """The package.

    Raises:
        ResourceError: it is not installed, or cannot be loaded.
    """
    try:
        import tensorrt
    except ImportError as error:
        raise ResourceError(
            f"TensorRT engines need TensorRT, which is not installed ({error}): pip install 'codetr-cli[tensorrt]'"
        ) from error
    return tensorrt


def load_plugins(trt: Any, log: Any) -> None:
    """Registers the plugins that come with TensorRT; a graph may use one of them for its attention."""
    trt.init_libnvinfer_plugins(log, "")


def _run_error(text: str, device: torch.device) -> Exception:
    """What an error of a run means."""
    if "memory" in text.lower():
        return MemoryError(f"TensorRT has not enough memory on {device}: {text}")  # halves the batch, as PyTorch's does
    return CheckpointError(f"TensorRT cannot run the engine on {device}: {text} Export the checkpoint again here.")


def _tensor_names(engine: Any) -> list[str]:
    return [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]


def _dtype(trt: Any, kind: Any) -> torch.dtype:
    names = {"FLOAT": torch.float32, "HALF": torch.float16, "INT64": torch.int64, "INT32": torch.int32}
    names |= {"UINT8": torch.uint8, "BF16": torch.bfloat16}
    return next(dtype for name, dtype in names.items() if getattr(trt.DataType, name) == kind)


def _read_metadata(path: Path) -> ExportMetadata:
    sidecar = sidecar_path(path)
    try:
        text = read_bytes(sidecar, limit=4 * MAX_METADATA).decode("utf-8")
    except FileNotFoundError:
        if not path.is_file():
            raise CheckpointError(f"there is no engine {path}") from None
        raise CheckpointError(
            f"{path} has no {sidecar.name} beside it, which says how its input is prepared: copy both files, or export "
            "the checkpoint again with --format tensorrt"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{sidecar} cannot be read: {error}") from error
    return parse_metadata(text, str(sidecar))


def _check_device(device: torch.device) -> None:
    if device.type != "cuda":
        raise ResourceError(f"TensorRT engines run on NVIDIA GPUs, not on {device}: use --device cuda")


@contextlib.contextmanager
def _current(device: torch.device) -> Iterator[None]:
    with torch.cuda.device(device):
        yield


class _SideStream:
    """A stream other than the default one, which TensorRT would wait for.

    As a context it gives the stream's handle: its work starts after the caller's, whose stream waits for it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __enter__(self) -> int:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        return int(self._stream.cuda_stream)

    def __exit__(self, *raised: object) -> None:
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
