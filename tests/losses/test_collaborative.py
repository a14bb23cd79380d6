from __future__ import annotations

import pytest
import torch

from codetr_cli.losses.assigners import SampledBoxes
from codetr_cli.losses.collaborative import group_losses
from codetr_cli.losses.criterion import QueryCriterion, QueryTargets
from codetr_cli.losses.positive_queries import MIN_QUERIES, select_positive_queries
from codetr_cli.losses.random import RandomSource
from tests.losses.batches import make_batch, make_objective


@pytest.mark.parametrize("counts", [(3, 2), (4, 0), (0, 0), (60, 1)])
def test_every_trained_parameter_gets_a_finite_gradient(tiny_settings, counts):
    """Also without objects, and with more objects than queries: data-parallel training relies on it."""
    objective = make_objective(tiny_settings)
    losses = objective(*make_batch(counts))
    assert len(losses) == 6 + 3 + 6 + 7 + 12
    torch.stack(list(losses.values())).sum().backward()
    without = [n for n, p in objective.model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert all(bool(p.grad.isfinite().all()) for p in objective.parameters() if p.grad is not None)


def test_recomputing_changes_memory_not_gradients(tiny_settings):
    gradients = []
    for again in ("false", "true"):
        torch.manual_seed(0)
        objective = make_objective(
            tiny_settings, f"model.aux_checkpointing={again}", f"model.decoder_checkpointing={again}"
        )
        torch.stack(list(objective(*make_batch((3, 2))).values())).sum().backward()
        gradients.append([p.grad for p in objective.parameters() if p.grad is not None])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    "box", [[10.0, 20, 10, 50], [10, 20, 40, 20], [30, 30, 30, 30], [95, 95, 96, 96], [0, 0, 96, 96]]
)
def test_degenerate_boxes_give_finite_losses_and_gradients(tiny_settings, box):
    objective = make_objective(tiny_settings)
    images, mask, targets = make_batch((2,))
    targets[0]["boxes"][0] = torch.tensor(box)
    total = torch.stack(list(objective(images, mask, targets).values())).sum()
    total.backward()
    assert bool(total.isfinite())
    assert all(bool(p.grad.isfinite().all()) for p in objective.parameters() if p.grad is not None)


@pytest.mark.parametrize(("size", "boxes"), [((32, 32), 1), ((16, 48), 0)])
def test_tiny_images_train(tiny_settings, size, boxes):
    """The coarsest maps have one cell, and there are fewer tokens than queries."""
    objective = make_objective(tiny_settings, "model.num_queries=100")
    images, mask, targets = make_batch((boxes,))
    targets[0] |= {"boxes": targets[0]["boxes"].clamp(max=min(size)) * 0.5, "norm_size": size, "pad_size": size}
    losses = objective(images[..., : size[0], : size[1]], mask[:, : size[0], : size[1]], targets)
    assert all(bool(value.isfinite()) for value in losses.values())


@pytest.mark.parametrize("counts", [(3, 2), (0, 0)])
def test_a_diverged_network_reports_it_by_its_loss(tiny_settings, counts):
    objective = make_objective(tiny_settings)
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.fill_(float("nan"))
    losses = objective(*make_batch(counts))
    assert not bool(torch.stack(list(losses.values())).sum().isfinite())


def test_background_boxes_are_never_read():
    generator = torch.Generator().manual_seed(0)
    logits, boxes = torch.randn(2, 5, 3, generator=generator), torch.rand(2, 5, 4, generator=generator)
    labels = torch.tensor([[0, 3, 3, 1, 3], [3, 3, 2, 3, 3]])
    wanted = torch.rand(2, 5, 4, generator=generator)
    criterion = QueryCriterion(class_loss="quality_focal", class_weight=1.0, l1_weight=5.0, giou_weight=2.0)
    factors, count = torch.tensor([[90.0, 60, 90, 60], [50, 70, 50, 70]]), torch.tensor(3.0)
    terms = criterion(logits, boxes, QueryTargets(labels, wanted), factors, count)
    other = criterion(logits, boxes, QueryTargets(labels, wanted * (labels < 3)[..., None]), factors, count)
    assert all(torch.equal(terms[name], other[name]) for name in terms)
    positive = labels < 3
    expected = 5 * (boxes[positive] - wanted[positive]).abs().sum() / 3
    torch.testing.assert_close(terms["bbox"], expected)


@pytest.mark.parametrize(
    ("overrides", "gone"),
    [
        (["train.loss.positive_queries=false"], ["aux0", "aux1"]),
        (["train.loss.denoising_queries=0"], ["dn_loss"]),
    ],
)
def test_switches_leave_out_losses_and_their_parameters(tiny_settings, overrides, gone):
    objective = make_objective(tiny_settings, *overrides)
    losses = objective(*make_batch((3, 2)))
    assert not [name for name in losses if any(part in name for part in gone)]
    torch.stack(list(losses.values())).sum().backward()
    assert [n for n, p in objective.model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_without_the_aux_heads_the_decoder_alone_is_trained(tiny_settings):
    settings = tiny_settings.model_copy(
        update={
            "train": tiny_settings.train.model_copy(
                update={
                    "loss": tiny_settings.train.loss.model_copy(update={"aux_heads": False, "positive_queries": False})
                }
            )
        }
    )
    objective = make_objective(settings)
    losses = objective(*make_batch((3, 2)))
    assert set(group_losses(losses)) == {"decoder", "denoising", "proposals"}
    torch.stack(list(losses.values())).sum().backward()
    assert [n for n, p in objective.model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_groups_add_up_to_the_total(tiny_settings):
    losses = make_objective(tiny_settings)(*make_batch((3, 2)))
    groups = group_losses(losses)
    assert set(groups) == {"decoder", "proposals", "denoising", "rpn", "roi", "atss", "positive queries"}
    torch.testing.assert_close(torch.stack(list(groups.values())).sum(), torch.stack(list(losses.values())).sum())


def test_the_seed_decides_the_losses(tiny_settings):
    objective, batch = make_objective(tiny_settings), make_batch((3, 2))
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append([float(v.detach()) for v in objective(*batch).values()])
    assert results[0] == results[1] != results[2]


def test_mixed_precision_losses_are_float32_and_close(tiny_settings):
    objective, batch = make_objective(tiny_settings, "train.loss.denoising_queries=0"), make_batch((3, 2))
    torch.manual_seed(0)
    full = objective(*batch)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = objective(*batch)
    assert {v.dtype for v in mixed.values()} == {torch.float32}
    for name in ("loss_rpn_cls", "loss_cls0", "enc_loss_cls"):
        torch.testing.assert_close(mixed[name], full[name], rtol=0.1, atol=0.05)


def test_perfect_queries_cost_nothing():
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.3, 0.3, 0.1, 0.1]]])
    logits = torch.tensor([[[30.0, -30.0], [-30.0, -30.0]]])
    targets = QueryTargets(torch.tensor([[0, 2]]), boxes)
    criterion = QueryCriterion(class_loss="quality_focal", class_weight=1.0, l1_weight=5.0, giou_weight=2.0)
    terms = criterion(logits, boxes, targets, torch.tensor([[100.0, 100, 100, 100]]), torch.tensor(1.0))
    assert all(float(v) == pytest.approx(0, abs=1e-5) for v in terms.values())


def make_sampled(positives, total, classes=5):
    labels = torch.full((total,), classes)
    labels[:positives] = torch.arange(positives) % classes
    boxes = torch.arange(total)[:, None] + torch.tensor([0.0, 0.0, 5.0, 5.0])
    return SampledBoxes(boxes, labels, boxes * (labels < classes)[:, None])


@pytest.mark.parametrize(
    ("positives", "expected"),
    [((3, 1), MIN_QUERIES), ((30, 2), 30), ((90, 40), 50), ((0, 0), MIN_QUERIES)],
)
def test_every_image_gives_as_many_queries_as_the_richest_one(positives, expected):
    candidates = [make_sampled(n, 200) for n in positives]
    targets = [{"norm_size": (100, 100)}] * 2
    boxes, wanted, _ = select_positive_queries(
        candidates, targets, num_classes=5, max_queries=50, random=RandomSource()
    )
    assert boxes.shape == (2, expected, 4)
    for image, n in enumerate(positives):
        assert int((wanted.labels[image] < 5).sum()) == min(n, expected)
    background = wanted.labels == 5
    assert float(wanted.boxes[background].abs().sum()) == 0.0


def test_no_candidates_give_background_queries():
    boxes, wanted, _ = select_positive_queries(
        [make_sampled(0, 0), make_sampled(2, 3)], [{"norm_size": (9, 9)}] * 2, num_classes=5, max_queries=50,
        random=RandomSource(),
    )  # fmt: skip
    assert boxes.shape == (2, MIN_QUERIES, 4)
    assert set(wanted.labels.flatten().tolist()) == {5}


def test_too_few_candidates_repeat():
    boxes, *_ = select_positive_queries(
        [make_sampled(2, 3)], [{"norm_size": (9, 9)}], num_classes=5, max_queries=50, random=RandomSource()
    )
    assert boxes.shape == (1, MIN_QUERIES, 4)
