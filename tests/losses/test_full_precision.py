"""Costs, boxes and losses are computed in full precision under autocast."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from codetr_cli.config.overrides import apply_overrides
from codetr_cli.losses import atss, criterion, mask_losses, matcher, roi, rpn
from codetr_cli.models import pooling
from tests.losses.batches import SMALL_MASKS, make_batch, make_masked_batch, make_objective

DEFORMABLE = ("model.family=co_deformable", "model.finest_stride=8", "train.loss.class_weight=2.0")
# Everything that turns outputs of the network into costs, assignments and losses.
WATCHED = [
    (matcher.HungarianMatcher, "start"),
    (matcher, "generalized_box_iou"),
    (criterion.QueryCriterion, "__call__"),
    *((criterion, name) for name in ("giou_loss", "paired_iou", "quality_focal_loss", "focal_loss")),
    *((rpn, name) for name in ("assign_by_iou", "encode_deltas", "average")),
    (rpn.RpnHead, "select_proposals"),
    *((roi, name) for name in ("assign_by_iou", "decode_deltas", "giou_loss", "average")),
    (pooling, "pool_map"),
    *((atss, name) for name in ("assign_atss", "decode_deltas", "giou_loss", "focal_loss", "average")),
    *((mask_losses, name) for name in ("best_boxes", "mask_targets", "boundary_losses", "mask_iou")),
    *((mask_losses, name) for name in ("_mean_cross_entropy", "_iou_loss")),
]


def floats_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if dataclasses.is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for item in value for tensor in floats_in(item)] if isinstance(value, list | tuple) else []


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[Any]]:
    """The dtypes that each function was given and gave, and whether autocast would have changed its products."""
    seen: dict[str, set[Any]] = {}

    def watch(owner: Any, name: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)
        where = f"{getattr(owner, '__name__', owner).rpartition('.')[2]}.{name}"

        def recorded(*words: Any, **more: Any) -> Any:
            result = original(*words, **more)
            found = {tensor.dtype for tensor in floats_in([*words, *more.values(), result])}
            seen.setdefault(where, set()).update(found | {torch.is_autocast_enabled("cpu")})
            return result

        monkeypatch.setattr(owner, name, recorded)

    for owner, name in WATCHED:
        watch(owner, name)
    return seen


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("overrides", [(), DEFORMABLE, ("model.mask.kind=refine", *SMALL_MASKS)])
def test_costs_boxes_and_losses_are_computed_in_float32(
    tiny_settings: Any, watched: dict[str, set[Any]], dtype: torch.dtype, overrides: tuple[str, ...]
):
    objective = make_objective(tiny_settings, *overrides)
    with torch.autocast("cpu", dtype=dtype):
        inner = torch.nn.functional.linear(torch.ones(1, 1), torch.ones(1, 1)).dtype
        losses = objective(*make_masked_batch((3, 0)))
    assert inner == dtype, "autocast was on"
    expected = {f"{owner.__name__.rpartition('.')[2]}.{name}" for owner, name in WATCHED}
    if not any("mask" in word for word in overrides):
        expected -= {name for name in expected if name.startswith("mask_losses.")}
    expected -= {"criterion.focal_loss"} if overrides != DEFORMABLE else {"criterion.quality_focal_loss",
                                                                          "criterion.paired_iou"}  # fmt: skip
    assert set(watched) == expected
    assert {name: found for name, found in watched.items() if found != {torch.float32, False}} == {}
    assert {value.dtype for value in losses.values()} == {torch.float32}
    assert all(bool(value.isfinite()) for value in losses.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_areas_beyond_half_precision_give_finite_losses(tiny_settings: Any, dtype: torch.dtype):
    """A box of 3,000 pixels has 140 times the largest number of fp16; bf16 cannot tell its corners apart."""
    settings = apply_overrides(tiny_settings, ["train.loss.positive_queries=false", "train.loss.denoising_queries=0"])
    loss = settings.train.loss.model_copy(update={"aux_heads": False})
    settings = settings.model_copy(update={"train": settings.train.model_copy(update={"loss": loss})})
    objective = make_objective(settings)
    images, padding_mask, targets = make_batch((2, 1))
    for target in targets:
        target |= {"boxes": target["boxes"] * 40, "norm_size": (3840, 3840)}
    with torch.autocast("cpu", dtype=dtype):
        losses = objective(images, padding_mask, targets)
    plain = objective(images, padding_mask, targets)
    for name, value in losses.items():
        assert bool(value.isfinite()), name
        if "iou" in name or "bbox" in name:
            torch.testing.assert_close(value, plain[name], rtol=0.05, atol=0.05)
    torch.stack(list(losses.values())).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in objective.parameters() if p.grad is not None)
