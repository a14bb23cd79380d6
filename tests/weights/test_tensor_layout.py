"""Publishers that store numbers in another order than ours."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from codetr_cli.models.backbones.swin import Grid, SwinTransformer
from codetr_cli.weights.tensor_layout import to_our_state, to_published_state

WIDTH = 8


def swin(finest_stride=4):
    torch.manual_seed(0)
    return SwinTransformer(
        embed_dim=WIDTH,
        layers=(1, 1, 2, 1),
        num_heads=(1, 2, 2, 4),
        window_size=3,
        drop_path=0.0,
        finest_stride=finest_stride,
        checkpointing=False,
    )


def backbone_state(**more):
    return {f"backbone.{name}": value for name, value in swin(**more).state_dict().items()}


@pytest.mark.parametrize("naming", ["mmdet3", "sensex"])
@pytest.mark.parametrize("finest_stride", [4, 8])
def test_swin_comes_back_under_either_naming(naming, finest_stride):
    state = backbone_state(finest_stride=finest_stride)
    published = to_published_state(state, naming)
    back = to_our_state(published)
    assert back.naming == naming
    assert list(back.state) == list(state)
    assert all(torch.equal(back.state[name], value) for name, value in state.items())


def test_merged_tokens_are_in_unfolds_order():
    """MMDetection merges with `nn.Unfold`: the same map must give the same result with its columns in its order."""
    model = swin()
    merging = model.layers[0].downsample
    torch.nn.init.normal_(merging.norm.weight)
    torch.nn.init.normal_(merging.norm.bias)
    state = {f"backbone.{name}": value for name, value in model.state_dict().items()}
    theirs = to_published_state(state, "mmdet3")
    prefix = "backbone.stages.0.downsample."
    x = torch.randn(2, 6, 4, WIDTH)
    unfolded = torch.nn.functional.unfold(x.permute(0, 3, 1, 2), 2, stride=2).transpose(1, 2)
    normed = torch.nn.functional.layer_norm(
        unfolded, (4 * WIDTH,), theirs[prefix + "norm.weight"], theirs[prefix + "norm.bias"]
    )
    expected = torch.nn.functional.linear(normed, theirs[prefix + "reduction.weight"])
    torch.testing.assert_close(merging(x, Grid(3, 2, 1, 1)).flatten(1, 2), expected)


def test_only_merged_entries_change():
    state = backbone_state()
    for name, value in to_our_state(to_published_state(state, "mmdet3"), "mmdet3").state.items():
        assert value.shape == state[name].shape
    numbers = {f"backbone.stages.0.downsample.norm.{leaf}": torch.arange(8.0) for leaf in ("weight", "bias")}
    ours = to_our_state(numbers, "mmdet3").state
    np.testing.assert_array_equal(ours["backbone.layers.0.downsample.norm.weight"], [0, 4, 2, 6, 1, 5, 3, 7])


def test_recomputable_entries_are_dropped_with_a_reason():
    published = to_published_state(backbone_state(), "sensex")
    extra = {
        "backbone.layers.0.blocks.0.attn.relative_position_index": torch.zeros(9, 9, dtype=torch.int64),
        "backbone.rope_win.freqs_cos": torch.zeros(4, 8),
        "backbone.blocks.0.attn.rope.freqs_sin": torch.zeros(4, 8),
        "backbone.rope_glb.freqs_sin": torch.zeros(4, 8),
    }
    dropped = to_our_state({**published, **extra}).dropped
    assert sorted(name for names in dropped.values() for name in names) == sorted(extra)
    assert len(dropped) == 2


def test_a_name_of_another_family_is_an_error():
    with pytest.raises(ValueError, match="has no name for"):
        to_published_state({"backbone.blocks.0.attn.q_proj.weight": torch.zeros(2, 2)}, "mmdet3")
