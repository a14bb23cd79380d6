"""What `codetr export` is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from codetr_cli.errors import ConfigError
from codetr_cli.inference.exported.metadata import Attention, ExportFormat, Precision
from codetr_cli.inference.options import TileOptions

MAX_SIDE = 2**14
"""Pixels of a side of the input or of a tile, at most."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How a checkpoint is exported.

    Attributes:
        format: of the file.
        size: (height, width) of the input; None: of the settings, see `job.export_settings`.
        dynamic_size: images of any size, padded to the settings' divisor.
        batch: images of every input; None: any number.
        precision: of the weights and most of the arithmetic.
        attention: how deformable attention is expressed: "gridsample", "gather" or "plugin"; None: what suits the
            format.
        preprocess: the input is uint8, and the graph normalises it.
        postprocess: the outputs are the best boxes, scores and labels instead of logits. Networks with masks need it.
        tiles: default tiles of large images, for programs that use the file.
    """

    format: ExportFormat = "onnx"
    size: tuple[int, int] | None = None
    dynamic_size: bool = False
    batch: int | None = None
    precision: Precision = "fp32"
    attention: Attention | None = None
    preprocess: bool = False
    postprocess: bool = False
    tiles: TileOptions | None = None

    def __post_init__(self) -> None:
        if self.size is not None and self.dynamic_size:
            raise ConfigError("--size sets one size and --dynamic-size allows any: use one of them")
        for name, sides in (("--size", self.size), ("--tiles", None if self.tiles is None else self.tiles.size)):
            if sides is not None and not all(1 <= side <= MAX_SIDE for side in sides):
                raise ConfigError(f"{name} {sides[0]}x{sides[1]}: sides are from 1 to {MAX_SIDE} pixels")
        if self.precision == "int8" and self.format != "openvino":
            raise ConfigError(f"--format {self.format} has no int8: use --format openvino, or --precision fp32")
        if self.precision == "bf16" and self.format != "torch":
            raise ConfigError(
                f"--format {self.format} --precision bf16: the file is or starts as ONNX, whose convolutions have no "
                "bfloat16 up to opset 18, and TensorRT misreads newer ones. Use --precision fp16, or --format torch"
            )
        if self.attention == "plugin" and self.format not in PLUGIN_FORMATS:
            raise ConfigError(
                f"--attention plugin is a node that TensorRT alone computes, and --format {self.format} runs without "
                "TensorRT: use --attention gridsample or gather, or --format tensorrt, onnx or torch"
            )


PLUGIN_FORMATS: tuple[ExportFormat, ...] = ("onnx", "tensorrt", "torch")
"""Formats of `attention="plugin"`: TensorRT's files, those that it reads, and packages with codetr's own kernel."""


SUFFIXES: dict[ExportFormat, str] = {"onnx": ".onnx", "openvino": ".xml", "tensorrt": ".engine", "torch": ".pt2"}
