"""What an exported file says of itself: how to prepare its input, what its outputs are, and where it comes from.

One JSON text under `METADATA_KEY` in the file. It comes from a file of unknown origin: every value is checked.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from codetr_cli.config.checkpoint_settings import parse_stored
from codetr_cli.config.schema import Settings
from codetr_cli.errors import CheckpointError, ConfigError
from codetr_cli.reading import parse_json
from codetr_cli.weights.metadata import parse_classes

METADATA_KEY = "codetr"
FORMAT: Final = "codetr-export-1"
MAX_METADATA = 8 * 2**20  # characters
VERSION: str = importlib.import_module("codetr_cli").__version__

Side = Annotated[int, Field(gt=0, le=2**14)]
TileSide = Annotated[int, Field(ge=32, le=2**14)]
Count = Annotated[int, Field(gt=0, le=2**16)]
Text = Annotated[str, Field(max_length=1000)]

ExportFormat = Literal["onnx", "openvino", "tensorrt", "torch"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]
Attention = Literal["gridsample", "gather", "plugin"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class InputRule(_Part):
    """How an image becomes the input `images`, and its valid size `image_sizes` (B, 2) int64 as (height, width).

    Attributes:
        height: of every input; None: any multiple of `divisor`.
        width: of every input; None: any multiple of `divisor`.
        batch: images of every input; None: any number.
        pixels: the input is uint8 RGB (B, H, W, 3) and the graph normalises it; otherwise it is float32 RGB
            (B, 3, H, W), normalised, and zero in the padding.
        divisor: sides of the input are multiples of it.
        short_side: the image is resized, keeping its ratio, until a side is at its limit.
        long_side: limit of the long side.
        canvas: side of a square that the image is resized to fit in and padded to with grey 114 before it is
            normalised; it replaces both limits, and all of the square is valid.
        mean: of each RGB channel, 0..255.
        std: of each RGB channel, 0..255.
    """

    height: Side | None
    width: Side | None
    batch: Count | None
    pixels: bool = False
    divisor: Annotated[int, Field(gt=0, le=1024)] = 1
    short_side: Side = 800
    long_side: Side = 1333
    canvas: Side | None = None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class OutputRule(_Part):
    """What the outputs mean, and what is done with them.

    Attributes:
        detections: the outputs are `boxes` (B, N, 4) xyxy in pixels of the valid input, clipped to it, `scores` (B, N),
            best first, and `labels` (B, N) int64, with N at least `candidates`; otherwise `logits` (B, Q, K) and
            `boxes` (B, Q, 4) as cxcywh in [0, 1] of the valid input.
        masks: `masks` (B, N, M, M), probabilities on a grid over each box, and `mask_ious` (B, N) are outputs, too.
        candidates: number of best scores, over queries and classes, that enter NMS: the first ones of `detections`.
        nms: "soft", "hard" or "none", within each class.
        nms_iou: its IoU threshold.
        nms_min_score: soft-NMS drops boxes with a lower decayed score.
        max_detections: kept of an image.
    """

    detections: bool = False
    masks: bool = False
    candidates: Count
    nms: Literal["soft", "hard", "none"]
    nms_iou: Annotated[float, Field(ge=0, le=1)]
    nms_min_score: Annotated[float, Field(ge=0, le=1)]
    max_detections: Count

    def kept(self, queries: int) -> int:
        """N of an image with at least as many tokens as queries: tiles, or another NMS, may need all queries' boxes.

        Masks of that many would be large.
        """
        return self.candidates if self.masks else max(self.candidates, queries)


class TilesRule(_Part):
    """The tiles that large images are cut into unless others are asked for; see `inference.options.TileOptions`."""

    size: tuple[TileSide, TileSide] | None
    overlap: Annotated[float, Field(ge=0, le=0.9)]
    whole: bool = True


class WeightsSource(_Part):
    """The weights in the file.

    Attributes:
        file: name of the checkpoint.
        sha256: of the checkpoint; None: random weights.
        licence: of the weights, as far as it is known.
    """

    file: Text
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None
    licence: Text | None


class ExportMetadata(_Part):
    """All of it.

    Attributes:
        format: of this metadata.
        settings: of the network, `test` as detections are made with the file.
        class_names: by label.
        category_ids: by label.
        input: see there.
        output: see there.
        export_format: what the file is for.
        precision: of the weights and most of the arithmetic.
        attention: how deformable attention is expressed.
        tiles: default tiles; None: images are seen as a whole.
        weights: in the file.
        versions: of codetr and of the libraries that wrote the file.
    """

    format: Literal["codetr-export-1"] = FORMAT
    settings: dict[str, Any]
    class_names: Annotated[list[str], Field(max_length=2**16)]
    category_ids: Annotated[list[int], Field(max_length=2**16)]
    input: InputRule
    output: OutputRule
    export_format: ExportFormat
    precision: Precision
    attention: Attention
    tiles: TilesRule | None = None
    weights: WeightsSource
    versions: Annotated[dict[str, Text], Field(max_length=50)]

    def to_json(self) -> str:
        """For the file."""
        return json.dumps(self.model_dump(mode="json"), ensure_ascii=False)

    def parsed_settings(self, where: str) -> Settings:
        """The stored settings; `config.checkpoint_settings` says which of them count.

        Raises:
            ConfigError: they cannot be read.
        """
        return parse_stored(self.settings, where=where)


def input_names(metadata: ExportMetadata) -> list[str]:
    """Names of the inputs, in order."""
    return ["images", "image_sizes"]


def output_names(metadata: ExportMetadata) -> list[str]:
    """Names of the outputs, in order."""
    if not metadata.output.detections:
        return ["logits", "boxes"]
    return ["boxes", "scores", "labels", *(("masks", "mask_ious") if metadata.output.masks else ())]


def describe_inputs(metadata: ExportMetadata) -> list[str]:
    """The inputs, one line each: name, type, shape and meaning."""
    rule = metadata.input
    batch = "B" if rule.batch is None else rule.batch
    sides = f"{rule.height or 'H'}, {rule.width or 'W'}"
    images = f"uint8 ({batch}, {sides}, 3), RGB" if rule.pixels else f"float32 ({batch}, 3, {sides}), normalised RGB"
    multiple = f", multiples of {rule.divisor}" if rule.height is None and rule.divisor > 1 else ""
    return [
        f"images: {images}, 0 where padded{multiple}",
        f"image_sizes: int64 ({batch}, 2), height and width without the padding",
    ]


def describe_outputs(metadata: ExportMetadata) -> list[str]:
    """The outputs, one line each."""
    batch = "B" if metadata.input.batch is None else metadata.input.batch
    rule, model = metadata.output, metadata.settings["model"]
    queries, classes = model["num_queries"], model["num_classes"]
    if not rule.detections:
        return [
            f"logits: float32 ({batch}, {queries}, {classes}), before the sigmoid",
            f"boxes: float32 ({batch}, {queries}, 4), centre x, centre y, width, height, as shares of the valid image",
        ]
    count = rule.kept(queries)
    lines = [
        f"boxes: float32 ({batch}, {count}, 4), x1, y1, x2, y2 in pixels of the input, before NMS",
        f"scores: float32 ({batch}, {count}), best first",
        f"labels: int64 ({batch}, {count})",
    ]
    if rule.masks:
        lines += [
            f"masks: float32 ({batch}, {count}, M, M), probabilities on a grid over each box",
            f"mask_ious: float32 ({batch}, {count}), estimated quality of each mask",
        ]
    return lines


def parse_metadata(text: str | None, where: str) -> ExportMetadata:
    """The metadata of a file.

    Args:
        text: the JSON; None: the file has none.
        where: the file, for messages.

    Raises:
        CheckpointError: none, of a newer format, or with values that codetr does not write.
    """
    if text is None:
        raise CheckpointError(
            f"{where} was not written by `codetr export`: it does not say how its input is prepared and what its "
            "outputs are. Export the checkpoint again with codetr."
        )
    try:
        if len(text) > MAX_METADATA:
            raise ValueError(f"they have {len(text):,} characters")
        table = parse_json(text, unique_keys=True)
        if isinstance(table, dict) and table.get("format") != FORMAT:
            raise CheckpointError(
                f"{where} has metadata of format {str(table.get('format'))[:40]!r}, and codetr {VERSION} reads "
                f"{FORMAT!r}. Install a newer codetr, or export again."
            )
        metadata = ExportMetadata.model_validate_json(text)
        texts = {
            "class_names": json.dumps(metadata.class_names),
            "category_ids": json.dumps(metadata.category_ids),
            "extra": "{}",
        }
        settings = metadata.parsed_settings(where)
        classes = parse_classes(texts, settings.model.num_classes, where)
    except ValidationError as error:
        raise CheckpointError(f"{where} has metadata that codetr does not write: {_reasons(error)}.") from error
    except (ValueError, ConfigError) as error:
        raise CheckpointError(f"{where} has metadata that codetr does not write: {error}.") from error
    return metadata.model_copy(update={"class_names": classes.class_names})


def _reasons(error: ValidationError) -> str:
    found = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:3]]
    return "; ".join(found)


def rgb(values: Sequence[float]) -> tuple[float, float, float]:
    """Three numbers as a tuple."""
    red, green, blue = values
    return red, green, blue
