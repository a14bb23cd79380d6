"""Every setting of the program with its default, range and description.

Presets contain only values that differ from the defaults here, which are those of the published Co-DINO R50, 5
scales, 12 epochs (Sense-X/Co-DETR, projects/configs/co_dino/co_dino_5scale_r50_1x_coco.py).
Sizes are (height, width) in pixels unless a name says otherwise. This module never imports torch.

Every number is finite and has limits, and so have texts and lists: settings also come in files of strangers, and none
of them may request work without end. The limits are far beyond what detectors need.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from codetr_cli.class_names import has_control_characters

MAX_TEXT = 4096  # characters: the longest path of Linux
MAX_LIST = 1000

Positive = Annotated[int, Field(gt=0, le=10**12)]
Count = Annotated[int, Field(gt=0, le=10**6)]  # of boxes, regions or images
# Of what no weight depends on and time and memory do, some with the square; published are up to 8,000 and 2,000.
Candidates = Annotated[int, Field(gt=0, le=20_000)]
Kept = Annotated[int, Field(gt=0, le=10_000)]
Layers = Annotated[int, Field(gt=0, le=64)]
Channels = Annotated[int, Field(gt=0, le=2**16)]
Side = Annotated[int, Field(gt=0, le=2**14)]  # in pixels
Std = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
DatasetName: TypeAlias = Literal["coco", "lvis", "objects365"]
FormatName: TypeAlias = Literal["coco", "yolo", "voc", "cvat", "labelme", "label-studio", "csv", "parquet"]
BoxFormat: TypeAlias = Literal["xyxy", "xywh", "cxcywh", "relative-xyxy", "relative-xywh", "relative-cxcywh"]
YoloLabels: TypeAlias = Literal["boxes", "outlines"]
Precision: TypeAlias = Literal["auto", "fp32", "tf32", "bf16", "fp16"]
NmsKind: TypeAlias = Literal["none", "hard", "soft"]
HeadName: TypeAlias = Literal["decoder", "roi", "atss"]


def _check_name(name: str) -> str:
    if name in ("", ".", "..") or "/" in name or "\\" in name or has_control_characters(name):
        raise ValueError("a name is not empty and has no slashes or control characters: folders are named after it")
    return name


def _split_words(value: Any) -> Any:
    """Splits comma-separated text into a list; other values stay as they are."""
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


def _no_clipping(value: Any) -> Any:
    """0 for infinity, which earlier versions accepted and JSON writes as null."""
    return 0.0 if value is None or value == float("inf") else value


class Section(BaseModel):
    """A table of settings: unknown keys are errors and values are immutable after validation."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, str_max_length=MAX_TEXT
    )


# ---------------------------------------------------------------------------------------------------------------- model


class ResNetConfig(Section):
    """A residual network with torchvision's parameter names (arXiv 1512.03385)."""

    kind: Literal["resnet"] = "resnet"
    block: Literal["basic", "bottleneck"] = "bottleneck"
    layers: tuple[Layers, Layers, Layers, Layers] = Field((3, 4, 6, 3), description="Number of blocks per stage.")
    base_channels: Channels = Field(
        64, description="Channels of the stem; stage i has base_channels * 2**i (times 4 for bottlenecks)."
    )
    norm: Literal["frozen_batch", "group"] = Field(
        "frozen_batch",
        description="frozen_batch needs pretrained statistics; group (8 groups) is for training from scratch.",
    )
    frozen_stages: Annotated[int, Field(ge=0, le=4)] = Field(
        1, description="Number of frozen stages, including the stem; 0: train everything."
    )
    checkpointing: bool = Field(False, description="Recompute each stage in the backward pass to save memory.")


class SwinConfig(Section):
    """A hierarchical transformer with shifted windows (arXiv 2103.14030); the defaults are Swin-T."""

    kind: Literal["swin"] = "swin"
    embed_dim: Channels = Field(96, description="Channels of the first stage; they double with every stage.")
    layers: tuple[Layers, Layers, Layers, Layers] = Field((2, 2, 6, 2), description="Number of blocks per stage.")
    num_heads: tuple[Channels, Channels, Channels, Channels] = Field(
        (3, 6, 12, 24), description="Attention heads per stage."
    )
    window_size: Annotated[int, Field(gt=0, le=32)] = Field(7, description="Side of an attention window in tokens.")
    drop_path: Fraction = Field(0.2, description="Share of residual branches dropped in the last block in training.")
    checkpointing: bool = Field(False, description="Recompute each block in the backward pass to save memory.")

    @model_validator(mode="after")
    def _divisible(self) -> SwinConfig:
        for stage, heads in enumerate(self.num_heads):
            if self.embed_dim * 2**stage % heads:
                channels = self.embed_dim * 2**stage
                raise ValueError(f"the {channels} channels of stage {stage} are not divisible by {heads} heads")
        return self


class ViTConfig(Section):
    """A plain transformer with rotary position encoding, window and global blocks (EVA-02, arXiv 2303.11331); ViT-L."""

    kind: Literal["vit"] = "vit"
    embed_dim: Channels = Field(1024, description="Channels.")
    depth: Layers = Field(24, description="Number of blocks.")
    num_heads: Channels = Field(16, description="Attention heads.")
    hidden_dim: Channels = Field(2730, description="Channels inside the gated feed-forward layers.")
    patch_size: Side = Field(16, description="Side of a token in pixels.")
    window_size: Annotated[int, Field(gt=0, le=64)] = Field(24, description="Side of an attention window in tokens.")
    global_blocks: tuple[Annotated[int, Field(ge=0, le=10**12)], ...] = Field(
        (3, 7, 11, 15, 19, 23),
        max_length=MAX_LIST,
        description="Blocks that attend to the whole image, 0-based; all others attend within windows.",
    )
    pretrain_size: Side = Field(512, description="Image side of the position table.")
    fixed_size: Side | None = Field(
        None, description="Side of fixed rotary tables, the only supported image side; none: tables follow the image."
    )
    drop_path: Fraction = Field(0.4, description="Share of residual branches dropped in the last block in training.")
    checkpointing: bool = Field(True, description="Recompute each block in the backward pass to save memory.")

    @model_validator(mode="after")
    def _fits_together(self) -> ViTConfig:
        if self.embed_dim % (4 * self.num_heads):
            raise ValueError(f"embed_dim {self.embed_dim} is not divisible by 4 x num_heads {self.num_heads}")
        if self.global_blocks and max(self.global_blocks) >= self.depth:
            raise ValueError(f"global_blocks {self.global_blocks} name a block beyond depth {self.depth}")
        for name, size in (("pretrain_size", self.pretrain_size), ("fixed_size", self.fixed_size or 0)):
            if size % self.patch_size:
                raise ValueError(f"{name} {size} is not divisible by patch_size {self.patch_size}")
        return self


def _default_kind(table: Any) -> Any:
    return {"kind": "resnet", **table} if isinstance(table, dict) else table


BackboneConfig = Annotated[
    ResNetConfig | SwinConfig | ViTConfig, Field(discriminator="kind"), BeforeValidator(_default_kind)
]


class RpnConfig(Section):
    """Region proposal network on the encoder's maps."""

    octave_base_scale: Std = Field(4.0, description="Size of the smallest anchor in strides.")
    scales_per_octave: Annotated[int, Field(gt=0, le=64)] = Field(3, description="Anchor sizes per octave.")
    ratios: tuple[Std, ...] = Field(
        (0.5, 1.0, 2.0), min_length=1, max_length=64, description="Height over width of the anchors."
    )
    proposals_pre_nms_train: Candidates = Field(4000, description="Best anchors kept per level before NMS in training.")
    proposals_pre_nms_test: Candidates = Field(1000, description="The same at inference.")
    num_proposals: Kept = Field(1000, description="Proposals kept per image after NMS in training.")
    num_proposals_test: Kept = Field(1000, description="The same at inference.")
    nms_iou: Fraction = Field(0.7, description="IoU threshold of NMS in training.")
    nms_iou_test: Fraction = Field(0.7, description="The same at inference.")


class RoiConfig(Section):
    """Class and box head on pooled regions of the encoder's maps."""

    num_convs: Annotated[int, Field(ge=0, le=64)] = Field(
        0, description="Normed 3x3 convolutions on each pooled region."
    )
    num_fcs: Layers = Field(2, description="Fully connected layers after them.")
    fc_dim: Channels = Field(1024, description="Channels of the fully connected layers.")
    class_agnostic: bool = Field(
        False, description="Predict one box for all classes of a region instead of one box per class."
    )
    output_size: Annotated[int, Field(gt=0, le=64)] = Field(7, description="Side of a pooled region in cells.")
    finest_scale: Positive | None = Field(
        None, description="Regions up to this many pixels (square root of area) use level 0; none: 14 cells of level 0."
    )
    target_stds: tuple[Std, Std, Std, Std] = Field((0.1, 0.1, 0.2, 0.2), description="Scale of box deltas.")
    nms: Literal["hard", "soft"] = Field("hard", description="NMS of --head roi.")
    nms_iou: Fraction = Field(0.5, description="IoU threshold of that NMS.")
    max_detections: Kept = Field(100, description="Detections per image of --head roi.")


class AtssConfig(Section):
    """One-stage head with adaptive sample selection (arXiv 1912.02424)."""

    octave_base_scale: Std = Field(8.0, description="Size of the anchor in strides.")
    target_stds: tuple[Std, Std, Std, Std] = Field((0.1, 0.1, 0.2, 0.2), description="Scale of box deltas.")
    pre_nms: Candidates = Field(1000, description="Best cells kept per level before NMS by --head atss.")
    nms: Literal["hard", "soft"] = Field("hard", description="NMS of --head atss.")
    nms_iou: Fraction = Field(0.6, description="IoU threshold of that NMS.")
    max_detections: Kept = Field(100, description="Detections per image of --head atss.")


class MaskConfig(Section):
    """Instance masks: none, a small network in the RoI head (fcn), or one that refines the decoder's detections.

    fcn: arXiv 1703.06870; refine: arXiv 2104.08569 with the scores of arXiv 1903.00241.
    """

    kind: Literal["none", "fcn", "refine"] = Field("none", description="Mask head: none, fcn or refine.")
    dim: Channels = Field(256, description="Channels; refine halves them at each stage.")
    pooled_size: Annotated[int, Field(gt=0, le=64)] = Field(
        14, description="Side of a pooled region in cells; masks of refine have 8 times that."
    )
    finest_scale: Positive | None = Field(
        None, description="Regions up to this many pixels (square root of area) use level 0; none: 14 cells of level 0."
    )
    num_convs: Layers = Field(4, description="Convolutions of fcn on each region.")
    instance_convs: Layers = Field(1, description="Convolutions of refine on each region.")
    semantic_convs: Layers = Field(2, description="Convolutions of refine on the finest map of the whole image.")
    dilations: tuple[Layers, Layers, Layers] = Field(
        (1, 3, 5), description="Dilations of the parallel convolutions of refine."
    )
    iou_convs: Layers = Field(2, description="Convolutions of refine's mask IoU head.")
    iou_fc_dim: Channels = Field(1024, description="Channels of the fully connected layer of that head.")
    regions_per_chunk: Kept = Field(150, description="Regions per chunk of mask prediction at inference.")

    @model_validator(mode="after")
    def _can_be_halved(self) -> MaskConfig:
        if self.kind == "refine" and (self.dim < 16 or self.dim % 8):
            raise ValueError(f"refine halves dim {self.dim} three times: use a multiple of 8, at least 16")
        if self.kind == "refine" and self.pooled_size % 2:
            raise ValueError(f"refine needs an even pooled_size, not {self.pooled_size}")
        return self


class ModelConfig(Section):
    """The network. A checkpoint fits only the values that it was trained with."""

    family: Literal["co_dino", "co_deformable"] = Field("co_dino", description="Co-DINO or Co-Deformable-DETR.")
    num_classes: Annotated[int, Field(gt=0, le=10**5)] = Field(
        80, description="Number of classes; `codetr train` sets it from the annotations."
    )
    backbone: BackboneConfig = ResNetConfig()
    embed_dim: Channels = Field(256, description="Channels of encoder, decoder and heads.")
    num_heads: Channels = Field(8, description="Attention heads of encoder and decoder.")
    num_points: Layers = Field(4, description="Sampling points per head and level of deformable attention.")
    attention_backend: Literal["auto", "triton", "cpu", "mmcv", "torch", "reference"] = Field(
        "auto", description="Backend of deformable attention; auto: the fastest one that is verified on this machine."
    )
    finest_stride: Literal[4, 8] = Field(4, description="Stride in pixels of the finest map of the encoder.")
    num_levels: Annotated[int, Field(ge=4, le=10)] = Field(
        5, description="Levels of the encoder: backbone maps and strided convolutions."
    )
    norm_groups: Channels = Field(32, description="Groups of the group norms of neck and auxiliary heads.")
    ffn_dim: Channels = Field(2048, description="Hidden channels of the feed-forward layers.")
    encoder_layers: Layers = Field(6, description="Number of encoder layers.")
    encoder_checkpointing: Annotated[int, Field(ge=0, le=64)] = Field(
        4, description="Number of first encoder layers that are recomputed in the backward pass to save memory."
    )
    decoder_layers: Layers = Field(6, description="Number of decoder layers.")
    decoder_checkpointing: bool = Field(False, description="Recompute each decoder layer in the backward pass.")
    aux_checkpointing: bool = Field(
        False, description="Recompute the auxiliary heads' convolutions in the backward pass."
    )
    num_queries: Kept = Field(900, description="Number of decoder queries.")
    position_temperature: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Temperature of the encoder's sine encoding; none: 20 for co_dino, 10000 for co_deformable."
    )
    rpn: RpnConfig = RpnConfig()
    roi: RoiConfig = RoiConfig()
    atss: AtssConfig = AtssConfig()
    mask: MaskConfig = MaskConfig()

    @model_validator(mode="after")
    def _divisible(self) -> ModelConfig:
        for name, divisor in (("num_heads", self.num_heads), ("norm_groups", self.norm_groups), ("4", 4)):
            if self.embed_dim % divisor:
                raise ValueError(f"embed_dim {self.embed_dim} is not divisible by {name} {divisor}")
        return self

    @model_validator(mode="after")
    def _levels_of_the_pyramid(self) -> ModelConfig:
        if self.backbone.kind == "vit" and (self.finest_stride, self.num_levels) != (4, 5):
            raise ValueError(
                f"backbone vit needs finest_stride 4 and num_levels 5, not {self.finest_stride} and {self.num_levels}"
            )
        return self


# ----------------------------------------------------------------------------------------------------------------- data


class DataConfig(Section):
    """The data set and how its images are resized and augmented. Sides are in pixels."""

    dataset: DatasetName = Field(
        "coco", description="Type of data set; coco covers every layout other than LVIS and Objects365."
    )
    format: FormatName | None = Field(
        None, description="Layout of the data sets' folders, where several are possible; none: by their content."
    )
    box_format: BoxFormat | None = Field(
        None,
        description="Meaning of a box's four numbers in CSV and parquet files that do not state it: corners, upper "
        "left corner and size, or centre and size; in pixels, or relative to the image's size.",
    )
    root: str | None = Field(None, description="Folder of the data set; none: $CODETR_DATA, else data/<dataset>.")
    extra_roots: Annotated[tuple[str, ...], BeforeValidator(_split_words)] = Field(
        (),
        max_length=MAX_LIST,
        description="Folders of additional data sets in any known layout, merged with root by class name.",
    )
    annotations: str | None = Field(
        None, description="One annotation file of COCO's kind instead of root; a part is reserved, see val_fraction."
    )
    images: str | None = Field(
        None, description="Folder of the images of `annotations`; none: found near it by the file names in it."
    )
    train_images: str | None = Field(None, description="Folder of training images; none: <root>/train2017 for COCO.")
    train_annotations: str | None = Field(None, description="Training annotations; none: those found in root.")
    val_images: str | None = Field(None, description="Folder of validation images; none: <root>/val2017 for COCO.")
    val_annotations: str | None = Field(None, description="Validation annotations; none: those found in root.")
    val_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.2,
        description="Share of the images reserved for validation in a data set without validation and test images; 0: "
        "none.",
    )
    yolo_labels: YoloLabels | None = Field(
        None,
        description="Rows of more than 5 columns in YOLO's label files. boxes: the first four numbers after the class "
        "are the box, the others are not used; outlines: points; none: by kpt_shape of data.yaml, else outlines, or an "
        "error if they could be either.",
    )
    filter_empty: bool = Field(False, description="Skip training images without annotations.")
    oversample_threshold: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="Repeat images of classes that occur in a smaller share of images; published for LVIS: 0.001."
    )
    mean: tuple[float, float, float] = Field((123.675, 116.28, 103.53), description="RGB mean, range 0 to 255.")
    std: tuple[Std, Std, Std] = Field((58.395, 57.12, 57.375), description="RGB standard deviation, range 0 to 255.")
    augmentation: Literal["detr", "lsj", "none"] = Field(
        "detr", description="detr: flip, multi-scale, random crop; lsj: large-scale jittering on a square canvas."
    )
    short_sides: tuple[Side, ...] = Field(
        tuple(range(480, 801, 32)),
        min_length=1,
        max_length=MAX_LIST,
        description="detr: short sides that training images are randomly resized to.",
    )
    long_side: Side = Field(1333, description="detr: maximum long side of training images.")
    crop_short_sides: tuple[Side, ...] = Field(
        (400, 500, 600),
        min_length=1,
        max_length=MAX_LIST,
        description="detr: short sides that images are resized to before a random crop.",
    )
    crop_long_side: Side = Field(4200, description="detr: maximum long side before a random crop.")
    crop_size: tuple[Side, Side] = Field((384, 600), description="detr: range of the sides of a random crop.")
    flip_probability: Fraction = Field(0.5, description="Probability of a horizontal flip.")
    canvas: Side | None = Field(None, description="lsj: side of the square that training images are padded to.")
    lsj_ratio: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = Field(
        (0.1, 2.0), description="lsj: range of the random factor from the canvas to the long side."
    )
    copy_paste: Literal["none", "masks", "boxes"] = Field(
        "none", description="lsj: paste objects of a second image by their masks or as whole boxes."
    )
    max_pasted: Count = Field(100, description="Maximum number of pasted objects per image, exclusive.")
    pad_divisor: Annotated[int, Field(gt=0, le=1024)] = Field(
        1, description="Pad images to a multiple of this many pixels."
    )
    min_side: Side = Field(32, description="Skip training images with a smaller side, as published.")
    max_pixels: Positive = Field(
        100_000_000, description="Images with more pixels are errors, detected from their header."
    )
    bad_files: Literal["error", "skip"] = Field(
        "error",
        description="Unreadable image files. error: stop at the first; skip: continue without them and list them in "
        "bad_files.txt of the run.",
    )
    allow_outside: bool = Field(
        False,
        description="Follow names of images in annotations and lists that lead out of the data set's folder.",
    )
    max_images: Positive | None = Field(
        None, description="Train on the first images only, for example to overfit a few."
    )
    workers: Annotated[int, Field(ge=0, le=1024)] = Field(
        2, description="Worker processes that load and augment images, per training process."
    )
    aspect_grouping: bool = Field(True, description="Build batches of images with the same orientation, as published.")

    @model_validator(mode="after")
    def _augmentation_is_complete(self) -> DataConfig:
        if self.augmentation == "lsj" and self.canvas is None:
            raise ValueError("augmentation 'lsj' needs a canvas: set data.canvas, for example to 1024")
        if self.augmentation != "lsj" and self.copy_paste != "none":
            raise ValueError(
                f"copy_paste {self.copy_paste!r} needs augmentation 'lsj': set data.copy_paste to \"none\" too"
            )
        if self.lsj_ratio[0] > self.lsj_ratio[1]:
            raise ValueError(f"lsj_ratio {self.lsj_ratio} must be (smaller, larger)")
        return self


# ------------------------------------------------------------------------------------------------------------- training


class LossConfig(Section):
    """Weights and switches of the objective, as published; auxiliary heads include lambda_2 x 6 layers = 12."""

    class_weight: float = Field(1.0, description="Classification loss of queries.")
    l1_weight: float = Field(5.0, description="L1 box loss of queries.")
    giou_weight: float = Field(2.0, description="GIoU loss of queries.")
    class_cost: float = Field(2.0, description="Classification cost of Hungarian matching.")
    l1_cost: float = Field(5.0, description="L1 cost of Hungarian matching.")
    giou_cost: float = Field(2.0, description="GIoU cost of Hungarian matching.")
    denoising_queries: Annotated[int, Field(ge=0, le=10**4)] = Field(
        100, description="Approximate number of denoising query pairs; 0: off. Co-DINO only."
    )
    label_noise: Fraction = Field(0.5, description="Twice the share of denoising labels that are replaced.")
    box_noise: float = Field(1.0, description="Maximum shift of denoising box corners in half sides.")
    aux_heads: bool = Field(True, description="Train the RPN, RoI and ATSS heads along with the decoder.")
    positive_queries: bool = Field(
        True, description="Decode positive boxes of the auxiliary heads as extra queries (needs aux_heads)."
    )
    rpn_class_weight: float = Field(12.0, description="Objectness loss of the RPN.")
    rpn_l1_weight: float = Field(12.0, description="L1 box loss of the RPN.")
    roi_class_weight: float = Field(12.0, description="Classification loss of the RoI head.")
    roi_giou_weight: float = Field(120.0, description="GIoU loss of the RoI head.")
    atss_class_weight: float = Field(12.0, description="Classification loss of the ATSS head.")
    atss_giou_weight: float = Field(24.0, description="GIoU loss of the ATSS head.")
    atss_centerness_weight: float = Field(12.0, description="Centerness loss of the ATSS head.")
    positive_queries_weight: float = Field(1.0, description="Losses of positive queries: lambda_1 of the paper.")
    max_positive_queries: Count = Field(300, description="Maximum positive queries per image and auxiliary head.")
    rpn_samples: Count = Field(256, description="Anchors per image that the RPN is trained on.")
    roi_samples: Count = Field(512, description="Regions per image that the RoI head is trained on.")
    roi_mask_weight: float = Field(12.0, description="Mask loss of the RoI head (model.mask.kind fcn).")
    mask_weight: float = Field(15.96, description="Loss of refined masks (model.mask.kind refine): 1.33 x 12.")
    mask_stage_weights: tuple[float, float, float, float] = Field(
        (0.5, 0.75, 0.75, 1.0), description="Weights of the four sizes of refined masks."
    )
    mask_iou_weight: float = Field(6.0, description="Loss of the estimated IoU of refined masks.")
    mask_candidates: Count = Field(1000, description="Best detections per image that refined masks are trained on.")
    mask_samples: Count = Field(
        512, description="Regions sampled from these per image; up to a quarter are positive and used."
    )

    @model_validator(mode="after")
    def _queries_need_heads(self) -> LossConfig:
        if self.positive_queries and not self.aux_heads:
            raise ValueError("positive_queries needs aux_heads: set both to false")
        return self


LoggerName = Literal["tensorboard", "wandb", "mlflow"]


class TrainConfig(Section):
    """Optimizer, schedule and everything else about a training run."""

    backbone_weights: str = Field(
        "auto",
        description="Pretrained backbone without --weights: a name of `codetr download`, a preset, file or URL. "
        "auto: the matching one, if downloaded; none: random weights.",
    )
    auto_recipe: bool = Field(
        True,
        description="Choose epochs, lr, milestones, warm-up, frozen backbone and evaluation interval from the number "
        "of images, unless set explicitly; false: as in the preset.",
    )
    epochs: Positive = Field(12, description="Passes over the training images.")
    min_steps: Positive = Field(
        20_000,
        description="auto_recipe: minimum optimizer steps from scratch; 10 % of that when fine-tuning.",
    )
    max_steps: Positive | None = Field(None, description="Stop after this many optimizer steps.")
    batch_size: Count = Field(16, description="Images per optimizer step, over all processes.")
    micro_batch: Count = Field(
        2, description="Images per process and forward pass; gradients are accumulated up to batch_size."
    )
    global_batch_losses: bool = Field(
        False,
        description="Pad images and normalize losses over all processes, so that results do not depend on their "
        "number; false: partly per process, as published.",
    )
    lr: Annotated[float, Field(gt=0)] = Field(2e-4, description="Learning rate.")
    backbone_lr_scale: Annotated[float, Field(ge=0)] = Field(0.1, description="Factor of lr for the backbone.")
    freeze_backbone: bool = Field(False, description="Do not train the backbone.")
    offsets_lr_scale: Annotated[float, Field(ge=0)] = Field(
        1.0, description="Factor of lr for sampling offsets of the attention; published for Co-Deformable-DETR: 0.1."
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Factor of lr from each ViT block to the one before it; published for ViT-L: 0.8."
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(1e-4, description="Weight decay of AdamW.")
    decay_norms: bool = Field(
        True, description="Apply weight decay to norms and biases too, as most published recipes do."
    )
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.999), description="Betas of AdamW."
    )
    lr_milestones: tuple[Annotated[int, Field(ge=0, le=10**12)], ...] = Field(
        (11,), max_length=MAX_LIST, description="step: epochs (0-based) at which lr is multiplied by lr_gamma."
    )
    lr_gamma: float = Field(0.1, description="step: factor of lr at each milestone.")
    lr_schedule: Literal["step", "cosine"] = Field(
        "step", description="step: by milestones; cosine: to zero over the whole run."
    )
    warmup_steps: Annotated[int, Field(ge=0, le=10**12)] = Field(0, description="Optimizer steps of linear warm-up.")
    warmup_start: Fraction = Field(0.01, description="Factor of lr at the first warm-up step.")
    scale_lr: bool = Field(False, description="Multiply lr by batch_size / 16.")
    clip_norm: Annotated[float, Field(ge=0), BeforeValidator(_no_clipping)] = Field(
        0.1, description="Maximum L2 norm of all gradients; 0 or inf: no clipping."
    )
    precision: Precision = Field(
        "auto", description="auto: bf16 on GPUs that support it, else fp32; tf32: NVIDIA GPUs since Ampere."
    )
    ema_momentum: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Momentum of the weights' moving average; published: 1e-4; 0: no EMA."
    )
    compile: bool = Field(
        False, description="Compile backbone and layers with torch.compile; needs a compiler on this machine."
    )
    fsdp: bool = Field(
        False,
        description="Shard weights, gradients and optimizer states over the processes (FSDP2).",
    )
    memory_check: bool = Field(
        True, description="Measure the memory of the largest possible batch before the first step."
    )
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] = Field(
        0, description="Random seed; negative ones count from 2**64 downwards."
    )
    deterministic: bool = Field(False, description="Use deterministic algorithms of PyTorch, where they exist.")
    log_every: Positive = Field(50, description="Optimizer steps between lines of metrics.jsonl.")
    eval_every: Positive = Field(1, description="Epochs between evaluations.")
    report: bool = Field(True, description="Write report.html of the best checkpoint at the end.")
    checkpoint_every: Positive | None = Field(None, description="Optimizer steps between checkpoints within an epoch.")
    timeout_minutes: Annotated[float, Field(gt=0, le=10**6)] = Field(
        10.0, description="With several processes: stop when one of them has made no progress for this long."
    )
    early_stop_patience: Positive | None = Field(
        None, description="Stop after this many evaluations in a row without a better AP."
    )
    max_nonfinite_steps: Positive = Field(
        10,
        description="Consecutive steps with non-finite losses or gradients, all skipped, after which the run rolls "
        "back to its last good checkpoint; the second time it stops.",
    )
    val_pictures: Annotated[int, Field(ge=0, le=64)] = Field(
        6, description="Validation images that are drawn at each evaluation, in plots/val_images; 0: none."
    )
    loggers: Annotated[tuple[LoggerName, ...], BeforeValidator(_split_words)] = Field(
        (), max_length=16, description="Also log metrics to tensorboard, wandb or mlflow; each is an extra to install."
    )
    loss: LossConfig = LossConfig()


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
