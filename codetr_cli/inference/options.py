"""How images are detected: what is kept of the detections, and how the work is divided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Nms = Literal["none", "hard", "soft"]


@dataclass(frozen=True, kw_only=True)
class DetectOptions:
    """How images are detected.

    Attributes:
        score: minimum score, in [0, 1].
        max_dets: most detections per image; None: as in the settings.
        nms: another NMS than the settings'; the auxiliary heads keep their own.
        batch: images that the network sees at once; None: chosen for the device.
        exact: each image alone, so that its detections do not depend on the others; overrides `batch`.
        workers: threads that read images, and as many that finish results; None: chosen for the machine.
    """

    score: float = 0.3
    max_dets: int | None = None
    nms: Nms | None = None
    batch: int | None = None
    exact: bool = False
    workers: int | None = None
