from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from codetr_cli.losses.collaborative import group_losses
from codetr_cli.losses.mask_losses import (
    OBJECTS_AT_ONCE,
    best_boxes,
    boundary_losses,
    mask_iou,
    mask_targets,
    visible_shares,
)
from codetr_cli.models.mask_grid import boundary
from tests.losses.batches import SMALL_MASKS, discs, make_masked_batch, make_objective
from tests.losses.many_objects import LiveBytes, make_objects

NAMES = {"fcn": ["loss_mask0"], "refine": ["loss_mask", "loss_mask_iou"]}


def with_masks(kind):
    return f"model.mask.kind={kind}", *SMALL_MASKS


def mask_parameters(objective):
    return {name: p for name, p in objective.model.named_parameters() if "mask" in name}


# ---------------------------------------------------------------------------------------------------------- the targets


def test_a_region_is_the_target_of_its_own_object():
    target = {"masks": torch.zeros(20, 40, 50, dtype=torch.uint8)}
    target["masks"][18, 10:20, 10:30] = 1
    boxes = torch.tensor([[10.0, 10, 30, 20], [0, 0, 50, 40], [10, 10, 30, 20], [20, 10, 40, 20], [-9, -9, 59, 49]])
    (wanted,) = mask_targets(target, boxes, [18, 18, 3, 18, 18], [4])
    assert wanted.shape == (5, 4, 4)
    assert set(wanted.unique().tolist()) == {0.0, 1.0}
    assert bool(wanted[0].all())
    assert not bool(wanted[2].any()), "the fourth object has no pixels"
    assert torch.equal(wanted[3], torch.tensor([1.0, 1, 0, 0]).expand(4, 4))
    assert torch.equal(wanted[4], wanted[1]), "regions are cut to the bitmap"
    assert wanted[1][1, 1] == 1
    assert wanted[1][3].sum() == 0


def test_a_target_cell_needs_half_of_its_area():
    """Against the plain mean of the pixels, where a cell is a whole number of them."""
    generator = torch.Generator().manual_seed(0)
    target = {"masks": (torch.rand(2, 32, 32, generator=generator) < 0.5).to(torch.uint8)}
    _, wanted = mask_targets(target, torch.tensor([[0.0, 0, 32, 32]] * 2), [0, 1], [4, 8])
    share = F.avg_pool2d(target["masks"][:, None].float(), 4)[:, 0]
    clear = (share - 0.5).abs() > 0.2  # the adaptive samples lie between the pixels
    assert torch.equal(wanted[clear], (share >= 0.5).float()[clear])


def test_the_visible_share_counts_whole_pixels():
    target = {"masks": torch.zeros(2, 20, 30, dtype=torch.uint8)}
    target["masks"][0, 5:15, 10:20] = 1
    corners, like = [[10, 5, 20, 15], [10, 5, 15, 15], [12, 7, 12, 7], [30, 20, 30, 20], [0, 0, 11, 6]], torch.ones(1)
    shares = visible_shares(target, corners, [0] * 5, like.double())
    torch.testing.assert_close(shares, torch.tensor([100, 50, 1, 0, 1], dtype=torch.float64) / 100)
    assert visible_shares(target, corners[:1], [1], like).tolist() == [0.0], "no pixels at all"
    assert visible_shares(target, [], [], like).shape == (0,)


def test_mask_iou_knows_of_the_part_outside():
    logits, wanted = torch.full((3, 4, 4), -5.0), torch.zeros(3, 4, 4)
    logits[:, :2], wanted[:, :2] = 5.0, 1.0
    wanted[1, 0] = 0.0
    shares = torch.tensor([1.0, 1.0, 0.5])
    expected = torch.tensor([1.0, 4 / 8, 8 / (8 + 16 - 8)])
    torch.testing.assert_close(mask_iou(logits, wanted, shares), expected, rtol=1e-5, atol=1e-6)


# ----------------------------------------------------------------------------------------------------------- the losses


def test_fine_masks_are_trained_at_boundaries_only():
    generator = torch.Generator().manual_seed(0)
    sides = (8, 16, 32, 64)
    disc = discs(torch.tensor([[8.0, 8, 56, 56]]), (64, 64))[:, None].float()
    wanted = [F.interpolate(disc, size=(side, side), mode="area")[:, 0].round() for side in sides]
    masks = [(4 * target - 2 + torch.rand(target.shape, generator=generator)).requires_grad_() for target in wanted]
    losses, boundaries = boundary_losses(masks, wanted)
    for mask, target, loss in zip(masks[:2], wanted[:2], losses[:2], strict=True):
        torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits(mask, target))
    for mask, target, loss, region in zip(masks[2:], wanted[2:], losses[2:], boundaries, strict=True):
        assert 0 < int(region.sum()) < region.numel()
        expected = F.binary_cross_entropy_with_logits(mask[region], target[region])
        torch.testing.assert_close(loss, expected)
        (gradient,) = torch.autograd.grad(loss, mask)
        assert torch.equal(gradient != 0, region)
    both = boundary(masks[1].sigmoid() >= 0.5, 2) | boundary(wanted[1] > 0, 2)
    enlarged = F.interpolate(both[:, None].float(), size=(32, 32), mode="bilinear", align_corners=True)[:, 0] >= 0.5
    assert torch.equal(boundaries[0], enlarged)


def test_without_boundary_the_loss_is_zero_and_in_the_graph():
    masks = [torch.full((2, s, s), -9.0, requires_grad=True) for s in (4, 8, 16, 32)]
    losses, _ = boundary_losses(masks, [torch.zeros(2, s, s) for s in (4, 8, 16, 32)])
    assert [loss.item() for loss in losses[2:]] == [0.0, 0.0]
    torch.stack(losses).sum().backward()
    assert not bool(masks[3].grad.any())


def test_best_boxes_are_those_of_queries_and_classes():
    logits = torch.tensor([[0.0, 3.0], [2.0, -1.0], [-5.0, -6.0]])
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.9, 0.9, 0.4, 0.4], [0.1, 0.1, 0.1, 0.1]])
    found = best_boxes(torch.stack([logits, logits - 1000]), boxes.expand(2, -1, -1), [(100, 200)] * 2, 4)
    (corners, scores), (no_corners, _) = found.per_image()
    assert no_corners.shape == (0, 4), "only positive scores count"
    torch.testing.assert_close(scores, torch.tensor([3.0, 2.0, 0.0, -1.0]).sigmoid())
    first, second = [50.0, 25, 150, 75], [140.0, 70, 200, 100]
    torch.testing.assert_close(corners, torch.tensor([first, second, first, second]))


@pytest.mark.parametrize("kind", ["fcn", "refine"])
@pytest.mark.parametrize("counts", [(3, 2), (4, 0), (0, 0)])
def test_every_trained_parameter_gets_a_finite_gradient(tiny_settings, kind, counts):
    objective = make_objective(
        tiny_settings, *with_masks(kind), "model.mask.dim=64"
    )  # fewer channels may all be switched off
    losses = objective(*make_masked_batch(counts))
    assert set(NAMES[kind]) <= set(losses)
    assert len(losses) == 34 + len(NAMES[kind])
    torch.stack(list(losses.values())).sum().backward()
    assert [n for n, p in objective.model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(bool(p.grad.isfinite().all()) for p in objective.parameters() if p.grad is not None)
    still = [name for name, p in mask_parameters(objective).items() if not bool(p.grad.any())]
    assert still == ([] if sum(counts) else list(mask_parameters(objective)))
    if not sum(counts):
        assert [losses[name].item() for name in NAMES[kind]] == [0.0] * len(NAMES[kind])


@pytest.mark.parametrize("kind", ["fcn", "refine"])
def test_masks_train_in_half_precision(tiny_settings, kind):
    objective = make_objective(tiny_settings, *with_masks(kind))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = objective(*make_masked_batch((3, 0)))
    assert all(bool(value.isfinite()) for value in losses.values())
    torch.stack([losses[name] for name in NAMES[kind]]).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in mask_parameters(objective).values())


@pytest.mark.parametrize("kind", ["fcn", "refine"])
def test_training_lowers_the_loss_of_masks(tiny_settings, kind):
    objective = make_objective(tiny_settings, *with_masks(kind), "train.loss.positive_queries=false")
    batch = make_masked_batch((3, 2))
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=1e-3)
    course = []
    for _ in range(8):
        torch.manual_seed(0)
        loss = objective(*batch)[NAMES[kind][0]]
        course.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert course[2] < course[0], "two steps"
    assert course[-1] < 0.9 * course[0]


def test_the_mask_loss_trains_encoder_and_backbone(tiny_settings):
    objective = make_objective(tiny_settings, *with_masks("refine"))
    objective(*make_masked_batch((3, 2)))["loss_mask"].backward()
    for part in (objective.model.encoder, objective.model.backbone):
        assert any(p.grad is not None and bool(p.grad.any()) for p in part.parameters())
    assert not any(p.grad is not None and bool(p.grad.any()) for p in objective.model.decoder.parameters())


def test_refined_masks_do_not_need_the_aux_heads(tiny_settings):
    overrides = ("train.loss.aux_heads=false", "train.loss.positive_queries=false")
    losses = make_objective(tiny_settings, *with_masks("refine"), *overrides)(*make_masked_batch((2, 1)))
    assert {"loss_mask", "loss_mask_iou"} <= set(losses)
    assert not [name for name in losses if "rpn" in name or name.endswith(("0", "1"))]


def test_weights_scale_their_losses(tiny_settings):
    def losses(*overrides):
        torch.manual_seed(0)
        objective = make_objective(tiny_settings, *with_masks("refine"), *overrides)
        torch.manual_seed(1)
        return objective(*make_masked_batch((2, 1)))

    plain = losses()
    other = losses("train.loss.mask_weight=7.98", "train.loss.mask_iou_weight=18.0")
    torch.testing.assert_close(other["loss_mask"] * 2, plain["loss_mask"])
    torch.testing.assert_close(other["loss_mask_iou"], plain["loss_mask_iou"] * 3)
    only_first = losses("train.loss.mask_stage_weights=[1.0, 0.0, 0.0, 0.0]")["loss_mask"]
    assert 0 < only_first.item() < plain["loss_mask"].item()


def test_the_groups_of_losses_have_masks():
    one = torch.tensor(1.0)
    groups = group_losses(
        {"loss_mask": one, "loss_mask_iou": one, "loss_mask0": one, "loss_cls0": one, "loss_cls": one}
    )
    assert {name: float(value) for name, value in groups.items()} == {"masks": 3.0, "roi": 1.0, "decoder": 1.0}


def test_the_area_of_many_masks_is_summed_some_at_a_time():
    boxes = make_objects(200)
    masks = torch.zeros(200, 200, 160, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    with LiveBytes() as live:
        shares = visible_shares({"masks": masks}, boxes.int().tolist(), list(range(200)), boxes)
    torch.testing.assert_close(shares, torch.ones(200))
    assert live.summed <= OBJECTS_AT_ONCE * 200 * 160
