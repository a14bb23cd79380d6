"""Which normalizers are means over processes, per family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from codetr_cli.config.overrides import apply_overrides
from codetr_cli.data.batch import collate
from codetr_cli.losses.build import build_objective
from codetr_cli.losses.normalizers import Normalizers
from codetr_cli.models.build import build_model
from tests.distributed.world_size_cases import DEFORMABLE, SIZES, SameDraws, sample


def losses_with(settings: Any, normalizers: Normalizers) -> dict[str, float]:
    """Losses of two images, of which only the normalisers differ."""
    torch.manual_seed(3)
    objective = build_objective(build_model(settings.model), settings.train.loss, normalizers=normalizers).train()
    batch = collate([sample(i, *SIZES[i]) for i in range(2)])
    losses = objective(batch.images.float() / 64 - 2, batch.padding_mask, batch.targets, SameDraws())
    return {name: float(value.detach()) for name, value in losses.items()}


def halved(settings: Any, **more: Any) -> set[str]:
    """Names of losses that halve when every number that is averaged over processes is twice one's own."""
    alone, others = losses_with(settings, Normalizers()), losses_with(settings, Normalizers(reduce_mean=_twice, **more))
    same = {name for name in alone if others[name] == pytest.approx(alone[name], rel=1e-5)}
    half = {name for name in alone if others[name] == pytest.approx(alone[name] / 2, rel=1e-5)}
    assert same | half == set(alone)
    assert not same & half
    return half


def _twice(value: Tensor) -> Tensor:
    return 2 * value


def test_normalisers_are_means_over_processes_where_published(tiny_settings):
    """Co-DINO: those of boxes and of the ATSS head. Class losses, RPN and RoI head: each process's own."""
    half = halved(tiny_settings)
    boxes = {"loss_bbox", "loss_iou"}
    ends = {name.removeprefix("d0.").removeprefix("enc_").removeprefix("dn_") for name in half}
    expected = boxes | {f"{name}_aux{head}" for name in boxes for head in (0, 1)}
    assert ends == expected | {"loss_cls1", "loss_bbox1", "loss_centerness1"}


def test_the_other_family_averages_the_class_loss_too(tiny_settings):
    half = halved(apply_overrides(tiny_settings, list(DEFORMABLE)))
    assert {"loss_cls", "d0.loss_cls", "enc_loss_cls", "loss_cls_aux0", "loss_cls_aux1", "loss_cls1"} <= half
    assert not {"loss_rpn_cls", "loss_rpn_bbox", "loss_cls0", "loss_bbox0"} & half


@pytest.mark.parametrize("mask", ["none", "fcn", "refine"])
def test_a_whole_batch_has_every_normaliser_in_common(tiny_settings, mask: str):
    settings = apply_overrides(tiny_settings, [f"model.mask.kind={mask}", "model.mask.dim=16"])
    names = set(losses_with(settings, Normalizers()))
    assert halved(settings, global_batch=True, world_size=2) == names


def test_a_whole_batch_of_one_process_is_as_published(tiny_settings):
    assert losses_with(tiny_settings, Normalizers(global_batch=True)) == losses_with(tiny_settings, Normalizers())


def test_less_than_one_object_a_process_counts_as_what_it_is():
    one_in_four = torch.tensor(0.25)
    assert Normalizers(world_size=4).mean_over_ranks(one_in_four) == 1
    assert Normalizers(world_size=4, global_batch=True).mean_over_ranks(one_in_four) == 0.25
    assert Normalizers(world_size=4, global_batch=True).mean_over_ranks(torch.tensor(0.0)) == 0.25
