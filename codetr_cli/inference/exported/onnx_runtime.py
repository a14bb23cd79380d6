"""ONNX files by ONNX Runtime."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codetr_cli.errors import CheckpointError, ResourceError, is_out_of_memory
from codetr_cli.inference.exported.engine_info import EngineInfo, first_line
from codetr_cli.inference.exported.metadata import ExportMetadata, input_names, output_names, parse_metadata
from codetr_cli.inference.exported.onnx_check import check_onnx
from codetr_cli.ops.deform_attn_export import PLUGIN_NAME

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
PROVIDERS = {"cuda": (CUDA, "ROCMExecutionProvider", "MIGraphXExecutionProvider"), "cpu": (CPU,)}
"""Execution providers of each device type, the first one that is there counts."""

NUMPY_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
}
"""Names of the types of inputs and outputs, for NumPy and torch."""


class OnnxRuntimeEngine:
    """See `engine.Engine`."""

    def __init__(self, session: Any, metadata: ExportMetadata, info: EngineInfo, device: torch.device) -> None:
        self._session, self.metadata, self.info, self.device = session, metadata, info, device
        self._outputs = {output.name: output for output in session.get_outputs()}
        self._lock = threading.Lock()  # of a binding; a session by itself may run in several threads at once

    @classmethod
    def open(cls, path: Path, device: torch.device) -> OnnxRuntimeEngine:
        """Loads a file; as `engine.open_engine`."""
        metadata = parse_metadata(check_onnx(path).metadata, str(path))
        runtime = _import_runtime()
        provider = _provider(runtime, device)
        try:
            session = runtime.InferenceSession(
                str(path),
                _session_options(runtime),
                providers=[(provider, _provider_options(provider, device))],
                enable_fallback=0,  # to the CPU, with a note on the terminal only
            )
        except Exception as error:  # ONNX Runtime's errors have no common class
            if is_out_of_memory(error):
                raise ResourceError(f"{path} does not fit into memory: {first_line(error)}") from error
            raise CheckpointError(
                f"ONNX Runtime {runtime.__version__} cannot load {path}: {_explained(first_line(error))}"
            ) from error
        _check_names(session, metadata, path)
        return cls(session, metadata, _describe(runtime, session, metadata, provider, path), device)

    def run(self, images: Tensor, image_sizes: Tensor) -> dict[str, Tensor]:
        """See `engine.Engine`."""
        inputs = dict(zip(input_names(self.metadata), (images, image_sizes), strict=True))
        try:
            if self.device.type == "cuda":
                with self._lock:
                    return self._run_on_gpu(inputs)
            outputs = self._session.run(list(self._outputs), {name: value.numpy() for name, value in inputs.items()})
        except Exception as error:
            raise _run_error(error) from error
        return {name: torch.from_numpy(value) for name, value in zip(self._outputs, outputs, strict=True)}

    def _run_on_gpu(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Inputs and outputs stay in the memory of the GPU, which torch owns."""
        index = self.device.index or 0
        binding = self._session.io_binding()
        for name, value in inputs.items():
            # The binding has an address only: the tensor lives in `inputs` until the run is over.
            binding.bind_input(name, "cuda", index, _numpy_type(value), tuple(value.shape), value.data_ptr())
        results: dict[str, Tensor] = {}
        for name, output in self._outputs.items():
            shape = [len(inputs["images"]), *output.shape[1:]]
            if not all(isinstance(side, int) for side in shape):  # known after the run only
                binding.bind_output(name, "cpu")
                continue
            dtype = getattr(torch, NUMPY_TYPES[output.type])
            results[name] = torch.empty(shape, dtype=dtype, device=self.device)
            binding.bind_output(name, "cuda", index, NUMPY_TYPES[output.type], shape, results[name].data_ptr())
        # ONNX Runtime has a stream of its own: inputs must be complete before, and outputs after it.
        torch.cuda.current_stream(self.device).synchronize()
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        if len(results) < len(self._outputs):
            for name, value in zip(self._outputs, binding.get_outputs(), strict=True):
                if name not in results:
                    results[name] = torch.from_numpy(value.numpy()).to(self.device)
        return results


def has_gpu_provider() -> bool:
    """Whether ONNX Runtime is installed with a provider for the GPUs that PyTorch calls CUDA."""
    try:
        runtime = _import_runtime()
    except ResourceError:
        return False
    return any(name in runtime.get_available_providers() for name in PROVIDERS["cuda"])


def _provider(runtime: Any, device: torch.device) -> str:
    available = runtime.get_available_providers()
    provider = next((name for name in PROVIDERS.get(device.type, ()) if name in available), None)
    if provider is None:
        install = " or install onnxruntime-gpu instead of onnxruntime," if device.type == "cuda" else ""
        raise ResourceError(
            f"ONNX Runtime {runtime.__version__} has no execution provider for the device {device} here; it has "
            f"{', '.join(available)}. Use --device cpu,{install} or the checkpoint itself."
        )
    return provider


def _provider_options(provider: str, device: torch.device) -> dict[str, str]:
    if provider == CPU:
        return {}
    options = {"device_id": str(device.index or 0)}
    if provider == CUDA:  # by default it computes float32 in TF32, which PyTorch and the other libraries do not
        options["use_tf32"] = "0"
    return options


def _session_options(runtime: Any) -> Any:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    # Threads that wait would keep the cores from those that read images.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if hasattr(runtime.InferenceSession, "get_provider_graph_assignment_info"):
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def _check_names(session: Any, metadata: ExportMetadata, path: Path) -> None:
    found = ([each.name for each in session.get_inputs()], [each.name for each in session.get_outputs()])
    wanted = (input_names(metadata), output_names(metadata))
    if found != wanted or any(each.type not in NUMPY_TYPES for each in session.get_outputs()):
        raise CheckpointError(
            f"{path} has the inputs {found[0]} and outputs {found[1]}, and by its metadata they are {wanted[0]} and "
            f"{wanted[1]}: it was changed after the export. Export it again."
        )


def _describe(runtime: Any, session: Any, metadata: ExportMetadata, provider: str, path: Path) -> EngineInfo:
    library = f"ONNX Runtime {runtime.__version__}"
    used = session.get_providers()[0]
    if used != provider:  # ONNX Runtime starts without a provider whose libraries it cannot load
        raise ResourceError(
            f"{library} cannot use {provider} for {path} and would use {used}: a library of the GPU is missing or of "
            "another release, see its log above. Use --device cpu, or install what the provider needs."
        )
    elsewhere, nodes = _assigned(session, provider)
    return EngineInfo(library, provider, metadata.precision, elsewhere, nodes)


def _assigned(session: Any, provider: str) -> tuple[int | None, int | None]:
    """Nodes that another provider runs, and all of them; None where ONNX Runtime does not say."""
    try:
        parts = session.get_provider_graph_assignment_info()
    except Exception:  # older releases, and builds without it
        return None, None
    counts = [(part.ep_name, len(part.get_nodes())) for part in parts]
    return sum(count for name, count in counts if name != provider), sum(count for _, count in counts)


def _explained(message: str) -> str:
    """ONNX Runtime's reason not to load a file, with what to do where that is known."""
    if PLUGIN_NAME in message:
        return (
            f"its attention is TensorRT's plugin {PLUGIN_NAME}, which only TensorRT has. Build an engine from it with "
            "`trtexec --onnx=FILE`, or export the checkpoint again with --attention gridsample."
        )
    if "bfloat16" in message:
        return f"it does not compute convolutions in bfloat16. Export the checkpoint again with fp16 or fp32. {message}"
    if "NOT_IMPLEMENTED" in message:
        return f"it has no kernel for a node of this file here; fp32 on the CPU has all. {message}"
    return f"{message} The file is damaged, or needs a newer release. Export it again."


def _run_error(error: Exception) -> Exception:
    """What an error of a run means."""
    text = first_line(error)
    if is_out_of_memory(error) or "Failed to allocate memory" in text:
        return MemoryError(f"ONNX Runtime has not enough memory: {text}")  # halves the batch, as PyTorch's error does
    return CheckpointError(f"ONNX Runtime cannot run the file: {text} Export it again, or use the checkpoint itself.")


def _numpy_type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _import_runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ResourceError(
            "ONNX files need ONNX Runtime, which is not installed: pip install 'codetr-cli[onnx]'"
        ) from error
    return onnxruntime
