"""TensorRT engines: built where TensorRT and a GPU are, else what `trtexec` needs to build them elsewhere.

An engine runs on the kind of GPU and the release of TensorRT that built it. Its metadata are in a file beside it, so
that other programs can load the engine as it is.
"""

from __future__ import annotations

import logging
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from codetr_cli.errors import ConfigError, ResourceError
from codetr_cli.export.onnx_file import write_onnx
from codetr_cli.export.request import WriteRequest
from codetr_cli.files import cache_dir, replace_file
from codetr_cli.inference.exported.metadata import ExportMetadata, input_names
from codetr_cli.inference.exported.tensorrt import TensorRTLog, import_tensorrt, load_plugins, sidecar_path
from codetr_cli.inference.exported.trust import remember

logger = logging.getLogger(__name__)

MAX_TOP_K = 3840
"""Largest K of TensorRT's TopK (NVIDIA/TensorRT#4244)."""

MOST_IMAGES, USUAL_IMAGES = 8, 4
"""Images of an engine for any number: most, as its memory is that of the most, and those that it is optimised for."""

WORKSPACE_SHARE = 0.8
"""Share of the GPU's free memory that TensorRT may use for intermediate values."""


@dataclass(frozen=True)
class ShapeRange:
    """Shapes of an input: least, usual and most."""

    least: tuple[int, ...]
    usual: tuple[int, ...]
    most: tuple[int, ...]


def write_tensorrt(request: WriteRequest) -> None:
    """Writes an engine and its metadata; without TensorRT or a GPU the ONNX file and the command that builds it.

    Raises:
        ConfigError: options that TensorRT does not have.
        ResourceError: the packages for ONNX are not installed, or TensorRT cannot build the engine.
    """
    check_limits(request.metadata)
    onnx_path = request.path.with_name(f"{request.path.name}.onnx")
    write_onnx(replace(request, path=onnx_path))
    reason = why_not_here()
    if reason is not None:
        _write_metadata(request.path, request.metadata)
        command = trtexec_command(onnx_path.name, request.path.name, request.metadata)
        script = request.path.with_name(f"{request.path.name}.trtexec.sh")
        script.write_text(f"{command}\n", encoding="utf-8")
        logger.warning(
            "no engine was built: %s. On the machine that will run it, with TensorRT and the files %s.* in the current "
            "folder, this command builds it: %s",
            reason,
            request.path.name,
            command,
        )
        return
    request.step("building the TensorRT engine, which takes minutes")
    metadata = build_engine(onnx_path, request.path, request.metadata)
    remember(request.path)
    _write_metadata(request.path, metadata)
    for path in (onnx_path, onnx_path.with_name(f"{onnx_path.name}.data")):
        path.unlink(missing_ok=True)


def why_not_here() -> str | None:
    """Why no engine can be built here; None: it can."""
    try:
        import_tensorrt()
    except ResourceError:
        return "TensorRT is not installed (pip install 'codetr-cli[tensorrt]')"
    return None if torch.cuda.is_available() else "TensorRT builds on a GPU, and PyTorch finds none here"


def check_limits(metadata: ExportMetadata) -> None:
    """Refuses what TensorRT cannot do.

    Raises:
        ConfigError: inputs of any size, or more queries or candidates than its TopK selects.
    """
    if metadata.input.height is None:
        raise ConfigError(
            "--format tensorrt --dynamic-size: TensorRT needs the number of queries as a constant, and it follows the "
            "size of the image where that varies. Export one file for each size with --size HxW"
        )
    queries = metadata.parsed_settings("the checkpoint").model.num_queries
    candidates = metadata.output.candidates if metadata.output.detections else 0
    for name, count in (("model.num_queries", queries), ("test.max_detections", candidates)):
        if count > MAX_TOP_K:
            raise ConfigError(f"{name} is {count}, and TensorRT selects {MAX_TOP_K} at most: export to another format")


def input_ranges(metadata: ExportMetadata) -> dict[str, ShapeRange]:
    """Shapes of the inputs that an engine takes, by name."""
    rule = metadata.input
    assert rule.height is not None
    assert rule.width is not None
    image = (rule.height, rule.width, 3) if rule.pixels else (3, rule.height, rule.width)
    counts = (1, USUAL_IMAGES, MOST_IMAGES) if rule.batch is None else (rule.batch,) * 3
    shapes = dict(zip(input_names(metadata), (image, (2,)), strict=True))
    return {name: ShapeRange(*((count, *shape) for count in counts)) for name, shape in shapes.items()}


def trtexec_command(onnx_name: str, engine_name: str, metadata: ExportMetadata) -> str:
    """The command of TensorRT's own tool that builds the same engine.

    Strong typing is asked for, as TensorRT 10 needs it; TensorRT 11 has nothing else and takes the option.
    """
    words = ["trtexec", f"--onnx={onnx_name}", f"--saveEngine={engine_name}", "--stronglyTyped"]
    if metadata.input.batch is None:
        ranges = input_ranges(metadata)
        for option, part in (("minShapes", "least"), ("optShapes", "usual"), ("maxShapes", "most")):
            shapes = (f"{name}:{'x'.join(map(str, getattr(span, part)))}" for name, span in ranges.items())
            words.append(f"--{option}={','.join(shapes)}")
    return shlex.join(words)


def build_engine(onnx_path: Path, path: Path, metadata: ExportMetadata) -> ExportMetadata:
    """Builds the engine of an ONNX file on the current GPU.

    Args:
        onnx_path: of `write_onnx`.
        path: of the engine.
        metadata: of the file.

    Returns:
        the metadata with what built the engine.

    Raises:
        ResourceError: TensorRT cannot read the file or build the engine.
    """
    trt = import_tensorrt()
    log = TensorRTLog.create(trt)
    load_plugins(trt, log)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx_path)):
        errors = "; ".join(str(parser.get_error(index)) for index in range(min(parser.num_errors, 3)))
        raise ResourceError(
            f"TensorRT {trt.__version__} cannot read the network: {errors}. Install a newer TensorRT, or export with "
            "another --attention."
        )
    _check_precision(trt, network, metadata)
    config = builder.create_builder_config()
    free, _ = torch.cuda.mem_get_info()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(WORKSPACE_SHARE * free))
    profile = builder.create_optimization_profile()
    for name, span in input_ranges(metadata).items():
        profile.set_shape(name, span.least, span.usual, span.most)
    config.add_optimization_profile(profile)
    cache_path = cache_dir() / "tensorrt" / f"{trt.__version__}-{_gpu_name().replace(' ', '_')}.timing"
    cache = config.create_timing_cache(cache_path.read_bytes() if cache_path.is_file() else b"")
    config.set_timing_cache(cache, False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ResourceError(
            f"TensorRT {trt.__version__} could not build the engine with {free / 2**30:.1f} GiB of free GPU memory: "
            f"{log.errors() or 'it gave no reason'}. If memory is short, end other programs on this GPU, or use a "
            "smaller --size or --batch."
        )
    path.write_bytes(plan)
    _save_timings(config, cache_path)
    built = {"tensorrt": str(trt.__version__), "gpu": _gpu_name()}
    return metadata.model_copy(update={"versions": {**metadata.versions, **built}})


def _check_precision(trt: Any, network: Any, metadata: ExportMetadata) -> None:
    """Ensures that an fp16 network has layers of that type: nothing else makes the engine compute in it."""
    if metadata.precision != "fp16":
        return
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    if not any(layer.num_outputs and layer.get_output(0).dtype == trt.DataType.HALF for layer in layers):
        raise ResourceError(
            f"TensorRT {trt.__version__} read the {metadata.precision} network as one of another precision: install a "
            "newer TensorRT, or export with --precision fp32."
        )


def _save_timings(config: Any, cache_path: Path) -> None:
    """Keeps the timings of kernels: the next build is faster. A full disk is no reason to lose the engine."""
    try:
        cache_path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(cache_path) as temporary:
            temporary.write_bytes(config.get_timing_cache().serialize())
    except (OSError, ResourceError) as error:
        logger.debug("the timing cache of TensorRT was not saved: %s", error)


def _write_metadata(path: Path, metadata: ExportMetadata) -> None:
    sidecar_path(path).write_text(metadata.to_json(), encoding="utf-8")


def _gpu_name() -> str:
    return torch.cuda.get_device_name()
