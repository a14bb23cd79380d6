from __future__ import annotations

import pytest
import torch

from codetr_cli.losses.collaborative import group_losses
from tests.losses.batches import SMALL_MASKS, make_batch, make_masked_batch, make_objective


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


def test_heads_run_while_a_thread_solves_the_matching(tiny_settings, monkeypatch):
    objective, order = make_objective(tiny_settings, "model.mask.kind=refine", *SMALL_MASKS), []
    model, start = objective.model, objective.matcher.start

    def started(*arguments):
        order.append("start")
        matches = start(*arguments)
        return lambda: order.append("matches") or matches()

    monkeypatch.setattr(objective.matcher, "start", started)
    heads = {"rpn": model.aux_heads.rpn, "roi": model.aux_heads.roi, "atss": model.aux_heads.atss}
    for name, part in {**heads, "decoder": model.decoder, "masks": model.mask_branch}.items():
        part.register_forward_hook(lambda *_, name=name: order.append(name))
    objective(*make_masked_batch((3, 2)))
    assert order == ["rpn", "decoder", "start", "roi", "atss", "masks", "matches"]


@pytest.mark.parametrize("counts", [(3, 2), (0, 0)])
def test_a_diverged_network_reports_it_by_its_loss(tiny_settings, counts):
    objective = make_objective(tiny_settings)
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.fill_(float("nan"))
    losses = objective(*make_batch(counts))
    assert not bool(torch.stack(list(losses.values())).sum().isfinite())


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
