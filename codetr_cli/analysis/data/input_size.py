"""How large objects are for the network: the factors by which its input resizes images, with and without tiles.

Nothing here imports torch: a look at data must not wait for it. Shape letters: I images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from codetr_cli.config.data_settings import DataConfig
from codetr_cli.config.schema import Settings, TestConfig
from codetr_cli.inference.options import AUTO_FACTOR

INPUT_MULTIPLE = 32
"""Sides of a suggested input are multiples of this many pixels, as those of the published augmentation are."""


@dataclass(frozen=True)
class NetworkLimits:
    """What settings say about sizes and numbers that data must fit.

    Attributes:
        test: size of the input.
        finest_stride: pixels of a cell of the finest map.
        num_queries: detections that the decoder can make in an image.
        max_detections: of them, those that are kept.
        nms_iou: IoU from which an object can suppress another one of its class; None: there is no NMS.
        oversample_threshold: share of images below which classes are repeated in training; None: none is.
        data: size of training images.
    """

    test: TestConfig
    finest_stride: int
    num_queries: int
    max_detections: int
    nms_iou: float | None
    oversample_threshold: float | None
    data: DataConfig

    @classmethod
    def of(cls, settings: Settings) -> NetworkLimits:
        """Those of the settings of a checkpoint or a preset."""
        test = settings.test
        return cls(
            test=test,
            finest_stride=settings.model.finest_stride,
            num_queries=settings.model.num_queries,
            max_detections=test.max_detections,
            nms_iou=None if test.nms == "none" else test.nms_iou,
            oversample_threshold=settings.data.oversample_threshold,
            data=settings.data,
        )

    @property
    def input_text(self) -> str:
        """The size of the input as `bench --size` has it: HEIGHTxWIDTH."""
        height, width = self.test.input_size
        return f"{height}x{width}"

    def enlarged(self, factor: float) -> NetworkLimits:
        """The same with an input that is larger, or smaller, by a factor; sides are multiples of `INPUT_MULTIPLE`."""

        def side(pixels: int) -> int:
            return max(int(pixels * factor / INPUT_MULTIPLE + 0.5), 1) * INPUT_MULTIPLE

        test, data = self.test, self.data
        changed: dict[str, object] = {"short_side": side(test.short_side), "long_side": side(test.long_side)}
        if test.canvas is not None:
            changed["canvas"] = side(test.canvas)
        if test.fixed_size is not None:
            changed["fixed_size"] = (side(test.fixed_size[0]), side(test.fixed_size[1]))
        trained = {
            "short_sides": tuple(dict.fromkeys(map(side, data.short_sides))),
            "long_side": side(data.long_side),
            "canvas": None if data.canvas is None else side(data.canvas),
        }
        return replace(self, test=test.model_copy(update=changed), data=data.model_copy(update=trained))

    def settings_words(self) -> str:
        """The options of a command that choose the size of the input, in training, too."""
        test, data = self.test, self.data
        values: dict[str, object] = {}
        if test.canvas is not None:
            values["test.canvas"] = test.canvas
        else:
            values |= {"test.short_side": test.short_side, "test.long_side": test.long_side}
            if test.fixed_size is not None:
                values["test.fixed_size"] = _plain_list(test.fixed_size)
        if data.augmentation == "lsj":
            values["data.canvas"] = data.canvas
        elif data.augmentation == "detr":
            values |= {"data.short_sides": _plain_list(data.short_sides), "data.long_side": data.long_side}
        return " ".join(f"--set {key}={value}" for key, value in values.items())


def _plain_list(values: Sequence[int]) -> str:
    """A list as a word of a command line."""
    return f"[{','.join(map(str, values))}]"


def input_scales(sizes: NDArray[np.int64], test: TestConfig) -> NDArray[np.float64]:
    """The factors by which images become the network's input, before sides are rounded to whole pixels.

    Args:
        sizes: (I, 2) int64 (height, width) in pixels.
        test: size of the input.

    Returns:
        (I,) as in `data.transforms.resized_size`; NaN for images without pixels.
    """
    if test.canvas is not None:
        return _fitting(sizes, test.canvas, test.canvas)
    scales = _fitting(sizes, test.short_side, test.long_side)
    if test.fixed_size is None:
        return scales
    with np.errstate(divide="ignore"):
        frame = (np.array(test.fixed_size) / sizes).min(axis=1, initial=np.inf)
    return np.minimum(scales, frame)


def tiled_scales(sizes: NDArray[np.int64], test: TestConfig) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The largest factors at which images are seen with `--tiles auto`, and which images that cuts.

    The rule of `inference.tiling.Tiling` with tiles of automatic size. The whole image is seen, too.

    Returns:
        (I,) factors, and (I,) bool.
    """
    tiles = np.array(test.fixed_size or sorted(test.input_size))
    limits = np.broadcast_to(tiles, sizes.shape)
    if test.fixed_size is None:  # tiles turn with the image
        limits = np.where((sizes[:, 1] >= sizes[:, 0])[:, None], tiles, tiles[::-1])
    is_cut = np.asarray((sizes > AUTO_FACTOR * limits).any(axis=1))
    whole, tile = input_scales(sizes, test), input_scales(np.minimum(sizes, limits), test)
    return np.where(is_cut, np.fmax(whole, tile), whole), is_cut


def _fitting(sizes: NDArray[np.int64], one: int, other: int) -> NDArray[np.float64]:
    """Factors within two unordered limits of the sides."""
    short, long = sizes.min(axis=1, initial=np.iinfo(np.int64).max), sizes.max(axis=1, initial=0)
    with np.errstate(divide="ignore"):
        factors = np.minimum(max(one, other) / long, min(one, other) / short)
    scales: NDArray[np.float64] = np.where(short > 0, factors, np.nan)
    return scales
