from __future__ import annotations

import pytest
import torch

from codetr_cli.losses.denoising import make_denoising_queries
from codetr_cli.losses.objects import BatchObjects
from codetr_cli.losses.random import RandomSource


def make(counts, num_queries=100, **options):
    torch.manual_seed(0)
    embed = torch.nn.Embedding(6, 8)
    targets = [
        {
            "boxes": torch.tensor([[10.0 * i, 5, 10 * i + 8, 30] for i in range(n)]).view(-1, 4),
            "labels": torch.arange(n) % 6,
            "norm_size": (40, 100),
        }
        for n in counts
    ]
    options = {"label_noise": 0.5, "box_noise": 1.0, **options}
    queries = make_denoising_queries(
        BatchObjects.of(targets, torch.float32),
        label_embed=embed,
        num_matching=7,
        num_queries=num_queries,
        random=RandomSource(),
        **options,
    )
    return queries, embed


@pytest.mark.parametrize(
    ("counts", "slots", "positives"),
    [((5, 3), 200, 160), ((4, 0), 200, 100), ((0, 0), 0, 0), ((150, 1), 300, 151)],
)
def test_group_arithmetic(counts, slots, positives):
    """Published: 100 // 5 = 20 groups of 10; never fewer than one group; none without objects."""
    queries, _ = make(counts)
    assert queries.content.shape == (2, slots, 8)
    assert queries.reference_logits.shape == (2, slots, 4)
    assert queries.attn_mask.shape == (slots + 7, slots + 7)
    assert queries.num_positives == positives == int((queries.labels < 6).sum())


def test_who_sees_whom():
    queries, _ = make((2, 1), num_queries=4)  # two groups of four
    attn_mask = queries.attn_mask
    assert bool(attn_mask[8:, :8].all()), "matching queries see no denoising query"
    assert not bool(attn_mask[8:, 8:].any())
    assert not bool(attn_mask[:8, 8:].any()), "denoising queries see the matching ones"
    assert not bool(attn_mask[:4, :4].any())
    assert bool(attn_mask[:4, 4:8].all()), "groups do not see each other"


def test_without_noise_positives_are_the_objects_and_negatives_are_shifted():
    queries, embed = make((2, 1), num_queries=2, label_noise=0.0, box_noise=0.0)
    boxes = queries.reference_logits.sigmoid()
    torch.testing.assert_close(boxes[0, :2], queries.boxes[0, :2], atol=2e-3, rtol=0)  # the logit's floor is 1e-3
    assert torch.equal(queries.content[0, 1], embed.weight[1])
    assert queries.labels.tolist() == [[0, 1, 6, 6], [0, 6, 6, 6]]
    assert boxes[1, 1].tolist() == [0.5] * 4, "empty slots sit in the middle"


def test_negatives_are_noisier_than_positives():
    queries, _ = make((3,) * 2, num_queries=90)
    shift = (queries.reference_logits.sigmoid() - queries.boxes[:, :3].repeat(1, 60, 1)).abs().mean((0, 2))
    block = shift.view(30, 2, 3).mean((0, 2))
    assert float(block[1]) > 1.3 * float(block[0])


def test_a_batch_without_objects_still_reaches_the_embedding():
    queries, embed = make((0, 0))
    queries.content.sum().backward()
    assert embed.weight.grad is not None
    assert float(embed.weight.grad.abs().sum()) == 0.0
