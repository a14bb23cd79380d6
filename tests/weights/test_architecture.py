"""Architectures derived from entries."""

from __future__ import annotations

import pytest
import torch

from codetr_cli.config.overrides import apply_overrides
from codetr_cli.models.build import build_model
from codetr_cli.weights.architecture import describe, differences
from codetr_cli.weights.tensor_layout import to_published_state
from tests.models.networks import KINDS, VIT

HEAD_DIM = 16


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def settings(request, tiny_settings):
    return apply_overrides(tiny_settings, request.param)


def state_of(settings):
    with torch.device("meta"):
        return build_model(settings.model).state_dict()


def rotary_tables(tokens, blocks, name=None):
    names = [f"backbone.blocks.{i}.attn.rope" for i in blocks] + ([f"backbone.{name}"] if name else [])
    return {f"{each}.freqs_{leaf}": torch.empty(tokens, HEAD_DIM) for each in names for leaf in ("cos", "sin")}


def test_a_networks_own_entries_differ_in_nothing(settings):
    found = describe(state_of(settings))
    assert found["backbone.kind"] == settings.model.backbone.kind
    assert found["finest_stride"] == settings.model.finest_stride
    assert not differences(settings.model, found)


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ("model.backbone.window_size=4", "model.backbone.window_size"),
        ("model.backbone.num_heads=[1, 1, 2, 4]", "model.backbone.num_heads"),
        ("model.backbone.layers=[1, 1, 3, 1]", "model.backbone.layers"),
        ("model.finest_stride=8", "model.finest_stride"),
    ],
)
def test_differences_of_a_swin_are_named(tiny_settings, override, name):
    swin = apply_overrides(tiny_settings, KINDS["swin"])
    assert list(differences(apply_overrides(swin, [override]).model, describe(state_of(swin)))) == [name]


def test_of_another_kind_of_backbone_only_the_kind_is_compared(tiny_settings):
    gaps = differences(tiny_settings.model, describe(state_of(apply_overrides(tiny_settings, KINDS["swin"]))))
    assert gaps == {"model.backbone.kind": ("resnet", "swin")}


@pytest.mark.parametrize("fixed", [False, True])
def test_published_rotary_tables_determine_windows_and_global_blocks(tiny_settings, fixed):
    settings = apply_overrides(tiny_settings, [*VIT, *(["model.backbone.fixed_size=96"] if fixed else [])])
    published = to_published_state(state_of(settings), "sensex")
    published |= rotary_tables(16, (0, 2), "rope_win")
    if fixed:
        published |= rotary_tables(36, (1,), "rope_glb")
    found = describe(state_of(settings), published)
    expected = {"num_heads": 2, "window_size": 4, "global_blocks": (1,), "fixed_size": 96 if fixed else None}
    assert {name: found[f"backbone.{name}"] for name in expected} == expected
    assert not differences(settings.model, found)
    other = apply_overrides(settings, ["model.backbone.global_blocks=[2]"])
    assert differences(other.model, found) == {"model.backbone.global_blocks": ((2,), (1,))}
    assert not differences(other.model, describe(state_of(settings)))  # unknown without the tables
