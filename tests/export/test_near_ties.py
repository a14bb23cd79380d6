"""Images whose detections are unstable in the checkpoint are recognised, others are not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from codetr_cli.export import near_ties
from codetr_cli.export.agreement import compare
from codetr_cli.export.near_ties import is_near_tie, noisy_input
from codetr_cli.export.seen import Reading, Seen, detect_all, prepare
from codetr_cli.export.tolerances import TOLERANCES
from codetr_cli.export.verify_images import VerifyImage
from codetr_cli.inference.detector import Detector
from codetr_cli.inference.loading import LoadedModel
from tests.export.networks import load_random

FP32 = TOLERANCES["fp32"]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_random()


def seen_shifted(detector: Detector, shift: float) -> Seen:
    """An image whose boxes are shifted in the file."""
    image = VerifyImage("noise", np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8))
    prepared = prepare(detector, image)
    (ours,) = detect_all(detector, [prepared])
    agreement = compare(ours, replace(ours, boxes=ours.boxes + np.float32(shift)), FP32)
    reading = Reading(image, prepared, prepared)
    return Seen(reading=reading, shape="landscape", batch=1, row=0, group=[prepared], agreement=agreement)


def test_a_stable_image_has_no_near_ties(loaded, monkeypatch):
    detector = Detector(loaded, device="cpu")
    runs: list[Any] = []
    monkeypatch.setattr(near_ties, "detect_all", lambda *words: runs.append(words) or detect_all(*words))
    assert not is_near_tie(seen_shifted(detector, 1), detector, FP32)
    assert len(runs) == near_ties.STABLE_TRIES


def test_an_image_that_moves_as_much_with_noise(loaded):
    """Noise of a tenth stands for a network that is unstable."""
    detector = Detector(loaded, device="cpu")
    assert is_near_tie(seen_shifted(detector, 0.6), detector, replace(FP32, noise=1.0))


def test_noise_ends_with_its_block(loaded):
    detector = Detector(loaded, device="cpu")
    image = prepare(detector, VerifyImage("grey", np.full((96, 128, 3), 40, np.uint8)))
    before = detect_all(detector, [image])[0].scores
    with noisy_input(detector, 0.1, 0):
        assert not np.array_equal(detect_all(detector, [image])[0].scores, before)
    assert np.array_equal(detect_all(detector, [image])[0].scores, before)
    assert torch.is_tensor(next(loaded.model.parameters()))
