"""Overlaps: equal to those of all pairs, also in small parts and when there are too many pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from codetr_cli.analysis.data import crowding
from codetr_cli.annotations.objects import Objects
from tests.analysis.data.fakes import annotations_of


def objects() -> Objects:
    random = np.random.default_rng(0)
    table = [
        (image, int(random.integers(3)), *random.integers(0, 60, 2).tolist(), *random.integers(1, 50, 2).tolist())
        for image, count in enumerate((0, 1, 2, 40, 0, 17, 3))
        for _ in range(count)
    ]
    return annotations_of(table, [(120, 120)] * 7).usable_objects(np.arange(7), with_crowd=False)


@pytest.mark.parametrize("chunk", [1, 7, 10_000])
def test_overlaps_are_those_of_all_pairs(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowding, "CHUNK_PAIRS", chunk)
    found = objects()
    largest, in_class = crowding.largest_overlaps(found)
    for start, end in zip(found.offsets[:-1].tolist(), found.offsets[1:].tolist(), strict=True):
        boxes = torch.from_numpy(found.boxes[start:end])
        ious = box_iou(boxes, boxes).fill_diagonal_(0).numpy()
        alike = found.labels[start:end, None] == found.labels[None, start:end]
        if end > start:
            np.testing.assert_allclose(largest[start:end], ious.max(axis=1), atol=1e-6)
            np.testing.assert_allclose(in_class[start:end], (ious * alike).max(axis=1), atol=1e-6)


def test_of_too_many_pairs_whole_images_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    everything, _ = crowding.largest_overlaps(objects())
    monkeypatch.setattr(crowding, "MAX_PAIRS", 200)
    largest, in_class = crowding.largest_overlaps(objects())
    known = np.isfinite(largest)
    assert 0 < known.sum() < len(known)
    assert (np.isfinite(in_class) == known).all()
    np.testing.assert_array_equal(largest[known], everything[known])
    found = objects()
    for start, end in zip(found.offsets[:-1].tolist(), found.offsets[1:].tolist(), strict=True):
        assert len(set(known[start:end].tolist())) <= 1
