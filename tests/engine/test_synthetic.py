from __future__ import annotations

import torch

from codetr_cli.engine.synthetic import synthetic_batch


def test_synthetic_images_fill_the_size_and_hold_usable_objects():
    batch = synthetic_batch((64, 96), 2, objects=5, num_classes=3)
    assert batch.images.shape == (2, 3, 64, 96)
    assert not batch.padding_mask.any()
    for target in batch.targets:
        boxes = target["boxes"]
        assert boxes.shape == (5, 4)
        assert (boxes[:, 2:] - boxes[:, :2] >= 8).all()
        assert (boxes[:, 2] <= 96).all()
        assert (boxes[:, 3] <= 64).all()
        assert set(target["labels"].tolist()) <= {0, 1, 2}
        assert target["norm_size"] == (64, 96)
    assert torch.equal(batch.images, synthetic_batch((64, 96), 2, objects=0).images)
