"""A training step of the auxiliary heads: how often it asks the device for numbers, and in which precision it runs."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from codetr_cli.boxes import host_numbers
from codetr_cli.losses import assigners, aux_heads
from codetr_cli.losses.normalizers import SINGLE_PROCESS
from codetr_cli.losses.random import RandomSource
from codetr_cli.models import pooling
from tests.losses.batches import make_batch, make_objective

ASKS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::_unique2"}


class Waits(TorchDispatchMode):
    """Counts the operators that a GPU would have to finish before the host goes on."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        indices = args[1] if name in ("aten::index", "aten::index_put", "aten::index_put_") else ()
        boolean = any(index is not None and index.dtype == torch.bool for index in indices)
        if name in ASKS or boolean:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


class FirstOnes(RandomSource):
    """Samples the first candidates of each image, however they are drawn."""

    def permutation(self, count, like):
        return torch.arange(count)


def run_heads(objective, counts=(3, 0), dtype=None, random=None):
    images, _, targets = make_batch(counts)
    torch.manual_seed(1)
    model = objective.model
    maps = [torch.randn(len(images), 32, 96 // stride, 96 // stride) for stride in model.aux_heads.rpn.anchors.strides]
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        samples = aux_heads.sample_aux_boxes(
            model.aux_heads,
            [m.requires_grad_() for m in maps],
            targets,
            objective.options.aux_heads,
            random or RandomSource(),
            SINGLE_PROCESS,
        )
        return aux_heads.train_aux_heads(model.aux_heads, samples, targets, SINGLE_PROCESS)


@pytest.fixture
def objective(tiny_settings):
    torch.manual_seed(0)
    return make_objective(tiny_settings)


@pytest.mark.parametrize("counts", [(3, 0), (0, 0), (5, 9)])
def test_numbers_are_asked_for_once(objective, monkeypatch, counts):
    asked = []

    def counted(*tensors):
        asked.append(len(tensors))
        return host_numbers(*tensors)

    for module in (aux_heads, pooling):
        monkeypatch.setattr(module, "host_numbers", counted)
    monkeypatch.setattr(assigners, "_one_by_one", lambda device: False)  # as on a GPU
    with Waits() as waits:
        found = run_heads(objective, counts)
    assert asked == [4]
    assert waits.found == []
    for each in [*found.roi.sampled, *found.atss.sampled]:
        assert int((each.labels < 3).sum()) == each.num_positives


def test_all_images_at_once_give_the_same_losses(objective, monkeypatch):
    single = run_heads(objective, (5, 2), random=FirstOnes())
    monkeypatch.setattr(assigners, "_one_by_one", lambda device: False)
    together = run_heads(objective, (5, 2), random=FirstOnes())
    for head in ("rpn", "atss"):
        torch.testing.assert_close(getattr(together, head).box_loss, getattr(single, head).box_loss)
        torch.testing.assert_close(getattr(together, head).class_loss, getattr(single, head).class_loss)
    torch.testing.assert_close(together.atss.centerness_loss, single.atss.centerness_loss)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_networks_run_in_mixed_precision_and_losses_do_not(objective, dtype):
    mixed, plain = run_heads(objective, dtype=dtype), run_heads(objective)
    outputs = [*mixed.rpn.logits, *mixed.rpn.deltas, *mixed.atss.logits, *mixed.atss.centerness]
    assert {output.dtype for output in outputs} == {dtype}
    assert mixed.roi.pooled.dtype == torch.float32
    for head, name in (("rpn", "class_loss"), ("rpn", "box_loss"), ("roi", "class_loss"), ("atss", "class_loss"),
                       ("atss", "box_loss"), ("atss", "centerness_loss")):  # fmt: skip
        ours, exact = getattr(getattr(mixed, head), name), getattr(getattr(plain, head), name)
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, exact, rtol=0.05, atol=0.01)
