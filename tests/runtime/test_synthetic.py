from __future__ import annotations

import torch

from codetr_cli.models.build import build_model
from codetr_cli.runtime.synthetic import randomize_weights, synthetic_batch


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


def test_a_new_network_is_stirred_alike_whatever_it_is_built_for(tiny_settings):
    small, whole = (build_model(tiny_settings.model, aux_heads=heads) for heads in (False, True))
    assert not small.box_heads[0].layers[-1].weight.any()
    kept = small.encoder.layers[0].self_attn.value_proj.weight.clone()
    for model in (small, whole):
        randomize_weights(model)
    for name in ("box_heads.0.layers.2.weight", "encoder.layers.0.self_attn.sampling_offsets.weight"):
        numbers = small.get_parameter(name)
        assert numbers.std() > 0.1
        assert torch.equal(numbers, whole.get_parameter(name))
    assert torch.equal(small.encoder.layers[0].self_attn.value_proj.weight, kept)
