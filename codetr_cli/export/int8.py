"""Eight-bit OpenVINO files for CPUs, by NNCF: calibrated on images, with a decoder in float, and only if AP stays.

An RT-DETR whose decoder was quantised, too, had an AP of 0.0002. Only what computes on whole maps becomes int8:
backbone, neck, and the large matrices of the encoder. Where to sample, which tokens are proposals, and the decoder with
its boxes stay in float.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codetr_cli.errors import CheckpointError, ConfigError, DatasetError, ResourceError, counted
from codetr_cli.export.accuracy import VerifyData, average_precision, find_images
from codetr_cli.export.onnx_file import build_onnx
from codetr_cli.export.openvino_model import read_onnx, save_openvino
from codetr_cli.export.request import Step, WriteRequest
from codetr_cli.formats.resolve import Split
from codetr_cli.images.decoder import read_image
from codetr_cli.inference.detection_steps import PreparedImage
from codetr_cli.inference.detector import Detector
from codetr_cli.inference.exported.engine_info import EngineInfo
from codetr_cli.inference.exported.metadata import ExportMetadata, input_names
from codetr_cli.inference.exported.network import ExportedNetwork
from codetr_cli.inference.loading import LoadedModel, load_detector
from codetr_cli.inference.options import DetectOptions
from codetr_cli.models.build import build_postprocess

CALIBRATION_IMAGES = 300
MAX_DROP = 0.5

QUANTISED = ("model.backbone.", "model.neck.")
"""Modules that become int8 as a whole."""
QUANTISED_IN_ENCODER = ("value_proj", "output_proj", "ffn")
"""Parts of the encoder's layers that do, too."""


@dataclass(frozen=True, kw_only=True)
class Int8Options:
    """How a network is quantised.

    Attributes:
        data: folder of the data set: its training images calibrate, and its validation images decide.
        split: whose AP decides, "val" or "test".
        images: for the calibration, evenly chosen.
        max_drop: of AP, in points (100 is perfect).
        max_images: that decide; None: all.
    """

    data: str
    split: Split = "val"
    images: int = CALIBRATION_IMAGES
    max_drop: float = MAX_DROP
    max_images: int | None = None

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ConfigError("--calibration 0: at least one image is needed")


@dataclass
class Int8Result:
    """What a quantised file is worth: AP in points, before and after."""

    float_ap: float = float("nan")
    int8_ap: float = float("nan")
    images: int = 0
    calibration_images: int = 0

    @property
    def sentence(self) -> str:
        """The result in words."""
        return (
            f"int8: AP {self.int8_ap:.2f} instead of {self.float_ap:.2f} on {counted(self.images, 'image')}, "
            f"calibrated with {self.calibration_images}."
        )


class Int8Writer:
    """Writes an OpenVINO file in int8; see `request.Writer`.

    Args:
        options: how.

    Attributes:
        result: of the last file.
    """

    def __init__(self, options: Int8Options) -> None:
        self.options = options
        self.result = Int8Result()

    def __call__(self, request: WriteRequest) -> None:
        """Writes the file, and refuses it if its AP is too low.

        Raises:
            CheckpointError: it loses more AP than allowed.
            ConfigError: the format has no int8.
            DatasetError: no images or annotations.
            ResourceError: NNCF or OpenVINO is not installed.
        """
        if request.metadata.export_format != "openvino":
            raise ConfigError("--precision int8 is of OpenVINO files: use --format openvino")
        nncf = _import_nncf()
        decisive = find_images(self.options.data, self.options.split, max_images=self.options.max_images)
        loaded = _loaded(request)
        inputs = _calibration_inputs(loaded, request.metadata, self.options)
        proto = build_onnx(request)
        kept_float = float_nodes(node.name for node in proto.graph.node)
        del proto.metadata_props[:]  # OpenVINO would keep them a second time
        request.step("converting it to OpenVINO")
        model = read_onnx(proto)
        request.step(f"calibrating int8 with {counted(len(inputs), 'image')}")
        model = _quantise(nncf, model, _reported(inputs, request.step), kept_float)
        save_openvino(model, request.metadata, request.path)
        self.result = Int8Result(calibration_images=len(inputs))
        self._check(request, loaded, decisive)

    def _check(self, request: WriteRequest, loaded: LoadedModel, data: VerifyData) -> None:
        cpu = torch.device("cpu")
        request.step(f"AP of the checkpoint on {data.split}")
        before = average_precision(loaded, data, cpu)
        request.step(f"AP in int8 on {data.split}")
        with _quiet("codetr_cli.inference.loading"):  # of a file that has another name in the end
            quantised = load_detector(request.path, cpu)
        after = average_precision(quantised, data, cpu)
        self.result.float_ap, self.result.int8_ap = 100 * before.metrics["AP"], 100 * after.metrics["AP"]
        self.result.images = after.images
        if before.metrics["AP"] < 0:
            raise DatasetError(f"{data.paths.annotations_path} has no objects, so that AP cannot decide about int8")
        drop = self.result.float_ap - self.result.int8_ap
        if not drop <= self.options.max_drop:
            raise CheckpointError(
                f"int8 loses {drop:.2f} points of AP on {counted(after.images, 'image')}: {self.result.int8_ap:.2f} "
                f"instead of {self.result.float_ap:.2f}, and --max-drop allows {self.options.max_drop:g}. Nothing was "
                "written. Calibrate with more images of the kind that the network will see (--calibration), allow "
                "more, or export without int8: --precision fp16 halves the file and loses nothing."
            )


def float_nodes(names: Iterable[str]) -> list[str]:
    """The nodes that must stay in float: all that do not belong to the modules of `QUANTISED`.

    Those without a module are among them: the last heads of classes and boxes are written so.

    Args:
        names: of nodes, as `onnx_file` writes them: MODULE/NODE.
    """
    return [name for name in names if not _may_be_int8(f"{name.rpartition('/')[0]}.")]


def _may_be_int8(module: str) -> bool:
    if module.startswith(QUANTISED):
        return True
    parts = module.split(".")
    return module.startswith("model.encoder.layers.") and any(part in parts for part in QUANTISED_IN_ENCODER)


def _quantise(nncf: Any, model: Any, inputs: Sequence[Callable[[], dict[str, Any]]], kept_float: list[str]) -> Any:
    with _quiet("nncf"), _quiet("torch.utils.cpp_extension"):  # the latter misses CUDA, which is not needed
        return nncf.quantize(
            model,
            nncf.Dataset(inputs, lambda read: read()),
            preset=nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER,
            target_device=nncf.TargetDevice.CPU,
            subset_size=len(inputs),
            ignored_scope=nncf.IgnoredScope(names=kept_float, validate=False),
        )


def _reported(inputs: Sequence[Callable[[], dict[str, Any]]], step: Step) -> list[Callable[[], dict[str, Any]]]:
    """The same functions; those at each quarter report it when they are called for the first time."""
    quarters = {-(-len(inputs) * part // 4) for part in (1, 2, 3)}

    def read(number: int) -> dict[str, Any]:
        if number in quarters:
            quarters.discard(number)
            step(f"calibrating int8: {number} of {counted(len(inputs), 'image')}")
        return inputs[number]()

    return [partial(read, number) for number in range(len(inputs))]


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


# ------------------------------------------------------------------------------------------------------- calibration


class _InputTaken(Exception):  # noqa: N818 - no error
    """Ends a detection once the input of the network is known."""


@dataclass
class _InputRecorder:
    """An engine that takes inputs and computes nothing."""

    metadata: ExportMetadata
    info: EngineInfo
    device: torch.device
    taken: tuple[Tensor, Tensor] | None = None

    def run(self, images: Tensor, image_sizes: Tensor) -> dict[str, Tensor]:
        self.taken = images, image_sizes
        raise _InputTaken


def _calibration_inputs(
    loaded: LoadedModel, metadata: ExportMetadata, options: Int8Options
) -> list[Callable[[], dict[str, Any]]]:
    """Functions that read an image as the network's input, evenly chosen from the training images, if there are any."""
    try:
        data = find_images(options.data, "train")
    except DatasetError:
        data = find_images(options.data, "val" if options.split == "test" else options.split)
    names = data.ground_truth.file_names
    if not names:
        raise DatasetError(f"{data.paths.annotations_path} lists no images to calibrate int8 with")
    recorder = _InputRecorder(metadata, EngineInfo("", "", ""), torch.device("cpu"))
    detector = Detector(_replaced(loaded, ExportedNetwork(recorder)), device="cpu")
    rows = np.unique(np.linspace(0, len(names) - 1, min(options.images, len(names))).round().astype(int))
    max_pixels = loaded.settings.data.max_pixels
    keys = input_names(metadata)

    def read(name: str) -> dict[str, Any]:
        prepared = detector.prepare(read_image(data.paths.images_dir / name, max_pixels=max_pixels))
        assert isinstance(prepared, PreparedImage)
        try:
            detector.detect([prepared], DetectOptions())
        except _InputTaken:
            assert recorder.taken is not None
        assert recorder.taken is not None
        return {key: value.numpy() for key, value in zip(keys, recorder.taken, strict=True)}

    return [lambda name=names[row]: read(name) for row in rows]  # type: ignore[misc]


def _loaded(request: WriteRequest) -> LoadedModel:
    """The network in float, with the settings of the file."""
    metadata = request.metadata
    settings = metadata.parsed_settings("the settings")
    return LoadedModel(
        model=request.model,
        postprocess=build_postprocess(settings.test),
        settings=settings,
        class_names=metadata.class_names,
        category_ids=metadata.category_ids,
    )


def _replaced(loaded: LoadedModel, network: ExportedNetwork) -> LoadedModel:
    return LoadedModel(network, loaded.postprocess, loaded.settings, loaded.class_names, loaded.category_ids)


def _import_nncf() -> Any:
    try:
        import nncf
    except ImportError as error:
        raise ResourceError(
            "int8 files are written by NNCF, which is not installed: pip install 'codetr-cli[int8]'"
        ) from error
    return nncf
