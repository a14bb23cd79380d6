from __future__ import annotations

import torch

from codetr_cli.losses.objects import BatchObjects


def test_objects_of_all_images_follow_one_another():
    targets = [
        {"boxes": torch.tensor([[0.0, 0, 4, 8], [2, 2, 6, 4]]), "labels": torch.tensor([1, 0]), "norm_size": (10, 20)},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "norm_size": (10, 10)},
        {"boxes": torch.tensor([[1.0, 1, 3, 5]]), "labels": torch.tensor([2]), "norm_size": (8, 4)},
    ]
    objects = BatchObjects.of(targets, torch.float64)
    assert objects.counts == [2, 0, 1]
    assert objects.starts == [0, 2, 2]
    assert [objects.labels[objects.rows(image)].tolist() for image in range(3)] == [[1, 0], [], [2]]
    assert objects.factors.tolist() == [[20, 10, 20, 10], [10, 10, 10, 10], [4, 8, 4, 8]]
    assert objects.object_factors.tolist() == [[20, 10, 20, 10]] * 2 + [[4, 8, 4, 8]]
    expected = torch.tensor([[0.1, 0.4, 0.2, 0.8], [0.2, 0.3, 0.2, 0.2], [0.5, 0.375, 0.5, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(objects.boxes_cxcywh, expected)
