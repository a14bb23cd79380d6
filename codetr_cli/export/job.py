"""From a checkpoint to an exported file."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from codetr_cli.config.overrides import replace_settings
from codetr_cli.config.schema import Settings
from codetr_cli.errors import CheckpointError, ConfigError
from codetr_cli.export.onnx_file import write_onnx
from codetr_cli.export.openvino_model import write_openvino
from codetr_cli.export.options import SUFFIXES, ExportOptions
from codetr_cli.export.request import Step, Writer, WriteRequest, no_report
from codetr_cli.export.tensorrt_engine import write_tensorrt
from codetr_cli.export.torch_package import write_torch_package
from codetr_cli.inference.exported.engine import is_exported
from codetr_cli.inference.exported.metadata import (
    VERSION,
    Attention,
    ExportFormat,
    ExportMetadata,
    InputRule,
    OutputRule,
    TilesRule,
    WeightsSource,
    rgb,
)
from codetr_cli.inference.loading import LoadedModel, check_image_size, load_detector
from codetr_cli.models.codetr import CoDETR
from codetr_cli.result_files import refuse_taken, write_results
from codetr_cli.runs.lineage import licence_of
from codetr_cli.weights.checkpoint import file_sha256

WRITERS: dict[ExportFormat, Writer] = {
    "onnx": write_onnx,
    "openvino": write_openvino,
    "tensorrt": write_tensorrt,
    "torch": write_torch_package,
}
"""What writes each format."""

DEFAULT_ATTENTION: dict[ExportFormat, Attention] = {
    "onnx": "gridsample",
    "openvino": "gridsample",
    "tensorrt": "gather",
    "torch": "gridsample",
}

DEVICE_FORMATS: tuple[ExportFormat, ...] = ("torch",)
"""Formats whose files run on one kind of device, the one that they are traced and compiled on."""


@dataclass(frozen=True)
class ExportResult:
    """What was written.

    Attributes:
        path: the exported file; without TensorRT the ONNX file that an engine is built from.
        files: it, and those that belong to it.
        metadata: in it.
        notes: sentences about what was decided.
    """

    path: Path
    files: list[Path]
    metadata: ExportMetadata
    notes: list[str]


def export_settings(settings: Settings, options: ExportOptions) -> Settings:
    """The settings that detections are made with from the file: `test.fixed_size` unless images may have any size.

    Raises:
        ConfigError: a size that the network cannot take, or an auxiliary head.
    """
    if settings.test.head != "decoder":
        raise ConfigError(f"test.head={settings.test.head}: only the decoder's head is exported")
    check_image_size(settings, training=False)
    canvas = settings.test.canvas
    if canvas is not None:
        if options.dynamic_size or options.size not in (None, (canvas, canvas)):
            raise ConfigError(
                f"this network sees every image on a canvas of {canvas} x {canvas} pixels (test.canvas): for another "
                "size, give --set test.canvas=SIDE instead of --size or --dynamic-size"
            )
        return settings
    if options.dynamic_size:
        return replace_settings(settings, {"test.fixed_size": None})
    divisor = settings.data.pad_divisor
    size = options.size or settings.test.input_size
    return replace_settings(settings, {"test.fixed_size": [-(-side // divisor) * divisor for side in size]})


def describe(loaded: LoadedModel, options: ExportOptions) -> ExportMetadata:
    """The metadata of the file that `options` ask for."""
    settings = export_settings(loaded.settings, options)
    data, test = settings.data, settings.test
    size = None if options.dynamic_size else test.fixed_size or test.input_size
    tiles = options.tiles
    has_masks = isinstance(loaded.model, CoDETR) and loaded.model.mask_branch is not None
    return ExportMetadata(
        settings=settings.model_dump(mode="json"),
        class_names=list(loaded.class_names),
        category_ids=list(loaded.category_ids),
        input=InputRule(
            height=size and size[0],
            width=size and size[1],
            batch=options.batch,
            pixels=options.preprocess,
            divisor=data.pad_divisor,
            short_side=test.short_side,
            long_side=test.long_side,
            canvas=test.canvas,
            mean=rgb(data.mean),
            std=rgb(data.std),
        ),
        output=OutputRule(
            detections=options.postprocess or has_masks,
            masks=has_masks,
            candidates=loaded.postprocess.count(settings.model.num_queries, settings.model.num_classes),
            nms=test.nms,
            nms_iou=test.nms_iou,
            nms_min_score=test.nms_min_score,
            max_detections=test.max_detections,
        ),
        export_format=options.format,
        precision=options.precision,
        attention=options.attention or DEFAULT_ATTENTION[options.format],
        tiles=None if tiles is None else TilesRule(size=tiles.size, overlap=tiles.overlap, whole=tiles.whole),
        weights=WeightsSource(
            file=loaded.path.name if loaded.path else settings.name,
            sha256=file_sha256(loaded.path) if loaded.path else None,
            licence=licence_of(loaded.path).name if loaded.path else None,
        ),
        versions={"codetr": VERSION, "torch": torch.__version__, "python": platform.python_version(), **_versions()},
    )


def _versions() -> dict[str, str]:
    """Versions of the optional packages that take part, as far as they are installed."""
    found = {}
    for package in ("onnx", "onnxscript"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def export(
    path_or_preset: str | Path,
    options: ExportOptions,
    output: Path,
    *,
    overrides: Sequence[str] = (),
    device: torch.device | None = None,
    force: bool = False,
    step: Step = no_report,
    writer: Writer | None = None,
) -> ExportResult:
    """Writes the exported file of a checkpoint.

    Args:
        path_or_preset: as `load_detector` takes it.
        options: what to write.
        output: the file.
        overrides: settings as `key=value`.
        device: that the program of `DEVICE_FORMATS` is made for; other formats are made on the CPU. None: the CPU.
        force: replace files that codetr has made.
        step: is called when a slow step starts.
        writer: instead of the one of the format.

    Raises:
        CheckpointError: the checkpoint cannot be read, or is an exported file itself.
        ConfigError: options that do not fit the network, or a file that may not be replaced.
        ResourceError: a package is not installed, the disk is full, or no program can be made for the device.
    """
    writer = writer or WRITERS.get(options.format)
    if writer is None:
        raise ConfigError(f"--format {options.format}: this version of codetr cannot write it")
    _check_suffix(output, options.format)
    refuse_taken([output], force=force)
    if is_exported(path_or_preset):  # before its library is needed
        raise CheckpointError(f"{path_or_preset} is an exported file: export the checkpoint it was made from")
    step("loading the checkpoint")
    made_for = device if device is not None and options.format in DEVICE_FORMATS else torch.device("cpu")
    loaded = load_detector(path_or_preset, made_for, overrides)
    assert isinstance(loaded.model, CoDETR)
    metadata = describe(loaded, options)
    with write_results(output, by="export", force=force) as temporary:
        writer(WriteRequest(loaded.model, metadata, temporary, step))
        files = sorted(output.with_name(path.name) for path in temporary.parent.iterdir())
    written = output if output in files else next(path for path in files if path.suffix == ".onnx")
    return ExportResult(written, files, metadata, size_notes(loaded, options, metadata))


def _check_suffix(output: Path, format: ExportFormat) -> None:
    """Ensures that a file has the suffix of its format, by which it is recognised.

    Raises:
        ConfigError: it has another one, perhaps that of another format.
    """
    suffix = SUFFIXES[format]
    if output.suffix == suffix:
        return
    other = next((name for name, ending in SUFFIXES.items() if ending == output.suffix), None)
    advice = f"; {output.suffix} is that of --format {other}" if other else ""
    raise ConfigError(
        f"{output}: a file of --format {format} ends in {suffix}, by which it is recognised, e.g. "
        f"{output.with_suffix(suffix)}{advice}"
    )


def size_notes(loaded: LoadedModel, options: ExportOptions, metadata: ExportMetadata) -> list[str]:
    """What the size of the input means for images, in sentences without the full stop."""
    rule = metadata.input
    if rule.height is None or rule.width is None:
        return []
    notes = []
    test = loaded.settings.test
    asked = options.size or test.input_size
    if asked != (rule.height, rule.width):
        notes.append(
            f"the input is {rule.height}x{rule.width} (height x width): {asked[0]}x{asked[1]} rounded up to multiples "
            f"of {rule.divisor}"
        )
    if rule.canvas is None and rule.height < rule.width:
        notes.append(
            f"upright images are reduced to a height of {rule.height} pixels, which --size {rule.width}x{rule.width} "
            "avoids"
        )
    return notes
