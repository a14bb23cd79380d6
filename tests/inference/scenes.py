"""Scenes of boxes, and oracles that detect exactly what a view shows of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from codetr_cli.images.tile_grid import tile_grid
from codetr_cli.inference.tile_merging import Frame, merge_views
from codetr_cli.models.postprocess import Detections
from tests.postprocessing import post_process

MASK_CELLS = 16
WHOLE = 0xFFFFFF
"""The colour of the whole image."""


@dataclass(frozen=True, eq=False)
class Scene:
    """Objects in an image that has no pixels of its own; it serves as `images.regions.ImageRegions`.

    A tile has one colour, which says where it is: 12 bits each for left and top.
    """

    size: tuple[int, int]
    boxes: np.ndarray
    labels: np.ndarray

    def read(self, left: int, top: int, width: int, height: int) -> np.ndarray:
        return np.full((height, width, 3), _colour(left << 12 | top), np.uint8)

    def reduced(self, height: int, width: int) -> np.ndarray:
        return np.full((height, width, 3), _colour(WHOLE), np.uint8)

    def seen(
        self,
        corners: tuple[int, int, int, int],
        *,
        smallest: float = 1.0,
        rng: np.random.Generator | None = None,
        jitter: float = 0.0,
        with_masks: bool = False,
    ) -> Detections:
        """What a view shows of the objects, in pixels of the view.

        Args:
            corners: left, top, right and bottom of the view.
            smallest: parts with a shorter side are not seen.
            rng: of the scores, which are from 0.4 to 1; None: 0.9.
            jitter: of the sides of a box that are inside of the view, in pixels.
            with_masks: each object fills its box.
        """
        frame = np.array(corners, np.float64)
        low, high = np.maximum(self.boxes[:, :2], frame[:2]), np.minimum(self.boxes[:, 2:], frame[2:])
        rows = np.flatnonzero(((high - low) >= smallest).all(1))
        boxes = np.concatenate([low, high], 1)[rows]
        if rng is not None and jitter:
            moved = np.clip(
                boxes + rng.uniform(-jitter, jitter, boxes.shape), np.tile(frame[:2], 2), np.tile(frame[2:], 2)
            )
            boxes = np.where(boxes == frame, boxes, moved)
        scores = np.full(len(rows), 0.9) if rng is None else rng.uniform(0.4, 1, len(rows))
        return Detections(
            torch.from_numpy(boxes - np.tile(frame[:2], 2)),
            torch.from_numpy(scores),
            torch.from_numpy(self.labels[rows].astype(np.int64)),
            # More than certain: at the corner of a box a quarter of it is above the threshold, too.
            torch.full((len(rows), MASK_CELLS, MASK_CELLS), 4.0) if with_masks else None,
        )


def coded_picture(size: tuple[int, int]) -> np.ndarray:
    """An image of (height, width) whose pixels say where they are, as the colour of a tile does."""
    y, x = np.mgrid[: size[0], : size[1]]
    return np.stack(_colour(x << 12 | y), -1).astype(np.uint8)


def scene(size: tuple[int, int], *objects: tuple[float, ...]) -> Scene:
    """A scene of objects (x1, y1, x2, y2[, label]) in an image of (height, width)."""
    boxes = np.array([each[:4] for each in objects], np.float64).reshape(-1, 4)
    return Scene(size, boxes, np.array([each[4] if len(each) > 4 else 0 for each in objects], np.int64))


def random_scene(rng: np.random.Generator) -> Scene:
    """Objects of all sizes, also nested and overlapping, but no two of a class that could be one (IoU over 0.4)."""
    height, width = (int(rng.integers(60, 700)) for _ in range(2))
    boxes, labels = np.zeros((0, 4)), np.zeros(0, np.int64)
    for _ in range(int(rng.integers(30))):
        low, high = ((3, 25), (5, 60), (30, 500))[rng.integers(3)]
        w, h = np.minimum(rng.integers(low, high, 2), (width, height))
        x, y = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
        box, label = np.array([x, y, x + w, y + h], np.float64), int(rng.integers(3))
        own = boxes[labels == label]
        sides = np.minimum(own[:, 2:], box[2:]) - np.maximum(own[:, :2], box[:2])
        common = np.maximum(sides, 0).prod(1)
        if (common > 0.4 * ((own[:, 2:] - own[:, :2]).prod(1) + w * h - common)).any():
            continue
        boxes, labels = np.concatenate([boxes, box[None]]), np.append(labels, label)
    return Scene((height, width), boxes, labels)


def view_detections(
    of: Scene,
    tile: tuple[int, int],
    overlap: float,
    *,
    whole: float | None = 1.0,
    rng: np.random.Generator | None = None,
    jitter: float = 0.0,
    with_masks: bool = False,
) -> tuple[list[Detections], list[Frame]]:
    """The detections of each view in pixels of the image, and what the views show; arguments as for `merged`."""
    frames = [Frame.of_tile(each, of.size) for each in tile_grid(of.size, tile, overlap)]
    smallest = [1.0] * len(frames)
    if whole is not None:
        frames, smallest = [*frames, Frame.of_image(of.size)], [*smallest, whole]
    found = []
    for frame, side in zip(frames, smallest, strict=True):
        seen = of.seen(frame.corners, smallest=side, rng=rng, jitter=jitter, with_masks=with_masks)
        boxes = seen.boxes + torch.tensor(frame.corners[:2] * 2, dtype=torch.float64)
        found.append(Detections(boxes, seen.scores, seen.labels, seen.masks))
    return found, frames


def merged(
    of: Scene,
    tile: tuple[int, int],
    overlap: float = 0.2,
    *,
    whole: float | None = 1.0,
    rng: np.random.Generator | None = None,
    jitter: float = 0.0,
    with_masks: bool = False,
    **options: object,
) -> Detections:
    """The merged detections of the tiles of a scene.

    Args:
        of: the scene.
        tile: (height, width).
        overlap: of the tiles.
        whole: shortest side that the view of the whole image shows; None: there is no such view.
        rng: as for `Scene.seen`.
        jitter: as for `Scene.seen`.
        with_masks: as for `Scene.seen`.
        options: of the post-processing.
    """
    found, frames = view_detections(of, tile, overlap, whole=whole, rng=rng, jitter=jitter, with_masks=with_masks)
    return merge_views(found, frames, post_process(**{"max_detections": 1000, **options}))


class SceneNetwork(nn.Module):
    """Detects what a tile shows of a scene: the first pixel of its input says which tile it is.

    An input that is as large as the scene is the whole image. Tiles must be enlarged, so that the pixel is exact. The
    mean of the input must be 0 and its standard deviation 1.
    """

    def __init__(self, of: Scene, *, whole: float = 1.0) -> None:
        super().__init__()
        self.of, self.whole = of, whole
        self.batches: list[tuple[int, ...]] = []

    def detect(self, images, padding_mask, metas, postprocess):
        self.batches.append(tuple(images.shape))
        return [self._one(image, meta) for image, meta in zip(images, metas, strict=True)]

    def _one(self, image, meta):
        red, green, blue = (int(value) for value in image[:, 0, 0])
        code = red << 16 | green << 8 | blue
        height, width = meta["orig_size"]
        is_whole = (height, width) == self.of.size
        left, top = (0, 0) if is_whole else (code >> 12, code & 0xFFF)
        return self.of.seen((left, top, left + width, top + height), smallest=self.whole if is_whole else 1.0)


def _colour(code: int | np.ndarray) -> tuple[int | np.ndarray, ...]:
    return code >> 16, code >> 8 & 0xFF, code & 0xFF
