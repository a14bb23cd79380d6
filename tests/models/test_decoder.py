"""The decoder alone, inside a whole network."""

from __future__ import annotations

import pytest
import torch

from codetr_cli.config.overrides import apply_overrides
from codetr_cli.models import decoder as decoder_module
from codetr_cli.models.attention import MultiScaleDeformableAttention
from codetr_cli.models.build import build_model
from codetr_cli.models.decoder import DinoDecoder
from codetr_cli.models.queries import Queries, concatenate_queries
from tests.models.networks import make_batch


@pytest.fixture
def model(tiny_settings):
    return build_model(tiny_settings.model).eval()


def test_values_of_all_layers_at_once_are_those_that_the_layers_make(model, monkeypatch):
    images, mask, _ = make_batch()
    encoded = model.encode(images, mask)
    queries = model.matching_queries(model.select_queries(encoded))
    theirs = model.decode(queries, encoded).states
    # As on a GPU: the device is all that keeps a CPU from it.
    monkeypatch.setattr(decoder_module, "shares_one_product", lambda *_: True)
    monkeypatch.setattr(MultiScaleDeformableAttention, "project_value", None)
    ours = model.decode(queries, encoded).states
    torch.testing.assert_close(ours, theirs)
    weight = model.decoder.layers[0].cross_attn.value_proj.weight
    gradients = [torch.autograd.grad(x.square().sum(), weight, retain_graph=True)[0] for x in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["co_dino", "co_deformable"])
def test_groups_decoded_at_once_are_those_one_by_one(tiny_settings, family):
    """States, predictions and gradients; the mask is that of the first group."""
    model = build_model(apply_overrides(tiny_settings, [f"model.family={family}"]).model).double().eval()
    images, mask, _ = make_batch()
    with torch.no_grad():
        encoded = model.encode(images.double(), mask)
        queries = model.matching_queries(model.select_queries(encoded))
    sizes = [7, 1, 4]
    content = torch.randn_like(queries.content[:, : sum(sizes)]).requires_grad_()
    positions = [queries.query_pos] * 3 if queries.query_pos is None else queries.query_pos[:, :12].split(sizes, 1)
    parts = zip(content.split(sizes, 1), queries.references[:, :12].split(sizes, 1), positions, strict=True)
    groups = [Queries(*part) for part in parts]
    attn_mask = torch.ones(7, 7, dtype=torch.bool).triu(1)
    together = model.decode(concatenate_queries(groups), encoded, attn_mask, sizes)
    alone = [model.decode(group, encoded, attn_mask if group is groups[0] else None) for group in groups]
    for name in ("states", "references"):
        ours, theirs = getattr(together, name), torch.cat([getattr(one, name) for one in alone], 2)
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)
    weights = torch.randn_like(together.states)
    gradients = [
        torch.autograd.grad((states * weights).sum(), content)[0]
        for states in (together.states, torch.cat([one.states for one in alone], 2))
    ]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-10)


def test_decoder_refines_from_the_raw_state_but_predicts_from_the_normed_one(model):
    """Parity: the refined reference and the predicted box of one layer differ although one head makes both."""
    images, mask, _ = make_batch()
    encoded = model.encode(images, mask)
    for head in model.box_heads:
        torch.nn.init.normal_(head.layers[-1].weight, std=0.5)
    torch.nn.init.uniform_(model.decoder.norm.weight, 0.5, 2.0)
    proposals = model.select_queries(encoded)
    decoded = model.decode(model.matching_queries(proposals), encoded)
    _, boxes = model.predict_layers(decoded)
    assert isinstance(model.decoder, DinoDecoder)
    assert not torch.allclose(boxes[0], decoded.references[1])
