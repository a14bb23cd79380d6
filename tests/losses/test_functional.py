from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from codetr_cli.losses import functional
from codetr_cli.losses.functional import focal_loss, quality_focal_loss, split_classes


def make_logits(batch=2, classes=5, elements=7, dtype=torch.float64, scale=3.0):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, classes, elements, generator=generator, dtype=dtype) * scale
    labels = torch.randint(classes + 1, (batch, elements), generator=generator)
    return logits, labels, torch.rand(batch, elements, generator=generator, dtype=dtype)


def plain_targets(logits, labels):
    classes = torch.arange(logits.shape[1])[:, None]
    return (labels[:, None] == classes).to(logits.dtype)


def plain_focal_loss(logits, labels):
    target, p = plain_targets(logits, labels), logits.sigmoid()
    wrong = (1 - p) * target + p * (1 - target)
    weight = (0.25 * target + 0.75 * (1 - target)) * wrong**2
    return (F.binary_cross_entropy_with_logits(logits, target, reduction="none") * weight).sum(1)


def plain_quality_focal_loss(logits, labels, quality):
    target = plain_targets(logits, labels) * quality[:, None]
    modulation = (target - logits.sigmoid()).abs() ** 2
    return (F.binary_cross_entropy_with_logits(logits, target, reduction="none") * modulation).sum(1)


def losses_and_gradients(loss, logits, *others, weights):
    leaf = logits.detach().requires_grad_()
    losses = loss(leaf, *others)
    (gradient,) = torch.autograd.grad((losses * weights).sum(), leaf)
    return losses.detach(), gradient


def test_focal_losses_follow_their_equations():
    logits = torch.tensor([[[0.3], [-1.0]]], dtype=torch.float64)
    p = logits.sigmoid()[0, :, 0]
    second = -0.75 * p[1] ** 2 * (1 - p[1]).log()
    assert float(focal_loss(logits, torch.tensor([[0]]))) == pytest.approx(
        float(-0.25 * (1 - p[0]) ** 2 * p[0].log() + second)
    )
    assert float(focal_loss(logits, torch.tensor([[2]]))) == pytest.approx(
        float(-0.75 * p[0] ** 2 * (1 - p[0]).log() + second)
    )
    quality = quality_focal_loss(logits, torch.tensor([[0]]), torch.tensor([[0.6]], dtype=torch.float64))
    first = -((0.6 - p[0]) ** 2) * (0.6 * p[0].log() + 0.4 * (1 - p[0]).log())
    assert float(quality) == pytest.approx(float(first - p[1] ** 2 * (1 - p[1]).log()))


@pytest.mark.parametrize("chunk", [1, 29, 30, 31, 2**18])
@pytest.mark.parametrize("classes_last", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, {"rtol": 1e-12, "atol": 1e-13}), (torch.float32, {})])
def test_chunks_equal_the_whole(monkeypatch, chunk, classes_last, dtype, tolerance):
    """Two images of five classes: a chunk of 29, 30 or 31 logits ends before, at and after the third element."""
    monkeypatch.setitem(functional.CHUNK_ELEMENTS, "cpu", chunk)
    logits, labels, quality = make_logits(dtype=dtype)
    if classes_last:
        logits = logits.transpose(1, 2).contiguous().transpose(1, 2)
    weights = torch.linspace(-1, 2, labels.numel(), dtype=dtype).view(labels.shape)
    for ours, plain, others in (
        (focal_loss, plain_focal_loss, (labels,)),
        (quality_focal_loss, plain_quality_focal_loss, (labels, quality)),
    ):
        found = losses_and_gradients(ours, logits, *others, weights=weights)
        wanted = losses_and_gradients(plain, logits, *others, weights=weights)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, **tolerance)
        assert found[1].stride() == logits.stride()


def test_the_gradient_is_that_of_the_value():
    logits, labels, quality = make_logits()
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: split_classes(x, labels)[0], (logits,))
    assert torch.autograd.gradcheck(lambda x: focal_loss(x, labels), (logits,))
    assert torch.autograd.gradcheck(lambda x: quality_focal_loss(x, labels, quality), (logits,))


@pytest.mark.parametrize("value", [-1e4, -80.0, -30.0, 30.0, 80.0, 1e4])
def test_far_logits_have_finite_losses_and_gradients(value):
    logits = torch.full((1, 3, 2), value)
    labels = torch.tensor([[1, 3]])
    weights = torch.ones(1, 2)
    found = losses_and_gradients(focal_loss, logits, labels, weights=weights)
    wanted = losses_and_gradients(plain_focal_loss, logits, labels, weights=weights)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_numbers_that_are_not_finite_are_not_hidden():
    logits, labels, _ = make_logits(dtype=torch.float32)
    logits[0, 2, 3] = float("nan")
    assert focal_loss(logits, labels).isnan().nonzero().tolist() == [[0, 3]]


@pytest.mark.parametrize(("classes", "elements"), [(1, 4), (5, 0), (5, 1)])
def test_one_class_and_few_elements(classes, elements):
    logits, labels, _ = make_logits(classes=classes, elements=elements)
    weights = torch.ones(labels.shape, dtype=torch.float64)
    found = losses_and_gradients(focal_loss, logits, labels, weights=weights)
    wanted = losses_and_gradients(plain_focal_loss, logits, labels, weights=weights)
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(found, wanted, strict=True))


def test_background_alone_asks_every_class_to_be_low():
    logits, labels, quality = make_logits()
    labels.fill_(logits.shape[1])
    wanted = (logits.sigmoid() ** 2 * F.softplus(logits)).sum(1)
    torch.testing.assert_close(quality_focal_loss(logits, labels, quality), wanted)
    torch.testing.assert_close(focal_loss(logits, labels), 0.75 * wanted)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # of torch 2.7's compiler
def test_the_losses_run_compiled():
    logits, labels, quality = make_logits(dtype=torch.float32)
    weights = torch.ones(labels.shape)
    compiled = torch.compile(quality_focal_loss, backend="aot_eager")
    found = losses_and_gradients(compiled, logits, labels, quality, weights=weights)
    wanted = losses_and_gradients(quality_focal_loss, logits, labels, quality, weights=weights)
    assert all(torch.allclose(a, b) for a, b in zip(found, wanted, strict=True))


def test_nothing_but_the_logits_is_kept():
    """Autograd keeps the logits themselves and some numbers an element, and works in chunks."""
    logits = torch.randn(1, 50, 4000, requires_grad=True)
    labels = torch.randint(51, (1, 4000))
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = quality_focal_loss(logits, labels, torch.rand(1, 4000)).sum()
    del kept[logits.untyped_storage().data_ptr()]
    assert 0 < sum(kept.values()) < logits.nbytes / 2
    loss.backward()
