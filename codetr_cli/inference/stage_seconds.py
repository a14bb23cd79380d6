"""What the stages of a stream of images take, added up over its threads."""

from __future__ import annotations

import threading

STAGES = ("read", "prepare", "detect", "finish", "write", "wait")
"""Reading and decoding; resizing; the network with its post-processing; everything after it, of which drawing and
writing; and the time in which the network had no images."""


class StageSeconds:
    """Seconds of work in each stage of `STAGES`, and how many images and batches the network saw."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._lock = threading.Lock()
        self.images = self.batches = 0

    def __getitem__(self, stage: str) -> float:
        return self._seconds[stage]

    def add(self, stage: str, seconds: float) -> None:
        """Adds seconds to a stage; any thread may."""
        with self._lock:
            self._seconds[stage] += seconds

    def add_batch(self, images: int, seconds: float) -> None:
        """Adds a batch that the network saw."""
        self.add("detect", seconds)
        self.images += images
        self.batches += 1
