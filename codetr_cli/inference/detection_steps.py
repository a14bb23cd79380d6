"""The steps of a detection: an image is prepared, the network sees a batch, and what is asked for is kept."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from codetr_cli.data.batch import collate
from codetr_cli.data.sample import Sample
from codetr_cli.data.targets import Target
from codetr_cli.data.transforms import AnyTransform, Keep, build_transforms
from codetr_cli.errors import ArgumentError
from codetr_cli.images.image_header import Size
from codetr_cli.images.regions import ArrayRegions, ImageRegions
from codetr_cli.inference.arguments import worded_for_python
from codetr_cli.inference.batching import BatchSize
from codetr_cli.inference.cuda_graph import with_cuda_graphs
from codetr_cli.inference.exported.network import fixed_batch
from codetr_cli.inference.loading import LoadedModel
from codetr_cli.inference.options import TILES_OR_TTA, DetectOptions, TileOptions
from codetr_cli.inference.pipeline import inference
from codetr_cli.inference.prediction import Prediction
from codetr_cli.inference.rle import encode_masks
from codetr_cli.inference.tile_merging import EXPLAINING_SHARE
from codetr_cli.inference.tiling import TiledImage, Tiling, build_tiling
from codetr_cli.inference.tta import build_augmentation, detect_images
from codetr_cli.models.postprocess import Detections, PostProcess

logger = logging.getLogger(__name__)

GPU_TILES = 4
"""Tiles that a GPU sees at once by default."""


@dataclass(frozen=True)
class PreparedImage:
    """An image at the size of the network, uint8 RGB (h, w, 3), and its target, see `data.targets`."""

    image: NDArray[np.uint8]
    target: Target

    @property
    def orig_size(self) -> Size:
        """(height, width) of the image as given."""
        size: Size = self.target["orig_size"]
        return size


class DetectionSteps:
    """The steps of a detection by one network on one device; streams, servers and exports call them one by one.

    Args:
        loaded: the network with its settings and classes.
        device: where it is.
        precision: as of `Detector`; the network can run in it.
        tta: detect in the views of `test.tta_scales` and `test.tta_flip`.
    """

    def __init__(self, loaded: LoadedModel, device: torch.device, *, precision: str, tta: bool) -> None:
        self.loaded = loaded
        self.device = device
        self.precision = precision
        self.batch_size = BatchSize(device, fixed_batch(loaded.model))
        self._network = with_cuda_graphs(loaded.model, loaded.settings.test, device)
        self.class_names = loaded.class_names
        self.category_ids = loaded.category_ids
        self._augmentation = build_augmentation(loaded.settings) if tta else None
        self._transform: AnyTransform = (
            Keep() if tta else build_transforms(loaded.settings.data, loaded.settings.test, train=False)
        )

    def prepare(
        self, image: NDArray[np.uint8] | ImageRegions, options: DetectOptions | None = None
    ) -> PreparedImage | TiledImage:
        """An image at the size of the network, or one whose tiles are read later; any thread may do it.

        Args:
            image: (H, W, 3) uint8 RGB, or regions of such an image.
            options: `tiles` decides whether it is cut.

        Raises:
            ArgumentError: too many tiles, or tiles with test-time augmentation.
        """
        regions = ArrayRegions(image) if isinstance(image, np.ndarray) else image
        tiles = self.tiles_of(options or DetectOptions())
        if options is not None and tiles is not None:
            with worded_for_python():
                if self._tiling(tiles, options).tiles(regions.size):
                    return TiledImage(regions)
        height, width = regions.size
        pixels = regions.read(0, 0, width, height)
        size = (pixels.shape[0], pixels.shape[1])
        sample = self._transform(Sample.from_image(pixels), np.random.default_rng(0))
        target = sample.to_target(image_id=0, orig_size=size, pad_divisor=self.loaded.settings.data.pad_divisor)
        return PreparedImage(np.require(sample.image, requirements=["C", "W"]), target)

    def shape_of(self, image: PreparedImage | TiledImage) -> Hashable:
        """What images of one batch have in common, so that none is padded because of the others; None: it is alone."""
        return image.target["pad_size"] if isinstance(image, PreparedImage) else None

    def detect(self, images: Sequence[PreparedImage | TiledImage], options: DetectOptions) -> list[Detections]:
        """The detections of a batch, each in the pixels of its original image.

        Args:
            images: one or more; smaller ones are padded to the largest, and those in tiles are batches of their own.
            options: scores and `max_dets` are applied by `to_prediction`.

        Raises:
            ResourceError: the device has not enough memory.
        """
        plain = [image for image in images if isinstance(image, PreparedImage)]
        of_plain = iter(self._detect_plain(plain, options) if plain else [])
        return [
            self._detect_tiles(each, options) if isinstance(each, TiledImage) else next(of_plain) for each in images
        ]

    def _detect_plain(self, images: Sequence[PreparedImage], options: DetectOptions) -> list[Detections]:
        batch = collate([(image.image, image.target) for image in images])
        batch = batch.pin_memory() if self.device.type == "cuda" else batch
        postprocess = self._postprocess(options)
        config = self.loaded.settings.data
        with worded_for_python(), inference(self.loaded.model, self.device, self.precision):
            return detect_images(
                self._network, postprocess, batch, self._augmentation, device=self.device, config=config
            )

    def _detect_tiles(self, image: TiledImage, options: DetectOptions) -> Detections:
        tiles = self.tiles_of(options)
        assert tiles is not None
        tiling = self._tiling(tiles, options)
        postprocess = replace(self._postprocess(options), mask_min_score=tiling.min_score)
        with worded_for_python(), inference(self.loaded.model, self.device, self.precision):
            return tiling.detect_image(self._network, postprocess, image.regions, device=self.device)

    def tiles_of(self, options: DetectOptions) -> TileOptions | None:
        """How large images are cut: as requested, else as an exported file says; None: not at all."""
        if options.tiles is not None or options.whole_images or self._augmentation is not None:
            return options.tiles
        return self.loaded.tiles

    def log_tiles(self, options: DetectOptions) -> None:
        """Says that images are cut into the tiles of an exported file, which nobody has asked for here."""
        tiles = self.tiles_of(options)
        if options.tiles is None and tiles is not None:
            logger.info("large images are cut as %s says: %s (--tiles none: not cut)", self.loaded.path, tiles)

    def _tiling(self, tiles: TileOptions, options: DetectOptions) -> Tiling:
        if self._augmentation is not None:
            raise ArgumentError(TILES_OR_TTA)
        batch = self.batch_size.of(options)
        if options.images_at_once(self.device.type) is None and self.batch_size.fixed is None:
            batch = GPU_TILES
        return replace(
            build_tiling(self.loaded.settings, tiles, batch=batch),
            min_score=EXPLAINING_SHARE * options.lowest_score,
            # Scores of classes apply later, and the best detections may be of a class that needs more.
            max_detections=None if options.class_scores else options.max_dets,
        )

    def to_prediction(self, detections: Detections, size: Size, options: DetectOptions) -> Prediction:
        """What is kept of the detections in an image of this (height, width); any thread may do it."""
        masks = encode_masks(detections, size)
        detections = detections.cpu()
        labels = detections.labels.numpy()
        prediction = Prediction(
            boxes=detections.boxes.float().numpy(),
            scores=detections.scores.float().numpy(),
            labels=labels,
            category_ids=np.array(self.category_ids, np.int64)[labels],
            class_names=[self.class_names[label] for label in labels],
            image_size=size,
            classes=self.class_names,
            masks=masks,
            mask_scores=None if detections.mask_scores is None else detections.mask_scores.float().numpy(),
        )
        lowest = np.array(options.scores_of(self.class_names), np.float32)[labels]
        kept: Prediction = prediction[prediction.scores >= lowest]
        return kept[: options.max_dets]

    def _postprocess(self, options: DetectOptions) -> PostProcess:
        """The settings' post-processing with another NMS, and with more detections if more are requested."""
        postprocess = replace(self.loaded.postprocess, mask_min_score=options.lowest_score)
        if options.max_dets is not None:
            postprocess = replace(postprocess, max_detections=max(options.max_dets, postprocess.max_detections))
        return postprocess if options.nms is None else replace(postprocess, nms=options.nms)
