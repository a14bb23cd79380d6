"""ONNX files by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codetr_cli.errors import CheckpointError, ResourceError
from codetr_cli.inference.exported.engine import EngineInfo
from codetr_cli.inference.exported.metadata import METADATA_KEY, ExportMetadata, input_names, parse_metadata
from codetr_cli.ops.deform_attn_export import PLUGIN_NAME

PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
"""Execution provider of each device type."""


class OnnxRuntimeEngine:
    """See `engine.Engine`."""

    def __init__(self, session: Any, metadata: ExportMetadata, info: EngineInfo, device: torch.device) -> None:
        self._session, self.metadata, self.info, self.device = session, metadata, info, device

    @classmethod
    def open(cls, path: Path, device: torch.device) -> OnnxRuntimeEngine:
        """Loads a file; as `engine.open_engine`."""
        runtime = _import_runtime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        provider = PROVIDERS.get(device.type)
        if provider is None or provider not in runtime.get_available_providers():
            raise ResourceError(
                f"ONNX Runtime {runtime.__version__} here has no provider for {device}: it has "
                f"{', '.join(runtime.get_available_providers())}. Use --device cpu, or install onnxruntime-gpu."
            )
        try:
            session = runtime.InferenceSession(str(path), options, providers=[provider])
        except Exception as error:  # ONNX Runtime's errors have no common class
            raise CheckpointError(f"ONNX Runtime cannot load {path}: {_explained(str(error))}") from error
        text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        metadata = parse_metadata(text, str(path))
        info = EngineInfo(f"ONNX Runtime {runtime.__version__}", session.get_providers()[0], metadata.precision)
        return cls(session, metadata, info, torch.device("cpu"))

    def run(self, images: Tensor, image_sizes: Tensor) -> dict[str, Tensor]:
        """See `engine.Engine`."""
        names = input_names(self.metadata)
        feeds = dict(zip(names, (images.numpy(), image_sizes.numpy()), strict=True))
        outputs = self._session.run(None, feeds)
        named = [output.name for output in self._session.get_outputs()]
        return {name: torch.from_numpy(value) for name, value in zip(named, outputs, strict=True)}


def _explained(message: str) -> str:
    """An error of ONNX Runtime, in words where codetr has written what it cannot run."""
    if PLUGIN_NAME in message:
        return (
            f"its attention is TensorRT's plugin {PLUGIN_NAME}, which only TensorRT has. Build an engine from it with "
            "`trtexec --onnx=FILE`, or export the checkpoint again with --attention gridsample."
        )
    if "NOT_IMPLEMENTED" in message:
        return f"it has no kernel for a node of this file here; bf16 needs a GPU, fp32 runs everywhere. {message}"
    return message


def _import_runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ResourceError(
            "ONNX files need ONNX Runtime, which is not installed: pip install 'codetr-cli[onnx]'"
        ) from error
    return onnxruntime
