"""`[train]`: optimizer, schedule, losses and everything else about a training run."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, model_validator

from codetr_cli.config.fields import MAX_LIST, Count, Fraction, Positive, Section, split_words

Precision: TypeAlias = Literal["auto", "fp32", "tf32", "bf16", "fp16"]


def _no_clipping(value: Any) -> Any:
    """0 for infinity, which earlier versions accepted and JSON writes as null."""
    return 0.0 if value is None or value == float("inf") else value


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
    loggers: Annotated[tuple[LoggerName, ...], BeforeValidator(split_words)] = Field(
        (), max_length=16, description="Also log metrics to tensorboard, wandb or mlflow; each is an extra to install."
    )
    loss: LossConfig = LossConfig()
