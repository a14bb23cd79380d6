"""How images are detected: what is kept of the detections, in which parts, and how the work is divided."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Literal

from codetr_cli.errors import ConfigError, nearest, shown

Nms = Literal["none", "hard", "soft"]

TILES_OR_TTA = "tiles and test-time augmentation both show an image several times and do not work together: choose one"
NO_TILES = "none"
"""In the place of tiles: every image is seen as a whole, whatever an exported file says."""
MIN_TILE = 32
"""Pixels of a tile's side, at least."""
MAX_OVERLAP = 0.9
AUTO_FACTOR = 1.25
"""With tiles of automatic size, an image whose sides are up to this many times the tile's is not cut."""
_SIZE = re.compile(r"([0-9]{1,9})(?:x([0-9]{1,9}))?")


@dataclass(frozen=True, kw_only=True)
class TileOptions:
    """How a large image is cut into tiles.

    Attributes:
        size: (width, height) of a tile in pixels; None: what the network sees at about its own scale.
        overlap: share of a tile that the next one repeats.
        whole: whether the whole image is one more view, for objects larger than a tile.
    """

    size: tuple[int, int] | None = None
    overlap: float = 0.2
    whole: bool = True

    def __post_init__(self) -> None:
        if self.size is not None:
            is_pair = isinstance(self.size, tuple) and len(self.size) == 2
            if not is_pair or not all(isinstance(side, int) and not isinstance(side, bool) for side in self.size):
                raise ConfigError(f"tiles of size {shown(self.size)}: it is (width, height) in whole pixels, or None")
            if min(self.size) < MIN_TILE:
                raise ConfigError(f"tiles of {'x'.join(map(str, self.size))} pixels: a side has at least {MIN_TILE}")
        if isinstance(self.overlap, bool) or not isinstance(self.overlap, Real) or not 0 <= self.overlap <= MAX_OVERLAP:
            raise ConfigError(f"tiles with an overlap of {shown(self.overlap)}: it is from 0 to {MAX_OVERLAP}")

    @classmethod
    def parse(cls, text: str, overlap: float = 0.2) -> TileOptions:
        """Tiles of a size as in `1024x768`, `1024` (a square) or `auto`.

        Raises:
            ConfigError: it is something else, or a size or overlap that is not allowed.
        """
        if text == "auto":
            return cls(overlap=overlap)
        found = _SIZE.fullmatch(text)
        if found is None:
            raise ConfigError(f"tiles {shown(text)}: give width and height in pixels as in 1024x1024, auto, or none")
        return cls(size=(int(found[1]), int(found[2] or found[1])), overlap=overlap)

    def __str__(self) -> str:
        size = "automatic size" if self.size is None else f"{self.size[0]}x{self.size[1]}"
        return f"tiles of {size}, overlap {self.overlap:g}" + (", and the whole image" if self.whole else "")


@dataclass(frozen=True, kw_only=True)
class DetectOptions:
    """How images are detected.

    Attributes:
        score: minimum score, in [0, 1].
        class_scores: minimum scores of some classes, by name, instead of `score`.
        max_dets: most detections per image; None: as in the settings, for each tile of an image in tiles.
        nms: another NMS than the settings'; the auxiliary heads keep their own.
        batch: images, or tiles, that the network sees at once; None: chosen for the device.
        exact: each image alone, so that its detections do not depend on the others; overrides `batch`.
        workers: threads that read images, and as many that finish results; None: chosen for the machine.
        tiles: how large images are cut; None: as an exported file says, or every image is seen as a whole.
        whole_images: images are seen as a whole, whatever an exported file says.
    """

    score: float = 0.3
    class_scores: Mapping[str, float] = field(default_factory=dict)
    max_dets: int | None = None
    nms: Nms | None = None
    batch: int | None = None
    exact: bool = False
    workers: int | None = None
    tiles: TileOptions | None = None
    whole_images: bool = False

    def images_at_once(self, device_type: str) -> int | None:
        """Images that the network sees at once, as far as results depend on it; None: by the memory of the device."""
        if self.exact:
            return 1
        return 1 if self.batch is None and device_type != "cuda" else self.batch

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
