"""The plain transformer backbone; its numbers on the published weights' names are compared by the recorded cases."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from codetr_cli.models.backbones.vit import ViT, rotate, rotation

PATCH, WINDOW = 4, 3


def small(**changes):
    torch.manual_seed(0)
    sizes = {
        "embed_dim": 16,
        "depth": 4,
        "num_heads": 2,
        "hidden_dim": 20,
        "patch_size": PATCH,
        "window_size": WINDOW,
        "global_blocks": (1, 3),
        "pretrain_size": 5 * PATCH,
        "fixed_size": None,
        "drop_path": 0.0,
        "checkpointing": False,
    }
    model = ViT(**{**sizes, **changes})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def images(batch=2, height=7, width=10):
    """Of so many tokens, of which the windows do not fit either side."""
    torch.manual_seed(1)
    return torch.randn(batch, 3, height * PATCH, width * PATCH)


@pytest.mark.parametrize(("height", "width"), [(7, 10), (3, 3), (1, 8), (5, 5)])
def test_gives_one_map_of_the_patches_stride(height, width):
    (found,) = small().eval()(images(2, height, width))
    assert found.shape == (2, 16, height, width)
    assert found.isfinite().all()


def test_window_padding_is_attended_to_as_the_biases():
    """One window of 3 x 3 over a map of 2 x 2: queries see the five padded tokens, with key 0 and the values' bias."""
    block = small().eval().double().blocks[0]
    x = torch.randn(1, 2, 2, 16, dtype=torch.float64)
    turn = rotation(WINDOW, WINDOW, 8, like=x)
    normed = torch.zeros(1, WINDOW, WINDOW, 16, dtype=torch.float64)
    normed[:, :2, :2] = block.norm1(x)
    attention = block.attn

    def heads(y):
        return y.view(9, 2, 8).transpose(0, 1)

    flat = normed.view(9, 16)
    q, k = (rotate(heads(layer(flat)), turn) for layer in (attention.q_proj, attention.k_proj))
    padded = [2, 5, 6, 7, 8]
    assert not k[:, padded].any()
    weights = (q @ k.transpose(1, 2) / math.sqrt(8)).softmax(-1)
    assert (weights[:, :2, padded] > 0).all()
    mixed = attention.proj((weights @ heads(attention.v_proj(flat))).transpose(0, 1).reshape(9, 16))
    attended = x + mixed.view(1, 3, 3, 16)[:, :2, :2]
    torch.testing.assert_close(block(x, turn), attended + block.mlp(block.norm2(attended)))


def test_window_blocks_see_their_window_only_and_global_blocks_everything():
    x = torch.randn(1, 6, 6, 16)
    changed = x.clone()
    changed[0, 5, 5, :8] += 3
    model = small().eval()
    window, image = model.rotations(6, 6, like=x)
    difference = (model.blocks[0](x, window) - model.blocks[0](changed, window)).abs().sum(-1)[0]
    assert difference[3:, 3:].all()
    assert not difference[:3].any()
    assert not difference[:, :3].any()
    assert (model.blocks[1](x, image) - model.blocks[1](changed, image)).abs().sum(-1).all()


def test_rotation_turns_rows_then_columns_by_pairs():
    cosine, sine = rotation(2, 4, 8, like=torch.zeros(1, dtype=torch.float64))
    assert cosine.shape == sine.shape == (8, 8)
    # Token (1, 3): row 1 of 2 is at 8, column 3 of 4 at 12; speeds are 1 and 10000 ** -0.5.
    expected = torch.tensor([8, 8, 0.08, 0.08, 12, 12, 0.12, 0.12], dtype=torch.float64)
    torch.testing.assert_close(cosine[7], expected.cos())
    torch.testing.assert_close(sine[7], expected.sin())
    x = torch.tensor([[1.0, 0, 0, 2, 0, 0, 0, 0]], dtype=torch.float64)
    turned = rotate(x, (cosine[7:], sine[7:]))[0]
    assert turned[:4].tolist() == pytest.approx([math.cos(8), math.sin(8), -2 * math.sin(0.08), 2 * math.cos(0.08)])


def test_rotation_depends_on_relative_positions_only():
    like = torch.zeros(1, dtype=torch.float64)
    turn = rotation(4, 4, 8, like=like)
    q, k = torch.randn(1, 8, dtype=torch.float64), torch.randn(1, 8, dtype=torch.float64)
    turned_q, turned_k = rotate(q.expand(16, 8), turn), rotate(k.expand(16, 8), turn)
    scores = turned_q @ turned_k.T
    torch.testing.assert_close(scores[0, 5], scores[10, 15])
    assert not torch.allclose(scores[0, 5], scores[0, 6])


def test_fixed_tables_are_the_dynamic_ones_of_their_size_and_serve_no_other():
    square = images(1, 6, 6)
    dynamic, fixed = small().eval(), small(fixed_size=6 * PATCH).eval()
    torch.testing.assert_close(fixed(square)[0], dynamic(square)[0])
    with pytest.raises(ValueError, match=r"must be 24 x 24 pixels .*, got 24 x 28"):
        fixed(images(1, 6, 7))


def test_positions_are_the_table_at_its_own_size_and_resized_elsewhere():
    model = small()
    own = model._positions(5, 5)
    assert torch.equal(own, model.pos_embed[:, 1:].view(1, 5, 5, 16))  # the class token's row is skipped
    with torch.no_grad():
        model.pos_embed[:, 1:] = torch.arange(5.0).repeat(5)[None, :, None]  # a slope along the columns
    wide = model._positions(5, 10)
    assert wide.shape == (1, 5, 10, 16)
    # Cubic with a = -0.75: halfway between two columns' quarters it overshoots the straight line.
    torch.testing.assert_close(wide[0, 2, 4:6, 0], torch.tensor([1.703125, 2.296875]))


def test_images_of_a_batch_do_not_see_each_other():
    model, both = small().eval().double(), images().double()
    torch.testing.assert_close(model(both)[0][1:], model(both[1:])[0])


def test_state_holds_no_tables():
    assert not [name for name in small().state_dict() if "rope" in name or "freqs" in name]
    assert not list(small().buffers())


def test_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        model = small(checkpointing=checkpointing, drop_path=0.5).train()
        torch.manual_seed(1)
        model(images())[0].square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        torch.testing.assert_close(gradients[1][name], gradient)


def test_checkpointing_keeps_the_blocks_borders_only():
    """What autograd keeps for a backward pass must not grow with the blocks' insides."""

    def kept(checkpointing):
        total = 0

        def pack(tensor):
            nonlocal total
            total += 0 if isinstance(tensor, nn.Parameter) else tensor.numel()
            return tensor

        model = small(checkpointing=checkpointing).train()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(images())
        return total

    assert kept(True) < 0.2 * kept(False)


def test_drop_path_rises_to_its_value():
    assert [block.drop_path.rate for block in small(drop_path=0.3).blocks] == pytest.approx([0, 0.1, 0.2, 0.3])


def test_half_precision_stays_close():
    model = small().eval()
    with torch.no_grad():
        exact = model(images())[0]
        with torch.autocast("cpu", torch.bfloat16):
            low = model(images())[0]
    assert (low.float() - exact).abs().max() < 0.1 * exact.abs().max()


def test_keys_have_no_bias():
    names = small().state_dict()
    assert "blocks.0.attn.q_proj.bias" in names
    assert "blocks.0.attn.v_proj.bias" in names
    assert "blocks.0.attn.k_proj.bias" not in names
