"""Whether the detections of an image are unstable in the checkpoint itself.

The encoder gives its best tokens to the decoder in the order of their scores. Where scores are nearly equal, rounding
decides, and another order changes detections. So it does when the input changes by less than its precision.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from codetr_cli.export.agreement import compare
from codetr_cli.export.seen import Seen, detect_all
from codetr_cli.export.tolerances import Tolerance
from codetr_cli.inference.detector import Detector
from codetr_cli.models.codetr import CoDETR

TRIES = 6
STABLE_TRIES = 3
"""An image whose detections stay the same in so many tries is stable."""
FACTOR = 2
"""How much more than the checkpoint moves itself the file may differ: it is one try of many."""


def is_near_tie(seen: Seen, reference: Detector, tolerance: Tolerance) -> bool:
    """Whether the checkpoint's own detections change as much with rounding of its input.

    Args:
        seen: an image that differs.
        reference: the checkpoint, as it was seen.
        tolerance: with the size of the rounding.
    """
    differs = seen.agreement
    wrong, score, box = 0, 0.0, 0.0
    for seed in range(TRIES):
        with noisy_input(reference, tolerance.noise, seed):
            prediction = detect_all(reference, seen.group)[seen.row]
        moved = compare(differs.reference, prediction, tolerance, scale=seen.reading.scale)
        wrong = max(wrong, moved.wrong)
        score = max(score, _mean(moved.score_differences, math.inf))  # no detection has stayed
        box = max(box, _mean(moved.box_differences, math.inf))
        if (
            differs.wrong <= FACTOR * wrong
            and _mean(differs.score_differences) <= FACTOR * score
            and _mean(differs.box_differences) <= FACTOR * box
        ):
            return True
        if seed + 1 >= STABLE_TRIES and not wrong:
            return False
    return False


def _mean(values: np.ndarray, empty: float = 0.0) -> float:
    return float(np.abs(values).mean()) if values.size else empty


@contextmanager
def noisy_input(detector: Detector, noise: float, seed: int) -> Iterator[None]:
    """Inside, the normalised pixels are multiplied by 1 plus noise of this standard deviation."""
    model = detector.loaded.model
    assert isinstance(model, CoDETR)
    generator = torch.Generator().manual_seed(seed)

    def add_noise(_: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        pixels = arguments[0]
        factors = 1 + noise * torch.randn(pixels.shape, generator=generator).to(pixels)
        return (pixels * factors, *arguments[1:])

    handle = model.backbone.register_forward_pre_hook(add_noise)
    try:
        yield
    finally:
        handle.remove()
