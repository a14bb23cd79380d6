"""What the auxiliary heads' settings change."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from codetr_cli.losses.assigners import pad_objects
from codetr_cli.losses.random import RandomSource
from codetr_cli.losses.roi import roi_losses, sample_regions
from codetr_cli.models.aux_heads.roi import RoiHead, suppress
from codetr_cli.models.aux_heads.rpn import ABSENT, RegionProposals
from codetr_cli.models.pooling import number_regions
from codetr_cli.models.postprocess import Detections
from codetr_cli.ops import nms


def roi_head(**changes):
    torch.manual_seed(0)
    sizes = {
        "dim": 8,
        "num_classes": 3,
        "strides": [4, 8],
        "num_convs": 2,
        "num_fcs": 1,
        "fc_dim": 16,
        "norm_groups": 4,
        "class_agnostic": True,
        "output_size": 3,
        "finest_scale": 56,
        "target_stds": (0.05, 0.05, 0.1, 0.1),
        "nms": "soft",
        "nms_iou": 0.5,
        "max_detections": 10,
    }
    return RoiHead(**{**sizes, **changes}).eval()


def maps():
    torch.manual_seed(1)
    return [torch.randn(2, 8, 32, 32), torch.randn(2, 8, 16, 16)]


PROPOSALS = [
    (torch.tensor([[4.0, 4, 60, 60], [30, 30, 120, 110], [0, 50, 40, 128]]), torch.ones(3)),
    (torch.tensor([[64.0, 0, 128, 64]]), torch.ones(1)),
]


@pytest.mark.parametrize("class_agnostic", [True, False])
def test_deltas_of_a_class(class_agnostic):
    deltas = torch.arange(24.0).view(2, 12)[:, : 4 if class_agnostic else 12]
    own = roi_head(class_agnostic=class_agnostic).deltas_of(deltas, torch.tensor([2, 1]))
    expected = [[0, 1, 2, 3], [12, 13, 14, 15]] if class_agnostic else [[8, 9, 10, 11], [16, 17, 18, 19]]
    assert own.tolist() == expected


def test_agnostic_boxes_are_those_of_every_class():
    """A class-specific head whose boxes say the same for every class detects and learns what the agnostic one does."""
    agnostic, specific = roi_head(nms="hard"), roi_head(nms="hard", class_agnostic=False)
    specific.load_state_dict(
        {
            **agnostic.state_dict(),
            "box_head.weight": agnostic.box_head.weight.repeat(3, 1),
            "box_head.bias": agnostic.box_head.bias.repeat(3),
        }
    )
    sizes = [(128, 128), (128, 128)]
    for ours, theirs in zip(
        agnostic.detect(maps(), PROPOSALS, sizes), specific.detect(maps(), PROPOSALS, sizes), strict=True
    ):
        torch.testing.assert_close(ours.boxes, theirs.boxes)
        assert torch.equal(ours.labels, theirs.labels)
    targets = [
        {"boxes": torch.tensor([[6.0, 6, 58, 62], [32, 28, 118, 112]]), "labels": torch.tensor([2, 0])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    rows = RegionProposals(*(pad_sequence(list(part), batch_first=True) for part in zip(*PROPOSALS, strict=True)))
    rows.scores[1, 1:] = ABSENT
    samples = sample_regions(rows, pad_objects(targets, torch.float32), num_classes=3, samples=8, random=RandomSource())
    regions = samples.cut(samples.num_positives.tolist(), samples.num_regions.tolist())
    assert [len(each.boxes) for each in regions.boxes] == [2 + 1, 1]
    pooled = agnostic.pool(maps(), number_regions([each.boxes for each in regions.boxes]))
    steps = [roi_losses(head, regions, pooled) for head in (agnostic, specific)]
    torch.testing.assert_close(steps[0].box_loss, steps[1].box_loss)
    assert float(steps[0].box_loss.detach()) > 0
    for step in steps:
        step.box_loss.backward()
    specific_grad = specific.box_head.weight.grad.view(3, 4, -1)
    torch.testing.assert_close(agnostic.box_head.weight.grad, specific_grad.sum(0))


def candidates(count):
    generator = torch.Generator().manual_seed(3)
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 60
    side = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 40 + 5
    scores = torch.rand(count, generator=generator, dtype=torch.float64)
    labels = torch.randint(4, (count,), generator=generator)
    return Detections(torch.cat([corner, corner + side], 1), scores, labels)


def test_soft_suppression_label_after_label_finds_the_same(monkeypatch):
    found = suppress(candidates(300), "soft", 0.5, 60)
    monkeypatch.setattr(nms, "ONE_BY_ONE_FROM", 300)
    each = suppress(candidates(300), "soft", 0.5, 60)
    torch.testing.assert_close(each.scores, found.scores)
    torch.testing.assert_close(each.boxes, found.boxes)
    assert torch.equal(each.labels, found.labels)
    assert len(each) == 60
    assert not torch.equal(found.scores, candidates(300).scores.sort(descending=True)[0][:60])


def test_regions_are_pooled_from_the_map_that_suits_their_size():
    head = RoiHead(
        dim=1, num_classes=1, strides=[4, 8], num_convs=0, num_fcs=2, fc_dim=4, norm_groups=1, class_agnostic=False,
        output_size=2, finest_scale=56, target_stds=(0.1,) * 4, nms="hard", nms_iou=0.5, max_detections=5,
    )  # fmt: skip
    maps = [torch.full((1, 1, 64, 64), 1.0), torch.full((1, 1, 32, 32), 2.0)]
    boxes = torch.tensor([[0.0, 0, 50, 50], [0, 0, 120, 120], [0, 0, 250, 250]])
    assert head.pool(maps, number_regions([boxes]))[:, 0, 0, 0].tolist() == [1.0, 2.0, 2.0]


def test_suppression_is_within_each_class_and_drops_scores_of_zero():
    boxes = torch.tensor([[0.0, 0, 9, 9]]).expand(4, 4)
    found = suppress(Detections(boxes, torch.tensor([0.2, 0.9, 0.0, 0.1]), torch.tensor([0, 1, 2, 0])), "hard", 0.5, 10)
    assert found.labels.tolist() == [1, 0]
    assert found.scores.tolist() == pytest.approx([0.9, 0.2])
