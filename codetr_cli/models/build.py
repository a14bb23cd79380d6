"""Builds the whole network from its settings; the only file in this room that reads them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from codetr_cli.config.model_settings import ModelConfig, ResNetConfig, SwinConfig, ViTConfig
from codetr_cli.config.schema import TestConfig
from codetr_cli.models.attention import MultiScaleDeformableAttention
from codetr_cli.models.aux_heads.anchors import AnchorGrid
from codetr_cli.models.aux_heads.atss import AtssHead
from codetr_cli.models.aux_heads.roi import RoiHead
from codetr_cli.models.aux_heads.rpn import RpnHead
from codetr_cli.models.backbones.resnet import ResNet
from codetr_cli.models.backbones.swin import SwinTransformer
from codetr_cli.models.backbones.vit import ViT
from codetr_cli.models.codetr import AuxHeads, CoDETR
from codetr_cli.models.encoder import DeformableEncoder
from codetr_cli.models.family import FAMILIES
from codetr_cli.models.layers import MLP
from codetr_cli.models.mask_heads.branch import MaskBranch
from codetr_cli.models.mask_heads.fcn import FcnMaskHead
from codetr_cli.models.mask_heads.iou import MaskIouHead
from codetr_cli.models.mask_heads.refine import RefineMaskHead
from codetr_cli.models.neck import ChannelMapper, FeaturePyramid
from codetr_cli.models.pooling import RegionPooling
from codetr_cli.models.postprocess import PostProcess

FINEST_SCALE_CELLS = 14
"""Regions up to this many cells (square root of the area) are pooled from the finest map."""


def model_outline(config: ModelConfig, *, aux_heads: bool = True) -> CoDETR:
    """The network without memory for its entries: on the meta device, where entries only have shapes and types.

    Raises:
        ValueError: the settings do not fit together.
    """
    try:
        with torch.device("meta"), _WithoutRandomNumbers():
            return build_model(config, aux_heads=aux_heads)
    except (ValueError, RuntimeError, TypeError, ArithmeticError, IndexError) as error:
        raise ValueError(f"the model settings do not fit together: {error}") from error


_RANDOM = (Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)
"""What fills a tensor with random numbers and asks a `TorchFunctionMode` first."""


class _WithoutRandomNumbers(TorchFunctionMode):
    """Inside, random numbers are not drawn: on the meta device they take longer than elsewhere and are no numbers."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func in _RANDOM:
            return args[0] if args else named["tensor"]
        return func(*args, **named)


def build_model(config: ModelConfig, *, aux_heads: bool = True) -> CoDETR:
    """Builds the network, initialised for training from scratch as the Sense-X code intends it.

    Args:
        config: sizes of the network.
        aux_heads: False skips the one-to-many heads and other training-only parts.
    """
    dim, levels, family = config.embed_dim, config.num_levels, FAMILIES[config.family]
    backbone, neck = _build_backbone(config)
    attention = {"dim": dim, "num_heads": config.num_heads, "num_levels": levels, "num_points": config.num_points}
    encoder = DeformableEncoder(
        num_layers=config.encoder_layers,
        ffn_dim=config.ffn_dim,
        position_temperature=config.position_temperature or family.cell_temperature,
        position_offset=family.cell_offset,
        checkpointing=config.encoder_checkpointing,
        **attention,
    )
    decoder = family.decoder(
        num_layers=config.decoder_layers,
        ffn_dim=config.ffn_dim,
        checkpointing=config.decoder_checkpointing,
        **attention,
    )
    class_head, box_head = nn.Linear(dim, config.num_classes), MLP(dim, dim, 4, 3)
    nn.init.constant_(class_head.bias, -math.log(99))
    for parameter in box_head.layers[-1].parameters():
        nn.init.zeros_(parameter)
    heads = range(config.decoder_layers + 1)  # the last is for the proposals
    model = CoDETR(
        family=family,
        backbone=backbone,
        neck=neck,
        encoder=encoder,
        decoder=decoder,
        # Parity: the branches of all layers are trained separately but start as copies of one, with a class prior of
        # 0.01 and zero box offsets (CoDINOHead.init_weights).
        class_heads=nn.ModuleList(copy.deepcopy(class_head) for _ in heads),
        box_heads=nn.ModuleList(copy.deepcopy(box_head) for _ in heads),
        dim=dim,
        num_queries=config.num_queries,
        num_classes=config.num_classes,
        norm_groups=config.norm_groups,
        aux_heads=_build_aux_heads(config) if aux_heads else None,
        mask_branch=_build_mask_branch(config) if config.mask.kind == "refine" else None,
    )
    for module in model.modules():
        if isinstance(module, MultiScaleDeformableAttention):
            module.backend = config.attention_backend
    _initialise_transformer(model)
    return model


def _build_backbone(config: ModelConfig) -> tuple[nn.Module, nn.Module]:
    """The backbone, and the neck that maps its output to the levels of the encoder."""
    settings = config.backbone
    backbone: ResNet | SwinTransformer | ViT
    if isinstance(settings, ResNetConfig):
        backbone = ResNet(
            block=settings.block,
            layers=settings.layers,
            base_channels=settings.base_channels,
            norm=settings.norm,
            frozen_stages=settings.frozen_stages,
            finest_stride=config.finest_stride,
            checkpointing=settings.checkpointing,
        )
    elif isinstance(settings, SwinConfig):
        backbone = SwinTransformer(
            embed_dim=settings.embed_dim,
            layers=settings.layers,
            num_heads=settings.num_heads,
            window_size=settings.window_size,
            drop_path=settings.drop_path,
            finest_stride=config.finest_stride,
            checkpointing=settings.checkpointing,
        )
    else:
        backbone = _build_vit(settings)
        return backbone, FeaturePyramid(in_channels=settings.embed_dim, out_channels=config.embed_dim)
    neck = ChannelMapper(
        in_channels=backbone.out_channels,
        out_channels=config.embed_dim,
        num_levels=config.num_levels,
        norm_groups=config.norm_groups,
    )
    return backbone, neck


def _build_vit(settings: ViTConfig) -> ViT:
    return ViT(
        embed_dim=settings.embed_dim,
        depth=settings.depth,
        num_heads=settings.num_heads,
        hidden_dim=settings.hidden_dim,
        patch_size=settings.patch_size,
        window_size=settings.window_size,
        global_blocks=settings.global_blocks,
        pretrain_size=settings.pretrain_size,
        fixed_size=settings.fixed_size,
        drop_path=settings.drop_path,
        checkpointing=settings.checkpointing,
    )


def _build_aux_heads(config: ModelConfig) -> AuxHeads:
    strides = [config.finest_stride * 2**i for i in range(config.num_levels + 1)]
    octaves = [2 ** (i / config.rpn.scales_per_octave) for i in range(config.rpn.scales_per_octave)]
    return AuxHeads(
        rpn=RpnHead(
            dim=config.embed_dim,
            anchors=AnchorGrid(
                strides=strides,
                scales=[config.rpn.octave_base_scale * octave for octave in octaves],
                ratios=config.rpn.ratios,
            ),
            pre_nms_train=config.rpn.proposals_pre_nms_train,
            pre_nms_test=config.rpn.proposals_pre_nms_test,
            num_proposals_train=config.rpn.num_proposals,
            num_proposals_test=config.rpn.num_proposals_test,
            nms_iou_train=config.rpn.nms_iou,
            nms_iou_test=config.rpn.nms_iou_test,
        ),
        roi=RoiHead(
            dim=config.embed_dim,
            num_classes=config.num_classes,
            strides=strides[:-1],
            num_convs=config.roi.num_convs,
            num_fcs=config.roi.num_fcs,
            fc_dim=config.roi.fc_dim,
            norm_groups=config.norm_groups,
            class_agnostic=config.roi.class_agnostic,
            output_size=config.roi.output_size,
            finest_scale=config.roi.finest_scale or FINEST_SCALE_CELLS * config.finest_stride,
            target_stds=config.roi.target_stds,
            nms=config.roi.nms,
            nms_iou=config.roi.nms_iou,
            max_detections=config.roi.max_detections,
            mask_head=_build_mask_head(config) if config.mask.kind == "fcn" else None,
        ),
        atss=AtssHead(
            dim=config.embed_dim,
            num_classes=config.num_classes,
            anchors=AnchorGrid(strides=strides, scales=[config.atss.octave_base_scale], ratios=[1.0]),
            norm_groups=config.norm_groups,
            target_stds=config.atss.target_stds,
            pre_nms=config.atss.pre_nms,
            nms=config.atss.nms,
            nms_iou=config.atss.nms_iou,
            max_detections=config.atss.max_detections,
        ),
        checkpointing=config.aux_checkpointing,
    )


def _build_mask_head(config: ModelConfig) -> FcnMaskHead:
    """The mask head of the RoI head."""
    return FcnMaskHead(
        in_dim=config.embed_dim,
        dim=config.mask.dim,
        num_convs=config.mask.num_convs,
        num_classes=config.num_classes,
        pooling=_mask_pooling(config),
        regions_per_chunk=config.mask.regions_per_chunk,
    )


def _build_mask_branch(config: ModelConfig) -> MaskBranch:
    """The mask branch of the decoder."""
    return MaskBranch(
        head=RefineMaskHead(
            in_dim=config.embed_dim,
            dim=config.mask.dim,
            num_classes=config.num_classes,
            instance_convs=config.mask.instance_convs,
            semantic_convs=config.mask.semantic_convs,
            dilations=config.mask.dilations,
            stride=config.finest_stride,
        ),
        iou_head=MaskIouHead(
            in_dim=config.embed_dim,
            dim=config.mask.dim,
            num_convs=config.mask.iou_convs,
            fc_dim=config.mask.iou_fc_dim,
            num_classes=config.num_classes,
            pooled_size=config.mask.pooled_size,
        ),
        pooling=_mask_pooling(config),
        regions_per_chunk=config.mask.regions_per_chunk,
    )


def _mask_pooling(config: ModelConfig) -> RegionPooling:
    return RegionPooling(
        strides=[config.finest_stride * 2**i for i in range(config.num_levels)],
        output_size=config.mask.pooled_size,
        finest_scale=config.mask.finest_scale or FINEST_SCALE_CELLS * config.finest_stride,
    )


def _initialise_transformer(model: CoDETR) -> None:
    """Xavier for all matrices of the transformer and N(0, 1) for embeddings; attention keeps its directional offsets.

    Behaviour of CoDinoTransformer.init_weights.
    """
    parts: list[nn.Module] = [model.encoder, model.decoder, model.proposals]
    if model.query_positions is not None:
        parts.append(model.query_positions)
    if model.aux_heads is not None:
        parts.append(model.positive_queries)
    for part in parts:
        for parameter in part.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in part.modules():
            if isinstance(module, MultiScaleDeformableAttention):
                module.reset_parameters()
    nn.init.normal_(model.encoder.level_embed)
    nn.init.normal_(model.query_embed.weight)


def build_postprocess(config: TestConfig) -> PostProcess:
    """Builds the post-processing of the settings."""
    return PostProcess(
        max_detections=config.max_detections,
        candidates=config.candidates,
        nms=config.nms,
        nms_iou=config.nms_iou,
        nms_min_score=config.nms_min_score,
        head=config.head,
    )
