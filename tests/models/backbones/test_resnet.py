"""Frozen norms folded into the convolutions before them, in training."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from codetr_cli.models.backbones.resnet import FrozenBatchNorm2d, ResNet
from tests.strict_device import strict_device, values, why_not


@pytest.fixture
def backbone() -> ResNet:
    torch.manual_seed(0)
    backbone = ResNet(
        block="bottleneck",
        layers=[1, 1, 1, 1],
        base_channels=4,
        norm="frozen_batch",
        frozen_stages=1,
        finest_stride=4,
        checkpointing=False,
    )
    with torch.no_grad():
        for norm in norms(backbone):
            for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                value.uniform_(0.5, 1.5)
    return backbone.train()


def norms(backbone: ResNet) -> list[FrozenBatchNorm2d]:
    return [module for module in backbone.modules() if isinstance(module, FrozenBatchNorm2d)]


def images(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)).to(dtype)


def maps(backbone: ResNet, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [m.detach() for m in backbone(images(dtype))]


def computed_anew(backbone: ResNet, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """The maps of a copy that has kept nothing."""
    backbone = copy.deepcopy(backbone)
    for norm in norms(backbone):
        norm.keeps_folded = False
    return maps(backbone, dtype)


def assert_equal(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_constants_are_computed_once(backbone, monkeypatch):
    wanted = computed_anew(backbone)
    assert_equal(maps(backbone), wanted)
    calls = []
    monkeypatch.setattr(FrozenBatchNorm2d, "_scale_and_shift", lambda norm: calls.append(norm))
    assert_equal(maps(backbone), wanted)
    assert not calls


def pickled(backbone: ResNet) -> ResNet:
    return pickle.loads(pickle.dumps(backbone))  # noqa: TID251 - of this test


def change_norms(backbone: ResNet) -> ResNet:
    with torch.no_grad():
        norms(backbone)[2].running_var.mul_(2)
    return backbone


def change_frozen_weight(backbone: ResNet) -> ResNet:
    with torch.no_grad():
        backbone.layer1[0].conv2.weight.mul_(2)
    return backbone


def change_trained_weight(backbone: ResNet) -> ResNet:
    with torch.no_grad():
        backbone.layer3[0].conv2.weight.mul_(2)
    return backbone


def load_others(backbone: ResNet) -> ResNet:
    backbone.load_state_dict({name: value + 1 for name, value in backbone.state_dict().items()})
    return backbone


def load_in_place_of(backbone: ResNet) -> ResNet:
    state = {name: value + 1 for name, value in backbone.state_dict().items()}
    backbone.load_state_dict(state, assign=True)
    backbone.layer1.requires_grad_(False)
    return backbone


def freeze_more(backbone: ResNet) -> ResNet:
    backbone.layer2.requires_grad_(False)
    return backbone


def unfreeze(backbone: ResNet) -> ResNet:
    backbone.layer1.requires_grad_(True)
    return backbone


@pytest.mark.parametrize(
    "change",
    [
        change_norms,
        change_frozen_weight,
        change_trained_weight,
        load_others,
        load_in_place_of,
        freeze_more,
        unfreeze,
        lambda backbone: change_norms(copy.deepcopy(backbone)),
        lambda backbone: change_norms(pickled(backbone)),
    ],
)
def test_kept_constants_follow_every_change_of_the_weights(backbone, change):
    maps(backbone)
    backbone = change(backbone)
    assert_equal(maps(backbone), computed_anew(backbone))


def test_a_tensor_at_the_address_of_a_freed_one_is_another():
    for seed in range(50):  # an allocator often, but not always, gives the freed memory back
        conv, norm = torch.nn.Conv2d(4, 64, kernel_size=3, bias=False).requires_grad_(False), FrozenBatchNorm2d(64)
        conv.weight = torch.nn.Parameter(torch.full((64, 4, 3, 3), 0.5), requires_grad=False)
        norm.fold_into(conv.weight)
        del conv.weight
        conv.weight = torch.nn.Parameter(torch.full((64, 4, 3, 3), seed + 1.0), requires_grad=False)
        folded, _ = norm.fold_into(conv.weight)
        torch.testing.assert_close(folded, conv.weight, rtol=1e-4, atol=0)


def test_kept_constants_follow_the_dtype(backbone):
    maps(backbone)
    backbone = backbone.double()
    assert_equal(maps(backbone, torch.float64), computed_anew(backbone, torch.float64))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = maps(backbone.float())
    assert low[-1].dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_equal(low, computed_anew(backbone))
    assert_equal(maps(backbone), computed_anew(backbone))


@pytest.mark.skipif(why_not() is not None, reason=why_not() or "")
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_channels_are_innermost_on_a_gpu_in_mixed_precision(backbone, precision):
    expected = maps(backbone)
    mixed = precision != torch.float32
    with strict_device(), torch.autocast("cuda", dtype=precision, enabled=mixed):
        found = [values(m) for m in backbone.to("cuda")(images().to("cuda"))]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == precision
        assert ours.is_contiguous(memory_format=torch.channels_last if mixed else torch.contiguous_format)
        torch.testing.assert_close(ours.float(), theirs, rtol=0, atol=0.05 * float(theirs.abs().max()))


def test_what_is_kept_is_neither_saved_nor_copied(backbone):
    names = list(backbone.state_dict())
    maps(backbone)
    assert list(backbone.state_dict()) == names
    for other in (copy.deepcopy(backbone), pickled(backbone)):
        assert all(norm._folded.scale is None for norm in norms(other))
