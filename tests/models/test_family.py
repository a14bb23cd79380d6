"""What the two families do differently, one test a row of the table in `models/family.py`."""

from __future__ import annotations

import pytest
import torch

from codetr_cli.config.overrides import apply_overrides
from codetr_cli.losses.build import build_objective
from codetr_cli.losses.random import RandomSource
from codetr_cli.models.build import build_model
from codetr_cli.models.family import FAMILIES
from codetr_cli.models.queries import Queries


@pytest.fixture
def settings(tiny_settings):
    return apply_overrides(
        tiny_settings,
        ["model.family=co_deformable", "model.finest_stride=8", "model.num_levels=4", "train.loss.class_weight=2.0"],
    )


@pytest.fixture
def model(settings):
    return build_model(settings.model).eval()


def make_batch(counts=(3, 0), size=96):
    generator = torch.Generator().manual_seed(1)
    targets = []
    for count in counts:
        corner = torch.rand(count, 2, generator=generator) * 50
        targets.append(
            {
                "boxes": torch.cat([corner, corner + 20], 1),
                "labels": torch.full((count,), 2),
                "norm_size": (size, size),
                "pad_size": (size, size),
            }
        )
    images = torch.randn(len(counts), 3, size, size, generator=generator)
    return images, torch.zeros(len(counts), size, size, dtype=torch.bool), targets


def test_maps_start_at_stride_eight(model):
    maps = model.neck(model.backbone(torch.zeros(1, 3, 96, 128)))
    assert [tuple(m.shape[2:]) for m in maps] == [(12, 16), (6, 8), (3, 4), (2, 2)]


def test_tokens_are_selected_by_their_first_class_alone(model):
    images, mask, _ = make_batch()
    encoded = model.encode(images, mask)
    with torch.no_grad():
        before = model.select_queries(encoded).indices
        model.class_heads[-1].weight[1:].normal_()
        after = model.select_queries(encoded).indices
        model.class_heads[-1].weight[0].normal_()
        other = model.select_queries(encoded).indices
    assert torch.equal(before, after)
    assert not torch.equal(before, other)


def test_every_token_is_given_for_training(model):
    images, mask, _ = make_batch()
    encoded = model.encode(images, mask)
    some, all_of_them = model.select_queries(encoded), model.select_queries(encoded, all_tokens=True)
    assert some.all_logits is None
    assert torch.equal(some.indices, all_of_them.indices)
    torch.testing.assert_close(some.boxes, all_of_them.boxes)
    assert all_of_them.all_logits.shape == (*encoded.memory.shape[:2], 3)
    gathered = all_of_them.all_boxes.gather(1, some.indices[..., None].expand(-1, -1, 4))
    torch.testing.assert_close(gathered, some.boxes)


def test_positional_parts_are_computed_once_and_required(model):
    images, mask, _ = make_batch()
    encoded = model.encode(images, mask)
    queries = model.matching_queries(model.select_queries(encoded))
    assert queries.query_pos.shape == queries.content.shape
    with pytest.raises(ValueError, match="positional part"):
        model.decode(Queries(queries.content, queries.references), encoded)


def test_heads_read_what_refinement_reads(model):
    """Without a norm between them the predicted box of a layer is its refined reference."""
    for head in model.box_heads:
        torch.nn.init.normal_(head.layers[-1].weight, std=0.5)
    images, mask, _ = make_batch()
    encoded = model.encode(images, mask)
    decoded = model.decode(model.matching_queries(model.select_queries(encoded)), encoded)
    _, boxes = model.predict_layers(decoded)
    torch.testing.assert_close(boxes, decoded.references[1:])


def test_positive_queries_depend_on_features_and_head_embedding(model):
    boxes, features = torch.rand(1, 5, 4), torch.randn(1, 5, model.query_embed.weight.shape[1])
    with torch.no_grad():
        plain = model.positive_queries(boxes, "atss", features)
        other = model.positive_queries(boxes, "atss", features + torch.randn_like(features))
        model.positive_queries.head_embed[1] += 2.0
        moved = model.positive_queries(boxes, "atss", features)
    assert torch.equal(plain.query_pos, other.query_pos)
    assert not torch.allclose(plain.content, other.content)
    torch.testing.assert_close(moved.query_pos, plain.query_pos + 2.0)
    with pytest.raises(ValueError, match="features"):
        model.positive_queries(boxes, "roi")


def test_objects_are_of_the_first_class_for_the_proposals_only(settings):
    torch.manual_seed(0)
    objective = build_objective(build_model(settings.model), settings.train.loss).train()
    images, mask, targets = make_batch()
    sets = []
    criterion = objective.criterion

    def record(logits, boxes, wanted, factors, groups):
        labels = wanted.labels[:, :, : groups.sizes[0]]
        sets.append((len(logits), groups.sizes[0], set(labels.flatten().tolist())))
        return criterion(logits, boxes, wanted, factors, groups)

    objective.criterion = record
    record_of_pass = objective.run(images, mask, targets, RandomSource())
    tokens, layers = record_of_pass.proposals.all_logits.shape[1], settings.model.decoder_layers
    assert sets == [(layers, settings.model.num_queries, {2, 3}), (1, tokens, {0, 3})]
    assert not any("dn_" in name for name in record_of_pass.losses)


@pytest.mark.parametrize("counts", [(3, 2), (4, 0), (0, 0)])
def test_every_trained_parameter_gets_a_finite_gradient(settings, counts):
    torch.manual_seed(0)
    objective = build_objective(build_model(settings.model), settings.train.loss).train()
    torch.stack(list(objective(*make_batch(counts)).values())).sum().backward()
    trained = {name: p.grad for name, p in objective.named_parameters() if p.requires_grad}
    assert [name for name, gradient in trained.items() if gradient is None] == []
    assert all(bool(gradient.isfinite().all()) for gradient in trained.values())


def test_the_class_loss_is_divided_by_the_mean_over_processes_where_published():
    assert [family.mean_class_normalizer for family in FAMILIES.values()] == [False, True]
