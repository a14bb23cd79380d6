"""Every setting of the program with its default, range and description: one file for each of the larger tables.

    [model]   model_settings.py    the network
    [data]    data_settings.py     the data set and how its images are augmented
    [train]   train_settings.py    the training and its losses
    [test]    here                 image size at inference and post-processing
    [source]  here                 where published weights and numbers come from

Presets contain only values that differ from the defaults, which are those of the published Co-DINO R50, 5 scales, 12
epochs (Sense-X/Co-DETR, projects/configs/co_dino/co_dino_5scale_r50_1x_coco.py).
Sizes are (height, width) in pixels unless a name says otherwise. These modules never import torch.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field, model_validator

from codetr_cli.class_names import has_control_characters
from codetr_cli.config.data_settings import DataConfig
from codetr_cli.config.fields import Count, Fraction, Kept, Positive, Section, Side
from codetr_cli.config.model_settings import ModelConfig
from codetr_cli.config.train_settings import TrainConfig

NmsKind: TypeAlias = Literal["none", "hard", "soft"]
HeadName: TypeAlias = Literal["decoder", "roi", "atss"]


def _check_name(name: str) -> str:
    if name in ("", ".", "..") or "/" in name or "\\" in name or has_control_characters(name):
        raise ValueError("a name is not empty and has no slashes or control characters: folders are named after it")
    return name


def _check_scales(scales: tuple[float, ...]) -> tuple[float, ...]:
    wrong = [f"{scale:g}" for scale in scales if not (0 < scale <= 4 or 32 <= scale <= 2**14)]
    if wrong or not scales:
        raise ValueError(
            "give at least one scale: a factor up to 4, or a short side of at least 32 pixels"
            + (f"; {', '.join(wrong)} is neither" if wrong else "")
        )
    return scales


TtaScales = Annotated[tuple[float, ...], Field(max_length=64), AfterValidator(_check_scales)]


class TestConfig(Section):
    """Image size at inference and post-processing."""

    short_side: Side = Field(800, description="Short side that images are resized to.")
    long_side: Side = Field(1333, description="Maximum long side.")
    canvas: Side | None = Field(
        None, description="Side of a square canvas to resize and pad images to; replaces short_side and long_side."
    )
    fixed_size: tuple[Side, Side] | None = Field(
        None,
        description="Height and width of the input of every image: an image that is larger after short_side and "
        "long_side is reduced until it fits, and all are padded.",
    )
    batch_size: Count = Field(1, description="Images per batch.")
    max_detections: Kept = Field(300, description="Maximum detections per image.")
    candidates: Literal["max_detections", "num_queries"] = Field(
        "num_queries",
        description="Number of scores before NMS: max_detections as MMDetection 3.3, num_queries as Sense-X.",
    )
    nms: NmsKind = Field("soft", description="NMS within each class.")
    nms_iou: Fraction = Field(0.8, description="IoU threshold of NMS.")
    nms_min_score: Fraction = Field(1e-3, description="Soft-NMS drops boxes with a lower decayed score.")
    head: HeadName = Field("decoder", description="Head whose detections are used.")
    tta_scales: TtaScales = Field(
        (0.75, 1.0, 1.25),
        description="Scales of --tta: factors of the image size up to 4, or short sides of at least 32 pixels.",
    )
    tta_flip: bool = Field(True, description="--tta also uses horizontal flips.")
    cuda_graph: bool | Literal["auto"] = Field(
        "auto",
        description="Replay CUDA graphs for batches of recurring size, one per size; auto: on a canvas. Other devices "
        "and auxiliary heads ignore it.",
    )
    compile: bool = Field(
        False, description="Compile backbone and layers with torch.compile; needs a compiler on this machine."
    )
    openvino_device: Annotated[str, Field(pattern=r"^(CPU|GPU|NPU)(\.[0-9]{1,2})?$")] = Field(
        "CPU",
        description="What OpenVINO files run on: CPU, GPU, GPU.1 or NPU; --device gpu and npu set it. Checkpoints and "
        "other exported files ignore it.",
    )
    allow_nonfinite_weights: bool = Field(
        False,
        description="Load weights with NaN or infinite values, by any command, instead of refusing the file.",
    )

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the largest landscape image, without padding to `data.pad_divisor`."""
        if self.canvas is not None:
            return self.canvas, self.canvas
        return self.fixed_size or (self.short_side, self.long_side)


class SourceConfig(Section):
    """Source of the weights and of the published numbers of a preset."""

    config: str | None = Field(None, description="Published configuration.")
    url: str | None = Field(None, description="URL of the published file, for `codetr download`.")
    page: str | None = Field(None, description="Page or folder with the published file.")
    filename: str | None = Field(None, description="Name of the published file; none: the end of the URL.")
    bytes: Positive | None = Field(None, description="Exact size of the published file.")
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the published file.")
    licence: str | None = Field(None, description="Licence of the published weights.")
    recipe: Literal["published", "reasoned"] = Field(
        "published",
        description="reasoned: the training settings were not published; comments in the preset explain them.",
    )
    box_ap: float | None = Field(None, description="Published single-scale box AP.")
    mask_ap: float | None = Field(None, description="Published single-scale mask AP.")
    box_ap_tta: float | None = Field(None, description="Published box AP with test-time augmentation.")
    mask_ap_tta: float | None = Field(None, description="Published mask AP with test-time augmentation.")
    protocol: str | None = Field(None, description="How these numbers were measured.")


class Settings(Section):
    """All settings of one run, as printed by `--dry-run` and saved in each run folder and checkpoint."""

    name: Annotated[str, Field(max_length=200), AfterValidator(_check_name)] = Field(description="Name of the preset.")
    summary: str = Field("", description="One line about the preset.")
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    test: TestConfig = TestConfig()
    source: SourceConfig = SourceConfig()

    @property
    def needs_masks(self) -> bool:
        """Whether training needs masks of objects: for a mask head or for copy-paste."""
        return self.learns_masks or self.data.copy_paste == "masks"

    @property
    def learns_masks(self) -> bool:
        """Whether the network has a mask head to train."""
        return self.model.mask.kind != "none"

    @model_validator(mode="after")
    def _fixed_sizes_fit_the_divisor(self) -> Settings:
        for name, canvas in (("data", self.data.canvas), ("test", self.test.canvas)):
            if canvas is not None and canvas % self.data.pad_divisor:
                raise ValueError(
                    f"{name}.canvas {canvas} is not a multiple of data.pad_divisor {self.data.pad_divisor}: "
                    "a canvas is the padded size"
                )
        fixed = self.test.fixed_size
        if fixed is not None and self.test.canvas is not None:
            raise ValueError("test.fixed_size and test.canvas both set the size of the input: set one of them")
        if fixed is not None and any(side % self.data.pad_divisor for side in fixed):
            raise ValueError(
                f"test.fixed_size {fixed[0]} x {fixed[1]} is no multiple of data.pad_divisor {self.data.pad_divisor}: "
                "it is the padded size"
            )
        return self
