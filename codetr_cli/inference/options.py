"""How images are detected: what is kept of the detections, and how the work is divided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from codetr_cli.errors import ConfigError, nearest

Nms = Literal["none", "hard", "soft"]


@dataclass(frozen=True, kw_only=True)
class DetectOptions:
    """How images are detected.

    Attributes:
        score: minimum score, in [0, 1].
        class_scores: minimum scores of some classes, by name, instead of `score`.
        max_dets: most detections per image; None: as in the settings.
        nms: another NMS than the settings'; the auxiliary heads keep their own.
        batch: images that the network sees at once; None: chosen for the device.
        exact: each image alone, so that its detections do not depend on the others; overrides `batch`.
        workers: threads that read images, and as many that finish results; None: chosen for the machine.
    """

    score: float = 0.3
    class_scores: Mapping[str, float] = field(default_factory=dict)
    max_dets: int | None = None
    nms: Nms | None = None
    batch: int | None = None
    exact: bool = False
    workers: int | None = None

    @property
    def lowest_score(self) -> float:
        """The lowest score that a detection of any class needs."""
        return min(self.score, *self.class_scores.values()) if self.class_scores else self.score

    def scores_of(self, class_names: Sequence[str]) -> list[float]:
        """The minimum score of each class."""
        return [self.class_scores.get(name, self.score) for name in class_names]

    def check_classes(self, class_names: Sequence[str]) -> None:
        """Ensures that all classes with a score of their own exist.

        Raises:
            ConfigError: one does not; names the nearest.
        """
        for name in self.class_scores:
            if name not in class_names:
                raise ConfigError(f"--score {name}=...: there is no class {name!r}; {nearest(name, list(class_names))}")
