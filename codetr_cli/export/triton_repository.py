"""An exported file as a model of a Triton Inference Server: `NAME/1/model.onnx`, `NAME/config.pbtxt`, `labels.txt`.

The rules are those of Triton's documentation of model repositories, model configurations and its PyTorch backend. With
`max_batch_size` above 0 the first dimension is the batch and is not among `dims`; otherwise `dims` are all dimensions.
A PT2 archive (Triton 26.03 and newer) names its tensors by their position.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from codetr_cli.errors import ConfigError, ResourceError
from codetr_cli.export.job import ExportResult, export
from codetr_cli.export.options import SUFFIXES, ExportOptions
from codetr_cli.export.request import Step, Writer, no_report
from codetr_cli.export.tensorrt_engine import why_not_here
from codetr_cli.files import check_folder, replace_folder
from codetr_cli.inference.exported.metadata import (
    METADATA_KEY,
    ExportFormat,
    ExportMetadata,
    input_names,
    output_names,
)

Kind = Literal["gpu", "cpu"]

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
LABELS_FILE = "labels.txt"
WITH_LABELS = ("labels", "logits")
"""Outputs that are class indices, or have one column a class: Triton's classification requests use their labels."""


@dataclass(frozen=True)
class _Backend:
    """How Triton calls a format.

    Attributes:
        backend: that runs it.
        platform: None: it has none.
        file: name of the model's file.
        kinds: of processors that it can run on, the usual one first.
    """

    backend: str
    platform: str | None
    file: str
    kinds: tuple[Kind, ...] = ("gpu", "cpu")


BACKENDS: dict[ExportFormat, _Backend] = {
    "onnx": _Backend("onnxruntime", "onnxruntime_onnx", "model.onnx"),
    "openvino": _Backend("openvino", None, "model.xml", ("cpu",)),
    "tensorrt": _Backend("tensorrt", "tensorrt_plan", "model.plan", ("gpu",)),
    "torch": _Backend("pytorch", "torch_aoti", "model.pt2", ("cpu",)),
}
DATA_TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "int8": "TYPE_INT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
}
"""NumPy's names of types -> Triton's."""


def export_to_repository(
    path_or_preset: str | Path,
    options: ExportOptions,
    folder: Path,
    *,
    kind: Kind | None = None,
    overrides: Sequence[str] = (),
    step: Step = no_report,
    writer: Writer | None = None,
) -> ExportResult:
    """Exports a checkpoint as a model of a repository.

    Args:
        path_or_preset: as for `job.export`.
        options: as for `job.export`.
        folder: of the model, whose name is that of the model; the folder above it is the repository.
        kind: of processors that it runs on; None: a GPU where Triton's backend of the format has one.
        overrides: as for `job.export`.
        step: as for `job.export`.
        writer: as for `job.export`.

    Raises:
        ConfigError: the folder is there, or as of `job.export` and `triton_model`.
        CheckpointError: as of `job.export`.
        ResourceError: an engine cannot be built here, or as of `job.export`.
    """
    kind = kind or BACKENDS[options.format].kinds[0]
    check_name(folder.name)
    check_kind(options.format, kind)
    check_free(folder)
    reason = why_not_here() if options.format == "tensorrt" else None
    if reason is not None:
        raise ResourceError(
            f"--layout triton --format tensorrt needs an engine, and none can be built here: {reason}. Export on the "
            "machine that will run it, or use --format onnx"
        )
    with tempfile.TemporaryDirectory(prefix="codetr-export-") as scratch:
        path = Path(scratch) / f"{folder.name}{SUFFIXES[options.format]}"
        result = export(path_or_preset, options, path, overrides=overrides, step=step, writer=writer)
        others = [file for file in result.files if file != path]
        add_to_repository(folder.parent, triton_model(result.metadata, folder.name, kind=kind), [path, *others])
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return replace(result, path=folder / "1" / BACKENDS[options.format].file, files=files)


@dataclass(frozen=True)
class TensorSpec:
    """An input or output.

    Attributes:
        name: in the exported file.
        dtype: a key of `DATA_TYPES`.
        shape: with the batch first; -1: any size.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class TritonModel:
    """A model of a repository.

    Attributes:
        name: of the model and of its folder.
        format: of the exported file.
        inputs: in their order.
        outputs: in their order.
        max_batch: images that Triton puts together; 0: the file takes its own fixed number of images.
        class_names: by label.
        kind: of processors that it runs on.
        instances: of the model on each GPU, or on the CPU.
        max_wait_us: how long a request waits for others of its batch, in microseconds.
        parameters: texts that clients can read in the model's configuration.
    """

    name: str
    format: ExportFormat
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    max_batch: int = 8
    class_names: Sequence[str] = ()
    kind: Kind = "gpu"
    instances: int = 1
    max_wait_us: int = 5000
    parameters: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.max_batch < 0 or self.instances < 1 or self.max_wait_us < 0:
            raise ConfigError(
                f"max_batch={self.max_batch}, instances={self.instances}, max_wait_us={self.max_wait_us}: there is at "
                "least one instance, and the others are at least 0"
            )
        check_kind(self.format, self.kind)
        for tensor in (*self.inputs, *self.outputs):
            if tensor.dtype not in DATA_TYPES:
                raise ConfigError(f"{tensor.name} has type {tensor.dtype}: known are {', '.join(DATA_TYPES)}")
            if any(side < 1 and side != -1 for side in tensor.shape) or not tensor.shape:
                raise ConfigError(f"{tensor.name} has shape {tensor.shape}: sides are at least 1, or -1 for any")
            if self.max_batch and tensor.shape[0] != -1:
                raise ConfigError(
                    f"{tensor.name} has shape {tensor.shape}, a fixed batch of {tensor.shape[0]}: Triton can batch "
                    "requests only for a file exported with --batch dynamic; use max_batch 0 for this one"
                )

    @property
    def backend(self) -> _Backend:
        """How Triton runs it."""
        return BACKENDS[self.format]


def check_name(name: str) -> None:
    """Refuses what is no name of a model.

    Raises:
        ConfigError: it has other characters.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(f"the model's name {name!r} has characters other than letters, digits, _, - and .")


def check_kind(format: ExportFormat, kind: Kind) -> None:
    """Refuses processors that cannot run a format.

    Raises:
        ConfigError: names those that can.
    """
    kinds = BACKENDS[format].kinds
    if kind not in kinds:
        raise ConfigError(f"a model of format {format} runs on a {kinds[0]} in Triton, not on a {kind}")


def triton_model(metadata: ExportMetadata, name: str, *, kind: Kind, max_batch: int = 8) -> TritonModel:
    """The model of an exported file.

    Args:
        metadata: of the file; clients find it as the parameter `codetr` of the model's configuration.
        name: of the model.
        kind: of processors that it runs on.
        max_batch: images that Triton puts together, if the file takes any number.

    Raises:
        ConfigError: a name that is not allowed, or processors that cannot run the format.
    """
    inputs, outputs = describe_tensors(metadata)
    return TritonModel(
        name=name,
        format=metadata.export_format,
        inputs=inputs,
        outputs=outputs,
        max_batch=max_batch if metadata.input.batch is None else 0,
        class_names=metadata.class_names,
        kind=kind,
        parameters={METADATA_KEY: metadata.to_json()},
    )


def describe_tensors(metadata: ExportMetadata) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """The inputs and the outputs of an exported file, in their order."""
    rule, output = metadata.input, metadata.output
    batch, size = rule.batch or -1, (rule.height or -1, rule.width or -1)
    images = ("uint8", (batch, *size, 3)) if rule.pixels else ("float32", (batch, 3, *size))
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {
        "images": images,
        "image_sizes": ("int64", (batch, 2)),
    }
    queries = metadata.parsed_settings(metadata.weights.file).model.num_queries
    if output.detections:
        count = output.kept(queries)
        tensors |= {
            "boxes": ("float32", (batch, count, 4)),
            "scores": ("float32", (batch, count)),
            "labels": ("int64", (batch, count)),
            "masks": ("float32", (batch, count, -1, -1)),
            "mask_ious": ("float32", (batch, count)),
        }
    else:
        tensors |= {
            "logits": ("float32", (batch, queries, len(metadata.class_names))),
            "boxes": ("float32", (batch, queries, 4)),
        }
    inputs, outputs = (
        [TensorSpec(name, *tensors[name]) for name in names(metadata)] for names in (input_names, output_names)
    )
    return inputs, outputs


def config_text(model: TritonModel) -> str:
    """The text of `config.pbtxt`."""
    backend = model.backend
    lines = [f"name: {_quoted(model.name)}", f"backend: {_quoted(backend.backend)}"]
    if backend.platform is not None:
        lines.append(f"platform: {_quoted(backend.platform)}")
    lines += [f"default_model_filename: {_quoted(backend.file)}", f"max_batch_size: {model.max_batch}"]
    for number, tensor in enumerate(model.inputs):
        lines += _tensor(model, "input", number, tensor)
    for number, tensor in enumerate(model.outputs):
        lines += _tensor(model, "output", number, tensor)
    if model.max_batch > 1:
        lines += ["dynamic_batching {", f"  max_queue_delay_microseconds: {model.max_wait_us}", "}"]
    kind = f"KIND_{model.kind.upper()}"
    lines += ["instance_group [", "  {", f"    count: {model.instances}", f"    kind: {kind}", "  }", "]"]
    for key, text in model.parameters.items():
        lines += [
            "parameters {",
            f"  key: {_quoted(key)}",
            "  value {",
            f"    string_value: {_quoted(text)}",
            "  }",
            "}",
        ]
    return "\n".join(lines) + "\n"


def write_model(folder: Path, model: TritonModel, files: Sequence[Path]) -> None:
    """Writes the files of a model.

    Args:
        folder: of the model; exists and is empty.
        model: describes it.
        files: the exported file, then those that belong to it: the weights of OpenVINO, external data of ONNX.

    Raises:
        ResourceError: a file cannot be read or written.
    """
    exported, *others = files
    version = folder / "1"
    try:
        version.mkdir()
        target = version / model.backend.file
        shutil.copyfile(exported, target)
        for file in others:
            # OpenVINO finds the weights by the name of the model's file; an ONNX file names its data.
            name = target.with_suffix(".bin").name if model.format == "openvino" else file.name
            shutil.copyfile(file, version / name)
        if model.class_names:
            names = [" ".join(name.split()) for name in model.class_names]
            (folder / LABELS_FILE).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        (folder / "config.pbtxt").write_text(config_text(model), encoding="utf-8")
    except OSError as error:
        raise ResourceError(
            f"cannot write the model repository: {error.filename}: {error.strerror}. Free some space or choose another "
            "folder"
        ) from error


def check_free(folder: Path) -> None:
    """Refuses the folder of a model that is there.

    Raises:
        ConfigError: it is, or a file is in the place of a folder above it.
    """
    check_folder(folder, "--out")
    if os.path.lexists(folder):
        raise ConfigError(f"{folder} is there already: choose another name or repository, or remove it")


def add_to_repository(repository: Path, model: TritonModel, files: Sequence[Path]) -> Path:
    """Adds a model to a repository; its folder gets its name when it is whole.

    Args:
        repository: folder of all models, created if needed.
        model: describes it.
        files: as for `write_model`.

    Returns:
        the folder of the model.

    Raises:
        ConfigError: the repository has a model of this name.
        ResourceError: a file cannot be read or written.
    """
    folder = repository / model.name
    check_free(folder)
    with replace_folder(folder) as temporary:
        write_model(temporary, model, files)
    return folder


def _tensor(model: TritonModel, kind: str, number: int, tensor: TensorSpec) -> list[str]:
    name = f"{kind.upper()}__{number}" if model.format == "torch" else tensor.name
    dims = tensor.shape[1:] if model.max_batch else tensor.shape
    labels = [f"    label_filename: {_quoted(LABELS_FILE)}"]
    has_labels = kind == "output" and bool(model.class_names) and tensor.name in WITH_LABELS
    return [
        f"{kind} [",
        "  {",
        f"    name: {_quoted(name)}",
        f"    data_type: {DATA_TYPES[tensor.dtype]}",
        f"    dims: [ {', '.join(map(str, dims or (1,)))} ]",
        *(["    reshape { shape: [ ] }"] if not dims else []),
        *(labels if has_labels else []),
        "  }",
        "]",
    ]


def _quoted(text: str) -> str:
    """A string of the text format of protocol buffers."""
    escaped = "".join(
        f"\\{character}" if character in '\\"' else character if character.isprintable() else _octal(character)
        for character in text
    )
    return f'"{escaped}"'


def _octal(character: str) -> str:
    return "".join(f"\\{byte:03o}" for byte in character.encode("utf-8", "backslashreplace"))
