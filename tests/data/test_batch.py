from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch

from codetr_cli.data.batch import collate, normalize

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


def make_sample(height: int, width: int, pad_size: tuple[int, int] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
    image = np.random.default_rng(height).integers(1, 256, (height, width, 3), dtype=np.uint8)
    target = {"boxes": torch.rand(2, 4), "size": (height, width), "pad_size": pad_size or (height, width)}
    return image, target


def test_collate_places_images_at_the_top_left_and_masks_the_rest() -> None:
    samples = [make_sample(5, 9), make_sample(8, 4)]
    batch = collate(samples)
    assert batch.images.shape == (2, 3, 8, 9)
    assert batch.images.dtype == torch.uint8
    for (image, _), padded, mask in zip(samples, batch.images, batch.padding_mask, strict=True):
        height, width = image.shape[:2]
        np.testing.assert_array_equal(padded[:, :height, :width].permute(1, 2, 0).numpy(), image)
        assert not mask[:height, :width].any()
        assert int(mask.sum()) == 8 * 9 - height * width
        assert not padded[:, mask].any()


def test_collate_follows_the_larger_pad_size() -> None:
    batch = collate([make_sample(5, 9, (32, 32))])
    assert batch.images.shape == (1, 3, 32, 32)
    assert int((~batch.padding_mask).sum()) == 5 * 9


def test_normalize_equals_opencv_for_every_pixel_value() -> None:
    pixels = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2)
    mean, std = np.float64(np.float32(MEAN)).reshape(1, -1), np.float64(np.float32(STD)).reshape(1, -1)
    theirs = cv2.multiply(cv2.subtract(pixels.astype(np.float32), mean), 1 / std)
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    ours = normalize(images, torch.zeros(1, 256, 1, dtype=torch.bool), MEAN, STD)
    np.testing.assert_array_equal(ours[0].permute(1, 2, 0).numpy(), theirs)


def test_normalize_leaves_padding_zero_and_its_input_alone() -> None:
    batch = collate([make_sample(5, 9), make_sample(8, 4)])
    before = batch.images.clone()
    values = normalize(batch.images, batch.padding_mask, MEAN, STD)
    assert values.dtype == torch.float32
    assert not values[batch.padding_mask[:, None].expand_as(values)].any()
    assert torch.equal(batch.images, before)
    as_float = normalize(before.float(), batch.padding_mask, MEAN, STD)
    assert torch.equal(values, as_float)


def test_batch_moves_all_tensors_and_keeps_the_rest() -> None:
    batch = collate([make_sample(4, 4)]).to("meta")
    assert batch.images.device.type == batch.padding_mask.device.type == batch.targets[0]["boxes"].device.type == "meta"
    assert batch.targets[0]["size"] == (4, 4)
    assert len(batch) == 1
