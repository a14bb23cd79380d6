"""The Swin backbone; its numbers on the published weights' names are compared by the recorded cases."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from codetr_cli.models.backbones.swin import (
    MASKED_SCORE,
    SwinTransformer,
    WindowAttention,
    relative_index,
    shift_masks,
    stage_grid,
)


def small(**changes):
    torch.manual_seed(0)
    sizes = {
        "embed_dim": 8,
        "layers": (2, 2, 2, 2),
        "num_heads": (1, 2, 4, 4),
        "window_size": 3,
        "drop_path": 0.0,
        "finest_stride": 4,
        "checkpointing": False,
    }
    model = SwinTransformer(**{**sizes, **changes})
    for name, parameter in model.named_parameters():
        if name.endswith("relative_position_bias_table"):
            nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize(("height", "width"), [(64, 96), (61, 35), (33, 130), (5, 3)])
def test_maps_have_the_strides_and_channels_of_the_stages(height, width):
    maps = small().eval()(torch.randn(2, 3, height, width))
    assert [tuple(m.shape) for m in maps] == [
        (2, 8 * 2**i, -(-height // (4 * 2**i)), -(-width // (4 * 2**i))) for i in range(4)
    ]


def test_without_the_finest_map_there_is_no_norm_for_it():
    fine, coarse = small(), small(finest_stride=8)
    assert coarse.out_channels == fine.out_channels[1:] == [16, 32, 64]
    assert set(fine.state_dict()) - set(coarse.state_dict()) == {"norm0.weight", "norm0.bias"}
    coarse.load_state_dict(fine.state_dict(), strict=False)
    images = torch.randn(1, 3, 40, 64)
    for ours, expected in zip(coarse(images), fine(images)[1:], strict=True):
        torch.testing.assert_close(ours, expected)


def test_relative_index_counts_rows_before_columns():
    index = relative_index(3)
    assert index[0, 0] == index[8, 8] == 12  # the middle of 5 x 5
    assert index[0, 8] == 0
    assert index[8, 0] == 24
    assert index[1, 0] == 13
    assert index[3, 0] == 17


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 3), (2, 1), (3, 4)])
@pytest.mark.parametrize("window", [4, 7])
def test_masks_of_windows_are_those_of_the_whole_shifted_image(rows, columns, window):
    """The published way: number the nine regions of the shifted image and compare them within each window."""
    shift = window // 2
    regions = torch.zeros(rows * window, columns * window)
    cuts = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for i, vertical in enumerate(cuts):
        for j, horizontal in enumerate(cuts):
            regions[vertical, horizontal] = 3 * i + j
    windows = regions.view(rows, window, columns, window).transpose(1, 2).flatten(2)
    expected = torch.where(windows[..., None] != windows[..., None, :], MASKED_SCORE, 0.0)
    masks = shift_masks(window)
    for i in range(rows):
        for j in range(columns):
            assert torch.equal(masks[int(i == rows - 1), int(j == columns - 1)], expected[i, j])


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 3), (2, 1), (3, 4)])
def test_attention_that_is_exported_for_any_size_is_that_of_the_pieces(rows, columns):
    torch.manual_seed(0)
    attention, masks = WindowAttention(8, 2, 3).double(), shift_masks(3).double()
    nn.init.normal_(attention.relative_position_bias_table)
    windows, index = torch.randn(2, rows, columns, 9, 8, dtype=torch.float64), relative_index(3)
    expected = attention(windows, index, masks)
    bias = attention.relative_position_bias_table[index].permute(2, 0, 1)
    found = attention.proj(attention.attend_any_grid(attention.qkv(windows), bias, masks))
    torch.testing.assert_close(found, expected)
    if rows > 1:  # the masks matter, and the last row's are not those of the first
        assert not torch.allclose(attention(windows.flip(1), index, masks).flip(1), expected)


def test_sizes_of_a_stage_are_those_of_rounding_up_stage_by_stage():
    for side in range(1, 300):
        tokens = -(-side // 4)
        for stage in range(4):
            grid = stage_grid(side, 2 * side, 4 * 2**stage, 7)
            assert (grid.height, grid.rows) == (tokens, -(-tokens // 7))
            assert stage_grid(2 * side, side, 4 * 2**stage, 7) == (grid[1], grid[0], grid[3], grid[2])
            tokens = -(-tokens // 2)


def test_windows_of_one_image_do_not_depend_on_the_others():
    model, images = small().eval().double(), torch.randn(3, 3, 50, 70, dtype=torch.float64)
    together, alone = model(images), model(images[1:2])
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a[1:2], b)


def test_checkpointing_changes_no_gradient():
    images = torch.randn(2, 3, 45, 38)
    gradients = []
    for checkpointing in (False, True):
        model = small(checkpointing=checkpointing, drop_path=0.5).train()
        torch.manual_seed(1)
        sum(m.square().mean() for m in model(images)).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        torch.testing.assert_close(gradients[1][name], gradient)


def test_feed_forward_in_chunks_changes_nothing():
    model, images = small().eval(), torch.randn(2, 3, 50, 70)
    with torch.no_grad():
        whole = model(images)
        for stage in model.layers:
            for block in stage.blocks:
                block.chunk_tokens = 16
        for ours, expected in zip(model(images), whole, strict=True):
            torch.testing.assert_close(ours, expected)


def test_drop_path_rises_to_its_value_and_acts_in_training_only():
    model = small(drop_path=0.7)
    rates = [block.drop_path.rate for stage in model.layers for block in stage.blocks]
    assert rates == pytest.approx([0.1 * i for i in range(8)])
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(model.eval()(images), small().eval()(images))
    torch.manual_seed(3)
    assert not torch.allclose(model.train()(images)[-1], small().eval()(images)[-1])


def test_half_precision_stays_close():
    model, images = small().eval(), torch.randn(1, 3, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        low = model(images)
    for ours, expected in zip(low, model(images), strict=True):
        assert (ours.float() - expected).abs().max() < 0.15


def test_starts_as_published():
    linear = small(embed_dim=32).layers[2].blocks[0].mlp.fc1
    assert linear.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not linear.bias.any()
