"""`[model]`: the network; its weights depend on most of these settings."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from codetr_cli.config.fields import (
    MAX_LIST,
    Candidates,
    Channels,
    Fraction,
    Kept,
    Layers,
    Positive,
    Section,
    Side,
    Std,
)


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
