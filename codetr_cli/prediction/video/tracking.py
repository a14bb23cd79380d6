"""Ids of objects through a video: ByteTrack (arXiv 2110.06864), by the package edgefirst-tracker.

Each class has a tracker of its own, so that an object never takes the id of one of another class. Ids are numbers from
1 in the order of appearance. They depend on the detections alone, as result files have them: a stopped command
continues with the detections of its files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from codetr_cli.errors import ResourceError

START_SCORE = 0.5
"""Detections with a higher score start tracks; weaker ones continue them."""
MIN_IOU = 0.2
MEMORY_S = 1.0
"""An object that is hidden for longer gets another id."""
MEMORY_FRAMES = 5
"""At least so many frames, with a large stride or a slow video."""
UPDATE = 0.25


def import_tracker() -> Any:
    """The class ByteTrack.

    Raises:
        ResourceError: its package is not installed.
    """
    try:
        from edgefirst.tracker import ByteTrack
    except ImportError as error:
        raise ResourceError(
            f'--track needs the package edgefirst-tracker ({error}): pip install "codetr-cli[track]" (or pip install '
            "edgefirst-tracker)"
        ) from error
    return ByteTrack


class Tracker:
    """Gives ids to the detections of frames, which come in order.

    Args:
        interval: seconds between two frames, on average.

    Attributes:
        count: of the ids so far.
    """

    def __init__(self, interval: Fraction) -> None:
        self._memory_ns = round(max(Fraction(MEMORY_S), MEMORY_FRAMES * interval) * 1_000_000_000)
        self._make = import_tracker()
        self._trackers: dict[int, Any] = {}
        self._ids: dict[str, int] = {}
        self._last_ns: dict[str, int] = {}
        self._first: Fraction | None = None
        self.count = 0

    def update(self, detections: Iterable[Mapping[str, Any]], time: Fraction) -> list[int | None]:
        """The ids of the detections of a frame; None for weak ones that continue no track.

        Args:
            detections: with `bbox` (x, y, width, height) in pixels, `score` and `category_id`.
            time: of the frame in seconds; it ascends.
        """
        rows = list(detections)
        self._first = time if self._first is None else self._first
        at = max(0, round((time - self._first) * 1_000_000_000))
        of_class: dict[int, list[int]] = {category: [] for category in self._trackers}
        for row, detection in enumerate(rows):
            of_class.setdefault(detection["category_id"], []).append(row)
        keys: list[str | None] = [None] * len(rows)
        for category in sorted(of_class):
            chosen = of_class[category]
            found = self._tracker(category).update(*_arrays([rows[row] for row in chosen]), at)
            for row, track in zip(chosen, found, strict=True):
                keys[row] = None if track is None else track.uuid
        ids = [None if key is None else self._number(key, at) for key in keys]
        self._forget(at)
        return ids

    def _tracker(self, category: int) -> Any:
        if category not in self._trackers:
            self._trackers[category] = self._make(
                high_conf=START_SCORE, iou=MIN_IOU, update=UPDATE, lifespan_ns=self._memory_ns
            )
        return self._trackers[category]

    def _number(self, key: str, at: int) -> int:
        self._last_ns[key] = at
        if key not in self._ids:
            self.count += 1
            self._ids[key] = self.count
        return self._ids[key]

    def _forget(self, at: int) -> None:
        """Drops the ids of tracks that have ended: a stream of months would collect millions."""
        if len(self._ids) > 10_000:
            ended = [key for key, last in self._last_ns.items() if at - last > 2 * self._memory_ns]
            for key in ended:
                del self._ids[key], self._last_ns[key]


def _arrays(rows: list[Mapping[str, Any]]) -> tuple[Any, Any, Any]:
    boxes = np.array([row["bbox"] for row in rows], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    scores = np.array([row["score"] for row in rows], np.float32)
    return boxes, scores, np.zeros(len(rows), np.uintp)
