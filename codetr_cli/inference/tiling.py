"""Large images in tiles: each tile goes through the network like an image, and so does the whole image.

Tiles are read, resized and detected a few at a time, so that memory does not grow with the image. How their detections
become those of the image is in `tile_merging`. An image that is not larger than one tile is detected as without tiles,
to the last bit.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch

from codetr_cli.config.data_settings import DataConfig
from codetr_cli.config.schema import Settings, TestConfig
from codetr_cli.data.batch import Batch, collate
from codetr_cli.data.sample import Sample
from codetr_cli.data.targets import Target
from codetr_cli.data.transforms import build_transforms, resized_size
from codetr_cli.errors import ConfigError
from codetr_cli.images.image_header import Size
from codetr_cli.images.regions import ArrayRegions, ImageRegions
from codetr_cli.images.tile_grid import Tile, tile_grid
from codetr_cli.inference.cuda_graph import Network
from codetr_cli.inference.options import AUTO_FACTOR, TileOptions
from codetr_cli.inference.pipeline import detect
from codetr_cli.inference.tile_merging import Frame, merge_views
from codetr_cli.inference.tta import without_nms
from codetr_cli.models.postprocess import Detections, PostProcess
from codetr_cli.runtime.memory import free_unused, is_out_of_memory

logger = logging.getLogger(__name__)

MAX_TILES = 100_000
READERS = 4
"""Threads that read and resize tiles."""


@dataclass(frozen=True)
class TiledImage:
    """A large image whose tiles are read when they are detected."""

    regions: ImageRegions

    @property
    def orig_size(self) -> Size:
        """(height, width) of the image as given."""
        return self.regions.size


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """Detects images in tiles, as `tta.Augmentation` does in several sizes.

    Attributes:
        options: how images are cut.
        test: size of the network's input.
        data: mean, std and padding of the input.
        candidates: number of best detections of a view that are merged; None: `max_detections`.
        batch: tiles that the network sees at once.
        min_score: detections of views with a lower score are not merged.
        max_detections: of an image; None: as many as those of the settings for each view.
    """

    options: TileOptions
    test: TestConfig
    data: DataConfig
    candidates: int | None = None
    batch: int = 1
    min_score: float = 0.0
    max_detections: int | None = None

    @property
    def rotates_tiles(self) -> bool:
        """Whether the tiles of upright images are upright."""
        return self.options.size is None and self.test.fixed_size is None

    def tile_size(self, size: Size) -> Size:
        """(height, width) of the tiles of an image of `size`; automatic ones turn with it unless the input is fixed."""
        if self.options.size is not None:
            width, height = self.options.size
            return height, width
        if self.test.fixed_size is not None:
            return self.test.fixed_size
        height, width = sorted(self.test.input_size)
        return (height, width) if size[1] >= size[0] else (width, height)

    def tiles(self, size: Size) -> list[Tile]:
        """The tiles of an image of (height, width); none if it is seen as a whole.

        Raises:
            ConfigError: there are more than `MAX_TILES`.
        """
        tile, overlap = self.tile_size(size), self.options.overlap
        factor = AUTO_FACTOR if self.options.size is None else 1.0
        if all(side <= factor * limit for side, limit in zip(size, tile, strict=True)):
            return []
        steps = [max(1.0, limit * (1 - overlap)) for limit in tile]
        count = math.prod(max(1, math.ceil(side / step)) for side, step in zip(size, steps, strict=True))
        if count > MAX_TILES:
            raise ConfigError(
                f"an image of {size[1]} x {size[0]} pixels has about {count:,} tiles of {tile[1]} x {tile[0]} with "
                f"overlap {overlap:g}, more than {MAX_TILES:,}: use larger tiles or less overlap"
            )
        return list(tile_grid(size, tile, overlap))

    def detect(
        self,
        network: Network,
        postprocess: PostProcess,
        batch: Batch,
        *,
        device: torch.device,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> list[Detections]:
        """Detections of every image of a batch of images as decoded; arguments as for `tta.Augmentation.detect`."""
        found = []
        for image, target in zip(batch.images, batch.targets, strict=True):
            height, width = target["size"]
            pixels = np.ascontiguousarray(image[:, :height, :width].permute(1, 2, 0).numpy())
            found.append(self.detect_image(network, postprocess, ArrayRegions(pixels), device=device))
        return found

    def detect_image(
        self, network: Network, postprocess: PostProcess, regions: ImageRegions, *, device: torch.device
    ) -> Detections:
        """Detections in the pixels of an image, in host memory.

        Args:
            network: on `device`, in the `inference` context.
            postprocess: as built from the settings.
            regions: the image.
            device: where the network runs.

        Raises:
            ConfigError: the image has too many tiles.
        """
        size = regions.size
        tiles = self.tiles(size)
        if not tiles:
            sample = self._sample(regions, None)
            (plain,) = self._detect_batch(network, postprocess, [sample], device)
            return plain
        of_view = without_nms(postprocess, self.candidates)
        views: list[Tile | None] = [*tiles, *([None] if self.options.whole else [])]
        frames = [Frame.of_image(size) if tile is None else Frame.of_tile(tile, size) for tile in views]
        found: list[Detections] = []
        for samples in self._batches(regions, views):
            for item in self._detect_batch(network, of_view, samples, device):
                left, top = frames[len(found)].corners[:2]
                item = item[item.scores >= self.min_score]
                found.append(replace(item, boxes=item.boxes + item.boxes.new_tensor([left, top, left, top])))
        limit = self.max_detections or postprocess.max_detections * len(views)
        return merge_views(found, frames, replace(postprocess, max_detections=limit))

    def _detect_batch(
        self, network: Network, postprocess: PostProcess, samples: list[tuple[np.ndarray, Target]], device: torch.device
    ) -> list[Detections]:
        """The detections of views of one shape; those that the memory cannot hold together are divided."""
        batch = collate(samples)
        batch = batch.pin_memory() if device.type == "cuda" else batch
        try:
            found = detect(network, postprocess, batch.to(device), mean=self.data.mean, std=self.data.std)
            return [item.cpu() for item in found]
        except Exception as error:
            if len(samples) == 1 or not is_out_of_memory(error):
                raise
        del batch
        free_unused(device)
        half = len(samples) // 2
        logger.info("out of memory with %d tiles at once: these are detected in two parts", len(samples))
        return [
            item
            for part in (samples[:half], samples[half:])
            for item in self._detect_batch(network, postprocess, part, device)
        ]

    def _batches(
        self, regions: ImageRegions, views: Sequence[Tile | None]
    ) -> Iterator[list[tuple[np.ndarray, Target]]]:
        """The views at the size of the network, a batch of tiles at a time, and the whole image alone."""
        waiting: deque[Future[tuple[np.ndarray, Target]]] = deque()
        todo = iter(views)
        pool = ThreadPoolExecutor(READERS, thread_name_prefix="tiles")
        try:
            for start in range(0, len(views), self.batch):
                for tile in islice(todo, 2 * self.batch - len(waiting)):
                    waiting.append(pool.submit(self._sample, regions, tile))
                last = views[start : start + self.batch]
                samples = [waiting.popleft().result() for _ in last]
                if last[-1] is None and len(last) > 1:
                    yield samples[:-1]
                    samples = samples[-1:]
                yield samples
        finally:
            pool.shutdown(cancel_futures=True)

    def _sample(self, regions: ImageRegions, tile: Tile | None) -> tuple[np.ndarray, Target]:
        """A tile at the size of the network, or the whole image."""
        transform = build_transforms(self.data, self.test, train=False)
        if tile is None:
            size = regions.size
            height, width = resized_size(size, self.test)
            # Resized by the reader of the image, which need not have all of it; the transform only pads it then.
            sample = transform(Sample.from_image(regions.reduced(height, width)), np.random.default_rng(0))
            sample = replace(sample, scale_factor=(width / size[1], height / size[0]))
        else:
            size = (tile.height, tile.width)
            sample = transform(Sample.from_image(regions.read(*tile)), np.random.default_rng(0))
        target = sample.to_target(image_id=0, orig_size=size, pad_divisor=self.data.pad_divisor)
        return np.require(sample.image, requirements=["C", "W"]), target


def build_tiling(settings: Settings, options: TileOptions, *, batch: int = 1) -> Tiling:
    """Tiles for a network with these settings."""
    return Tiling(
        options=options,
        test=settings.test,
        data=settings.data,
        # A mask for every query of every tile would take gigabytes.
        candidates=None if settings.learns_masks else settings.model.num_queries,
        batch=batch,
        min_score=settings.test.nms_min_score if settings.test.nms == "soft" else 0.0,
    )
