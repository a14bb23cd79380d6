"""Every setting of the program, its default, its range and its meaning.

A resolved value is either in the preset's TOML file or here: presets hold only what differs from the defaults, which
are those of the published Co-DINO R50, 5 scales, 12 epochs (Sense-X/Co-DETR,
projects/configs/co_dino/co_dino_5scale_r50_1x_coco.py).
Sizes are (height, width) in pixels unless a name says otherwise. This module never imports torch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
DatasetName: TypeAlias = Literal["coco", "lvis", "objects365"]


def _split_words(value: Any) -> Any:
    """Words with commas between them as a list; anything else as it is."""
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


class Section(BaseModel):
    """A table of settings: unknown keys are refused and values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


# ---------------------------------------------------------------------------------------------------------------- model


class ResNetConfig(Section):
    """A residual network of torchvision's naming (arXiv 1512.03385)."""

    kind: Literal["resnet"] = "resnet"
    block: Literal["basic", "bottleneck"] = "bottleneck"
    layers: tuple[Positive, Positive, Positive, Positive] = Field((3, 4, 6, 3), description="Blocks of each stage.")
    base_channels: Positive = Field(
        64, description="Channels of the stem; stage i has base_channels * 2**i (times 4 for bottlenecks)."
    )
    norm: Literal["frozen_batch", "group"] = Field(
        "frozen_batch",
        description="frozen_batch needs pretrained statistics; group (8 groups) trains from random weights.",
    )
    frozen_stages: Annotated[int, Field(ge=0, le=4)] = Field(
        1, description="Stages whose weights stay fixed, the stem included; 0 trains everything."
    )
    checkpointing: bool = Field(False, description="Recompute each stage in the backward pass to save memory.")


class SwinConfig(Section):
    """A hierarchical transformer with shifted windows (arXiv 2103.14030); the defaults are Swin-T."""

    kind: Literal["swin"] = "swin"
    embed_dim: Positive = Field(96, description="Channels of the first stage; they double from stage to stage.")
    layers: tuple[Positive, Positive, Positive, Positive] = Field((2, 2, 6, 2), description="Blocks of each stage.")
    num_heads: tuple[Positive, Positive, Positive, Positive] = (3, 6, 12, 24)
    window_size: Positive = Field(7, description="Side of a window in tokens.")
    drop_path: Fraction = Field(0.2, description="Share of residual branches left out of the last block in training.")
    checkpointing: bool = Field(False, description="Recompute each block in the backward pass to save memory.")

    @model_validator(mode="after")
    def _divisible(self) -> SwinConfig:
        for stage, heads in enumerate(self.num_heads):
            if self.embed_dim * 2**stage % heads:
                channels = self.embed_dim * 2**stage
                raise ValueError(f"the {channels} channels of stage {stage} do not divide by {heads} heads")
        return self


class ViTConfig(Section):
    """A plain transformer with rotary positions, window and global blocks (EVA-02, arXiv 2303.11331); ViT-L."""

    kind: Literal["vit"] = "vit"
    embed_dim: Positive = Field(1024, description="Channels.")
    depth: Positive = 24
    num_heads: Positive = 16
    hidden_dim: Positive = Field(2730, description="Channels inside the gated feed-forward layers.")
    patch_size: Positive = 16
    window_size: Positive = Field(24, description="Side of a window in tokens.")
    global_blocks: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (3, 7, 11, 15, 19, 23), description="Blocks that attend to the whole image, 0-based; the others to windows."
    )
    pretrain_size: Positive = Field(512, description="Image side that the position table was trained for.")
    fixed_size: Positive | None = Field(
        None, description="The only image side that fixed rotary tables serve; absent: they follow the image."
    )
    drop_path: Fraction = Field(0.4, description="Share of residual branches left out of the last block in training.")
    checkpointing: bool = Field(True, description="Recompute each block in the backward pass to save memory.")

    @model_validator(mode="after")
    def _fits_together(self) -> ViTConfig:
        if self.embed_dim % (4 * self.num_heads):
            raise ValueError(f"embed_dim {self.embed_dim} is not divisible by 4 x num_heads {self.num_heads}")
        if self.global_blocks and max(self.global_blocks) >= self.depth:
            raise ValueError(f"global_blocks {self.global_blocks} name a block that a depth of {self.depth} has not")
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

    octave_base_scale: float = 4.0
    scales_per_octave: Positive = 3
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    proposals_pre_nms_train: Positive = Field(4000, description="Best anchors kept per level before NMS.")
    proposals_pre_nms_test: Positive = 1000
    num_proposals: Positive = Field(1000, description="Proposals kept per image after NMS while training.")
    num_proposals_test: Positive = Field(1000, description="The same in detection.")
    nms_iou: Fraction = Field(0.7, description="Threshold of the NMS while training.")
    nms_iou_test: Fraction = Field(0.7, description="The same in detection.")


class RoiConfig(Section):
    """Box head on pooled regions of the encoder's maps."""

    num_convs: Annotated[int, Field(ge=0)] = Field(0, description="Normed 3x3 convolutions on each pooled region.")
    num_fcs: Positive = Field(2, description="Fully connected layers after them.")
    fc_dim: Positive = 1024
    class_agnostic: bool = Field(False, description="One box for all classes of a region instead of one for each.")
    output_size: Positive = 7
    finest_scale: Positive | None = Field(
        None, description="Regions up to this many pixels (root of the area) use level 0; absent: 14 of its cells."
    )
    target_stds: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2)
    nms: Literal["hard", "soft"] = "hard"
    nms_iou: Fraction = 0.5
    max_detections: Positive = 100


class AtssConfig(Section):
    """One-stage head with adaptive sample selection (arXiv 1912.02424)."""

    octave_base_scale: float = 8.0
    target_stds: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2)
    pre_nms: Positive = 1000
    nms: Literal["hard", "soft"] = "hard"
    nms_iou: Fraction = 0.6
    max_detections: Positive = 100


class MaskConfig(Section):
    """Instance masks: none, a small network in the RoI head (fcn), or one that refines the decoder's detections.

    fcn: arXiv 1703.06870; refine: arXiv 2104.08569 with the scores of arXiv 1903.00241.
    """

    kind: Literal["none", "fcn", "refine"] = "none"
    dim: Positive = Field(256, description="Channels; refine halves them at each of its stages.")
    pooled_size: Positive = Field(14, description="Side of a pooled region in cells; refine's masks have 8 times it.")
    finest_scale: Positive | None = Field(
        None, description="Regions up to this many pixels (root of the area) use level 0; absent: 14 of its cells."
    )
    num_convs: Positive = Field(4, description="Convolutions of fcn on each region.")
    instance_convs: Positive = Field(1, description="Convolutions of refine on each region.")
    semantic_convs: Positive = Field(2, description="Convolutions of refine on the finest map of the whole image.")
    dilations: tuple[Positive, Positive, Positive] = Field((1, 3, 5), description="Of refine's parallel convolutions.")
    iou_convs: Positive = Field(2, description="Convolutions of refine's estimate of the mask's quality.")
    iou_fc_dim: Positive = Field(1024, description="Channels of its fully connected layer.")
    regions_per_chunk: Positive = Field(150, description="Regions whose masks are computed at once in detection.")

    @model_validator(mode="after")
    def _can_be_halved(self) -> MaskConfig:
        if self.kind == "refine" and (self.dim < 16 or self.dim % 8):
            raise ValueError(f"refine halves dim {self.dim} three times: it must be a multiple of 8, 16 or more")
        if self.kind == "refine" and self.pooled_size % 2:
            raise ValueError(f"refine needs an even pooled_size, not {self.pooled_size}")
        return self


class ModelConfig(Section):
    """The network. Changing any value here needs a checkpoint trained with it."""

    family: Literal["co_dino", "co_deformable"] = "co_dino"
    num_classes: Positive = Field(80, description="Set from the annotations by `train`; presets keep COCO's 80.")
    backbone: BackboneConfig = ResNetConfig()
    embed_dim: Positive = 256
    num_heads: Positive = 8
    num_points: Positive = Field(4, description="Sampling points per head and level of deformable attention.")
    attention_backend: Literal["auto", "triton", "cpu", "mmcv", "torch", "reference"] = Field(
        "auto", description="Kernel of deformable attention; auto takes the fastest that gives the reference's numbers."
    )
    finest_stride: Literal[4, 8] = Field(4, description="Pixels per cell of the finest map the encoder sees.")
    num_levels: Annotated[int, Field(ge=4)] = Field(5, description="Encoder maps: the backbone's plus strided ones.")
    norm_groups: Positive = Field(32, description="Groups of the group norms in the neck and the auxiliary heads.")
    ffn_dim: Positive = 2048
    encoder_layers: Positive = 6
    encoder_checkpointing: Annotated[int, Field(ge=0)] = Field(
        4, description="First encoder layers recomputed in the backward pass to save memory; no effect on numbers."
    )
    decoder_layers: Positive = 6
    decoder_checkpointing: bool = Field(False, description="Recompute each decoder layer in the backward pass.")
    aux_checkpointing: bool = Field(
        False, description="Recompute the auxiliary heads' convolutions in the backward pass."
    )
    num_queries: Positive = 900
    position_temperature: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Base of the cells' sine encoding; absent: the family's, 20 or 10000."
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
                f"a vit has maps of finest_stride 4 and num_levels 5, not {self.finest_stride} and {self.num_levels}"
            )
        return self


# ----------------------------------------------------------------------------------------------------------------- data


class DataConfig(Section):
    """Where images come from and how they are resized and augmented. Sides are in pixels."""

    dataset: DatasetName = Field(
        "coco", description="Whose files are looked for in the folder; coco is the layout of every other set too."
    )
    root: str | None = Field(None, description="Folder of the data set; absent: CODETR_DATA, else data/<dataset>.")
    extra_roots: Annotated[tuple[str, ...], BeforeValidator(_split_words)] = Field(
        (), description="Folders of further data sets in any known layout, merged with root's by the names of classes."
    )
    train_images: str | None = Field(None, description="Overrides <root>/train2017 (coco).")
    train_annotations: str | None = Field(None, description="Overrides <root>/annotations/instances_train2017.json.")
    val_images: str | None = Field(None, description="Overrides <root>/val2017 (coco).")
    val_annotations: str | None = Field(None, description="Overrides <root>/annotations/instances_val2017.json.")
    filter_empty: bool = Field(False, description="Leave images without any annotation out of training.")
    oversample_threshold: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="Classes in a smaller share of the images have theirs repeated; 0.001 for LVIS as published."
    )
    mean: tuple[float, float, float] = Field((123.675, 116.28, 103.53), description="RGB mean, 0..255.")
    std: tuple[float, float, float] = Field((58.395, 57.12, 57.375), description="RGB standard deviation, 0..255.")
    augmentation: Literal["detr", "lsj", "none"] = Field(
        "detr", description="detr: flip, multi-scale, random crop; lsj: large-scale jittering on a square canvas."
    )
    short_sides: tuple[Positive, ...] = tuple(range(480, 801, 32))
    long_side: Positive = 1333
    crop_short_sides: tuple[Positive, ...] = Field((400, 500, 600), description="First resize of the cropping policy.")
    crop_long_side: Positive = 4200
    crop_size: tuple[Positive, Positive] = Field((384, 600), description="Crop sides are drawn from this range.")
    flip_probability: Fraction = 0.5
    canvas: Positive | None = Field(None, description="lsj: side of the square that training images are padded to.")
    lsj_ratio: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = Field(
        (0.1, 2.0), description="lsj: the long side becomes the canvas times a factor drawn from this range."
    )
    copy_paste: Literal["none", "masks", "boxes"] = Field(
        "none", description="lsj: paste objects of a second image, cut out by their masks, or as whole boxes."
    )
    max_pasted: Positive = Field(100, description="Fewer objects than this are pasted into an image.")
    pad_divisor: Positive = Field(1, description="Each image is padded to a multiple of this.")
    min_side: Positive = Field(32, description="Training images with a smaller side are left out, as published.")
    max_pixels: Positive = Field(100_000_000, description="Larger images are refused from their header.")
    bad_files: Literal["error", "skip"] = Field(
        "error",
        description="Image files that cannot be read: error stops at the first; skip goes on without them, and names "
        "them in the run's bad_files.txt.",
    )
    max_images: Positive | None = Field(None, description="Train on the first images only, e.g. to memorise a few.")
    workers: Annotated[int, Field(ge=0)] = Field(
        2, description="Processes that read and augment, per training process."
    )
    aspect_grouping: bool = Field(True, description="Batches hold images of one orientation, as published.")

    @model_validator(mode="after")
    def _augmentation_is_complete(self) -> DataConfig:
        if self.augmentation == "lsj" and self.canvas is None:
            raise ValueError("augmentation 'lsj' needs a canvas: set data.canvas, e.g. to 1024")
        if self.augmentation != "lsj" and self.copy_paste != "none":
            raise ValueError(
                f"copy_paste {self.copy_paste!r} needs augmentation 'lsj': set data.copy_paste to \"none\" too"
            )
        if self.lsj_ratio[0] > self.lsj_ratio[1]:
            raise ValueError(f"lsj_ratio {self.lsj_ratio} has its larger factor first")
        return self


# ------------------------------------------------------------------------------------------------------------- training


class LossConfig(Section):
    """Weights and switches of the collaborative objective, as published: num_dec_layer * lambda_2 = 12 is in them."""

    class_weight: float = 1.0
    l1_weight: float = 5.0
    giou_weight: float = 2.0
    class_cost: float = 2.0
    l1_cost: float = 5.0
    giou_cost: float = 2.0
    denoising_queries: Annotated[int, Field(ge=0)] = Field(
        100, description="About this many pairs; 0 switches it off. Co-DINO only: the other family has none."
    )
    label_noise: Fraction = 0.5
    box_noise: float = 1.0
    aux_heads: bool = Field(True, description="Train the RPN, RoI and ATSS heads beside the decoder.")
    positive_queries: bool = Field(
        True, description="Decode the auxiliary heads' positive boxes too (needs aux_heads)."
    )
    rpn_class_weight: float = 12.0
    rpn_l1_weight: float = 12.0
    roi_class_weight: float = 12.0
    roi_giou_weight: float = 120.0
    atss_class_weight: float = 12.0
    atss_giou_weight: float = 24.0
    atss_centerness_weight: float = 12.0
    positive_queries_weight: float = Field(1.0, description="lambda_1 of the paper.")
    max_positive_queries: Positive = 300
    rpn_samples: Positive = 256
    roi_samples: Positive = 512
    roi_mask_weight: float = Field(12.0, description="Of the RoI head's masks (model.mask.kind fcn).")
    mask_weight: float = Field(15.96, description="Of the refined masks (model.mask.kind refine): 1.33 x 12.")
    mask_stage_weights: tuple[float, float, float, float] = Field(
        (0.5, 0.75, 0.75, 1.0), description="Of the refined masks' four sizes."
    )
    mask_iou_weight: float = Field(6.0, description="Of the refined masks' quality.")
    mask_candidates: Positive = Field(1000, description="Best detections per image that refined masks train on.")
    mask_samples: Positive = Field(512, description="Of these, drawn per image; a quarter positive at most is used.")

    @model_validator(mode="after")
    def _queries_need_heads(self) -> LossConfig:
        if self.positive_queries and not self.aux_heads:
            raise ValueError("positive_queries needs aux_heads: set both to false")
        return self


LoggerName = Literal["tensorboard", "wandb", "mlflow"]


class TrainConfig(Section):
    """The optimisation recipe."""

    backbone_weights: str = Field(
        "auto",
        description="Pretrained backbone to start from without --weights: a name of `codetr download`, preset, file or "
        "URL. auto: the one that belongs to the backbone, if it was downloaded; none: random weights.",
    )
    auto_recipe: bool = Field(
        True,
        description="Choose epochs, lr, milestones, warm-up, frozen backbone and evaluations by the number of images, "
        "each unless it is set explicitly; false: all as written in the preset.",
    )
    epochs: Positive = 12
    min_steps: Positive = Field(
        20_000,
        description="auto_recipe: minimum optimizer steps from scratch; 10 % of that when fine-tuning.",
    )
    max_steps: Positive | None = Field(None, description="Stop after this many optimizer steps, whatever the epoch.")
    batch_size: Positive = Field(16, description="Images per optimizer step over all processes.")
    micro_batch: Positive = Field(2, description="Images per process and forward pass; the rest is accumulated.")
    global_batch_losses: bool = Field(
        False,
        description="Images that several processes train at once count as one batch: padded alike, normalisers over "
        "all, so that the number of processes changes no result. As published, some of that is each process's own.",
    )
    lr: Annotated[float, Field(gt=0)] = 2e-4
    backbone_lr_scale: Annotated[float, Field(ge=0)] = 0.1
    freeze_backbone: bool = Field(False, description="Keep the weights of the whole backbone as they are.")
    offsets_lr_scale: Annotated[float, Field(ge=0)] = Field(
        1.0, description="Share of lr for the attention's sampling offsets; published Co-Deformable-DETR uses 0.1."
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Factor of lr from each block of a ViT to the one before it; the published ViT-L uses 0.8."
    )
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    decay_norms: bool = Field(True, description="Decay norms and biases too, as most published recipes do.")
    betas: tuple[float, float] = (0.9, 0.999)
    lr_milestones: tuple[Annotated[int, Field(ge=0)], ...] = Field((11,), description="Epochs (0-based) that lower lr.")
    lr_gamma: float = 0.1
    lr_schedule: Literal["step", "cosine"] = Field("step", description="cosine: to zero over the whole run.")
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    warmup_start: Fraction = Field(0.01, description="Share of the learning rate at the first warm-up step.")
    scale_lr: bool = Field(False, description="Multiply lr by batch_size / 16 when batch_size is changed.")
    clip_norm: Annotated[float, Field(ge=0)] = Field(
        0.1, description="Largest L2 norm of all gradients; 0: no clipping."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="auto: bf16 on GPUs that have it.")
    ema_momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="Published EMA uses 1e-4; 0: no EMA.")
    compile: bool = Field(False, description="torch.compile backbone and layers; needs a compiler on this machine.")
    fsdp: bool = Field(
        False,
        description="Several processes: each keeps a part of weights, gradients and optimizer states (FSDP2), not all.",
    )
    memory_check: bool = Field(
        True, description="Before the first step, measure the memory of the worst batch that the data can give."
    )
    seed: int = 0
    deterministic: bool = False
    log_every: Positive = Field(50, description="Optimizer steps between lines of metrics.jsonl.")
    eval_every: Positive = Field(1, description="Epochs between evaluations.")
    checkpoint_every: Positive | None = Field(None, description="Optimizer steps between checkpoints within an epoch.")
    timeout_minutes: Annotated[float, Field(gt=0)] = Field(
        10.0, description="Several processes: end the training when one of them did nothing new for so long."
    )
    early_stop_patience: Positive | None = Field(
        None, description="End after this many evaluations in a row without a better AP."
    )
    max_nonfinite_steps: Positive = Field(
        10,
        description="Steps in a row without finite losses and gradients, each skipped, after which the run goes back "
        "to its last good checkpoint; the second time it stops.",
    )
    loggers: Annotated[tuple[LoggerName, ...], BeforeValidator(_split_words)] = Field(
        (), description="Who is told what metrics.jsonl holds: tensorboard, wandb, mlflow; each is an extra to install."
    )
    loss: LossConfig = LossConfig()


def _check_scales(scales: tuple[float, ...]) -> tuple[float, ...]:
    wrong = [f"{scale:g}" for scale in scales if not (0 < scale <= 4 or scale >= 32)]
    if wrong or not scales:
        raise ValueError(
            "give at least one scale, each a factor (up to 4) or a short side in pixels (from 32 on)"
            + (f"; {', '.join(wrong)} is neither" if wrong else "")
        )
    return scales


TtaScales = Annotated[tuple[float, ...], AfterValidator(_check_scales)]


class TestConfig(Section):
    """How detections are made from the network's outputs."""

    short_side: Positive = 800
    long_side: Positive = 1333
    canvas: Positive | None = Field(
        None, description="Side of a square: the long side becomes it, the rest is padded; short and long do not count."
    )
    batch_size: Positive = 1
    max_detections: Positive = Field(300, description="Detections per image.")
    candidates: Literal["max_detections", "num_queries"] = Field(
        "num_queries", description="Scores that enter NMS: max_detections as MMDetection 3.3, num_queries as Sense-X."
    )
    nms: Literal["none", "hard", "soft"] = "soft"
    nms_iou: Fraction = 0.8
    nms_min_score: Fraction = Field(1e-3, description="Soft-NMS drops boxes whose decayed score falls below.")
    head: Literal["decoder", "roi", "atss"] = Field("decoder", description="Which head's detections to give.")
    tta_scales: TtaScales = Field(
        (0.75, 1.0, 1.25),
        description="Sizes that --tta looks at: up to 4, times short_side, long_side and canvas; from 32 on, the short "
        "side in pixels.",
    )
    tta_flip: bool = Field(True, description="--tta also looks at each size mirrored left to right.")
    compile: bool = Field(False, description="torch.compile backbone and layers; needs a compiler on this machine.")

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the largest lying image that the network gets, without padding to `data.pad_divisor`."""
        return (self.short_side, self.long_side) if self.canvas is None else (self.canvas, self.canvas)


class SourceConfig(Section):
    """Where a preset's weights and published numbers come from."""

    config: str | None = None
    url: str | None = Field(None, description="Address of the published file itself, for `codetr download`.")
    page: str | None = Field(None, description="Page or folder where a person finds the published file.")
    filename: str | None = Field(None, description="The published file's name; absent: the end of the URL.")
    bytes: Positive | None = Field(None, description="The published file's exact size.")
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$", description="Of the published file.")
    licence: str | None = Field(None, description="Of the published weights.")
    recipe: Literal["published", "reasoned"] = Field(
        "published", description="reasoned: only the network was published; the file's comments tell why it trains so."
    )
    box_ap: float | None = Field(None, description="Published box AP at a single scale.")
    mask_ap: float | None = Field(None, description="Published mask AP at a single scale.")
    box_ap_tta: float | None = Field(None, description="Published box AP with test-time augmentation.")
    mask_ap_tta: float | None = Field(None, description="Published mask AP with test-time augmentation.")
    protocol: str | None = Field(None, description="How these were measured.")


class Settings(Section):
    """All settings of one run: what `--dry-run` prints and each run folder and checkpoint keeps."""

    name: str
    summary: str = ""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    test: TestConfig = TestConfig()
    source: SourceConfig = SourceConfig()

    @property
    def needs_masks(self) -> bool:
        """Whether training needs the objects' outlines: the network learns masks, or objects are pasted by them."""
        return self.learns_masks or self.data.copy_paste == "masks"

    @property
    def learns_masks(self) -> bool:
        """Whether the network has a mask head to train."""
        return self.model.mask.kind != "none"

    @model_validator(mode="after")
    def _canvas_fits_the_divisor(self) -> Settings:
        for name, canvas in (("data", self.data.canvas), ("test", self.test.canvas)):
            if canvas is not None and canvas % self.data.pad_divisor:
                raise ValueError(
                    f"{name}.canvas {canvas} is not a multiple of data.pad_divisor {self.data.pad_divisor}: "
                    "a canvas is the padded size"
                )
        return self
