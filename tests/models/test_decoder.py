"""The decoder alone, inside a whole network."""

from __future__ import annotations

import pytest
import torch

from codetr_cli.models import decoder as decoder_module
from codetr_cli.models.build import build_model
from codetr_cli.models.decoder import DinoDecoder
from tests.models.networks import make_batch


@pytest.fixture
def model(tiny_settings):
    return build_model(tiny_settings.model).eval()


@pytest.mark.parametrize("at_once", [False, True])
def test_values_made_before_are_those_that_the_layers_make(model, at_once, monkeypatch):
    images, mask, _ = make_batch()
    encoded = model.encode(images, mask)
    if at_once:  # as on a GPU: the device is all that keeps a CPU from it
        monkeypatch.setattr(decoder_module, "shares_one_product", lambda *_: True)
    shared = model.with_values(encoded)
    proposals = model.select_queries(encoded)
    queries = model.matching_queries(proposals)
    ours, theirs = model.decode(queries, shared).states, model.decode(queries, encoded).states
    torch.testing.assert_close(ours, theirs)
    weight = model.decoder.layers[0].cross_attn.value_proj.weight
    gradients = [torch.autograd.grad(x.square().sum(), weight, retain_graph=True)[0] for x in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


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
