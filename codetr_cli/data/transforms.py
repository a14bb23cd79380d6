"""Resizing and augmentation of an image with its boxes and masks, bit for bit equal to the published pipelines.

Every random transform has two parts: `make_params` samples its parameters from a generator, and `apply` is
deterministic, so that recorded parameters reproduce recorded pixels. Behaviour: Sense-X/Co-DETR,
projects/configs/_base_/datasets with mmdet's RandomFlip, AutoAugment, Resize, RandomCrop, FilterAnnotations and Pad.
Images are RGB here; no operation mixes channels.
Shape letters: h w one image's height and width, G its boxes. Sizes are (height, width) in pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import cv2
import numpy as np

from codetr_cli.config.data_settings import DataConfig
from codetr_cli.config.schema import TestConfig
from codetr_cli.data.sample import Sample
from codetr_cli.images.image_header import Size

GREY = 114
"""Padding of a canvas, in every channel."""

Params = TypeVar("Params")


class Transform(ABC, Generic[Params]):
    """A random transform: samples its parameters and then applies them."""

    @abstractmethod
    def make_params(self, rng: np.random.Generator, size: Size) -> Params:
        """Samples the parameters for an image of `size`."""

    @abstractmethod
    def apply(self, sample: Sample, params: Params) -> Sample:
        """Applies the parameters; never changes the arrays of `sample`."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Samples the parameters and applies them."""
        return self.apply(sample, self.make_params(rng, sample.size))


# ------------------------------------------------------------------------------------------------------------ the steps


class Keep(Transform[None]):
    """Keeps the decoded image: test-time augmentation resizes it later."""

    def make_params(self, rng: np.random.Generator, size: Size) -> None:
        """Uses no random number."""

    def apply(self, sample: Sample, params: None) -> Sample:
        """The sample itself."""
        return sample


@dataclass(frozen=True)
class FlipParams:
    """Whether to mirror the image left to right."""

    flip: bool


@dataclass(frozen=True, kw_only=True)
class Flip(Transform[FlipParams]):
    """Mirrors the image left to right with some probability."""

    probability: float

    def make_params(self, rng: np.random.Generator, size: Size) -> FlipParams:
        """Uses one uniform number."""
        return FlipParams(flip=bool(rng.random() < self.probability))

    def apply(self, sample: Sample, params: FlipParams) -> Sample:
        """Mirrors image, boxes and masks, or returns the sample unchanged."""
        if not params.flip:
            return sample
        width = sample.size[1]
        boxes = sample.boxes.copy()
        boxes[:, 0] = width - sample.boxes[:, 2]
        boxes[:, 2] = width - sample.boxes[:, 0]
        masks = None if sample.masks is None else sample.masks.flipped()
        return replace(sample, image=cv2.flip(sample.image, 1), boxes=boxes, masks=masks)


@dataclass(frozen=True)
class ResizeParams:
    """Index of the short side."""

    index: int


@dataclass(frozen=True, kw_only=True)
class ResizeShortLong(Transform[ResizeParams]):
    """Resizes, keeping the ratio, so that neither the short side nor the long side exceeds its limit.

    Args:
        short_sides: limits of the short side, one of which is sampled.
        long_side: limit of the long side.
    """

    short_sides: tuple[int, ...]
    long_side: int

    def make_params(self, rng: np.random.Generator, size: Size) -> ResizeParams:
        """Uses one integer."""
        return ResizeParams(index=int(rng.integers(len(self.short_sides))))

    def apply(self, sample: Sample, params: ResizeParams) -> Sample:
        """Resizes image, boxes and masks."""
        return _resized(sample, self.new_size(sample.size, params))

    def new_size(self, size: Size, params: ResizeParams) -> Size:
        """The new size of an image of `size`."""
        return _kept_ratio(size, (self.short_sides[params.index], self.long_side))


@dataclass(frozen=True, kw_only=True)
class ResizeToCanvas(Transform[None]):
    """Resizes, keeping the ratio, until the long side is that of a square canvas, and pads to it with grey."""

    canvas: int

    def make_params(self, rng: np.random.Generator, size: Size) -> None:
        """Uses no random number."""

    def apply(self, sample: Sample, params: None) -> Sample:
        """Resizes and pads image, boxes and masks."""
        return _padded(_resized(sample, _kept_ratio(sample.size, (self.canvas, self.canvas))), self.canvas)


@dataclass(frozen=True, kw_only=True)
class ResizeToFit(Transform[None]):
    """Resizes, keeping the ratio, within limits of both sides and of the input, and counts as padded to the input.

    Args:
        short_side: limit of the short side.
        long_side: limit of the long side.
        frame: (height, width) of the input. Only an image that would not fit becomes smaller than without it.
    """

    short_side: int
    long_side: int
    frame: Size

    def make_params(self, rng: np.random.Generator, size: Size) -> None:
        """Uses no random number."""

    def apply(self, sample: Sample, params: None) -> Sample:
        """Resizes image, boxes and masks."""
        return replace(_resized(sample, self.new_size(sample.size)), pad_size=self.frame)

    def new_size(self, size: Size) -> Size:
        """The new size of an image of `size`, without the padding."""
        new = _kept_ratio(size, (self.short_side, self.long_side))
        if new[0] <= self.frame[0] and new[1] <= self.frame[1]:
            return new
        factor = min(self.frame[0] / size[0], self.frame[1] / size[1])
        height, width = (
            min(most, max(1, int(side * factor + 0.5))) for side, most in zip(size, self.frame, strict=True)
        )
        return height, width


def _kept_ratio(size: Size, limits: tuple[int, int]) -> Size:
    """The largest size of this shape within the limits.

    Parity: the two limits are unordered, as in mmcv's rescale_size.
    """
    factor = min(max(limits) / max(size), min(limits) / min(size))
    height, width = (max(1, int(side * factor + 0.5)) for side in size)
    return height, width


def _resized(sample: Sample, size: Size) -> Sample:
    """Resizes like OpenCV's bilinear on uint8 (no antialiasing), masks like its nearest; scales and clips the boxes."""
    old_height, old_width = sample.size
    height, width = size
    scale_factor = (width / old_width, height / old_height)
    # Parity: the factor is rounded to float32 before it multiplies the boxes.
    boxes = sample.boxes * np.array(scale_factor * 2, np.float32)
    return replace(
        sample,
        image=cv2.resize(sample.image, (width, height), interpolation=cv2.INTER_LINEAR),
        boxes=_clip(boxes, size),
        scale_factor=scale_factor,
        masks=None if sample.masks is None else sample.masks.resized(size),
    )


def _padded(sample: Sample, canvas: int) -> Sample:
    """The image at the top left of a square, grey elsewhere."""
    height, width = sample.size
    # Parity: padded before normalisation, so that this grey is part of the image and no padding mask covers it.
    image = np.full((canvas, canvas, 3), GREY, np.uint8)
    image[:height, :width] = sample.image
    return replace(sample, image=image, masks=None if sample.masks is None else sample.masks.padded((canvas, canvas)))


@dataclass(frozen=True)
class CropParams:
    """The window to keep, in pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class RandomCrop(Transform[CropParams]):
    """Crops a window whose sides are random between `low` and `high`; smaller sides of the image are kept whole."""

    low: int
    high: int

    def make_params(self, rng: np.random.Generator, size: Size) -> CropParams:
        """Samples height, width, top and left, in this order."""
        height, width = (int(rng.integers(min(side, self.low), min(side, self.high) + 1)) for side in size)
        top = int(rng.integers(size[0] - height + 1))
        left = int(rng.integers(size[1] - width + 1))
        return CropParams(top=top, left=left, height=height, width=width)

    def apply(self, sample: Sample, params: CropParams) -> Sample:
        """Crops image and masks, clips the boxes and removes those without area, possibly all."""
        top, left, height, width = params.top, params.left, params.height, params.width
        boxes = _clip(sample.boxes - np.array([left, top, left, top], np.float32), (height, width))
        cropped = replace(
            sample,
            image=sample.image[top : top + height, left : left + width],
            boxes=boxes,
            masks=None if sample.masks is None else sample.masks.cropped(top, left, height, width),
        )
        return cropped.select((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))


def _clip(boxes: np.ndarray, size: Size) -> np.ndarray:
    height, width = size
    return np.clip(boxes, 0, np.array([width, height, width, height], np.float32))


# --------------------------------------------------------------------------------------------------------- the policies


@dataclass(frozen=True)
class DetrParams:
    """Parameters of `DetrAugmentation`; `crop` is None in the policy that only resizes."""

    flip: FlipParams
    crop: tuple[ResizeParams, CropParams] | None
    resize: ResizeParams


class DetrAugmentation(Transform[DetrParams]):
    """Flip, then a resize or, equally likely, a resize, a crop and another resize (arXiv 2005.12872, section 4)."""

    def __init__(
        self,
        *,
        flip_probability: float,
        short_sides: tuple[int, ...],
        long_side: int,
        crop_short_sides: tuple[int, ...],
        crop_long_side: int,
        crop_size: tuple[int, int],
    ) -> None:
        self.flip = Flip(probability=flip_probability)
        self.resize_before_crop = ResizeShortLong(short_sides=crop_short_sides, long_side=crop_long_side)
        self.crop = RandomCrop(low=crop_size[0], high=crop_size[1])
        self.resize = ResizeShortLong(short_sides=short_sides, long_side=long_side)

    def make_params(self, rng: np.random.Generator, size: Size) -> DetrParams:
        """Samples flip, policy, the parameters of the crop if there is one, and the resize."""
        flip = self.flip.make_params(rng, size)
        crop = None
        if rng.integers(2):
            first = self.resize_before_crop.make_params(rng, size)
            crop = (first, self.crop.make_params(rng, self.resize_before_crop.new_size(size, first)))
        return DetrParams(flip=flip, crop=crop, resize=self.resize.make_params(rng, size))

    def apply(self, sample: Sample, params: DetrParams) -> Sample:
        """The sample after all steps."""
        *_, last = self.stages(sample, params)
        return last

    def stages(self, sample: Sample, params: DetrParams) -> Iterator[Sample]:
        """The sample after each step, in order."""
        sample = self.flip.apply(sample, params.flip)
        yield sample
        if params.crop is not None:
            sample = self.resize_before_crop.apply(sample, params.crop[0])
            yield sample
            sample = self.crop.apply(sample, params.crop[1])
            yield sample
        yield self.resize.apply(sample, params.resize)


@dataclass(frozen=True)
class LsjParams:
    """Parameters of `LsjAugmentation`."""

    ratio: float
    crop: CropParams
    flip: FlipParams


class DroppedSampleError(Exception):
    """No pixel of any object remains in a sample that had some: another image replaces it."""


class LsjAugmentation(Transform[LsjParams]):
    """Large-scale jittering (arXiv 2012.07177): resize by a wide range, crop, flip, and pad to a square canvas.

    With masks, boxes become the tight boxes of the cropped masks; without, they are clipped.

    Args:
        canvas: side of the square.
        ratio: the image's long side becomes the canvas times a factor from this range.
        flip_probability: of mirroring.
    """

    MIN_SIDE_PX = 0.01
    """Boxes must be wider and higher than this."""

    def __init__(self, *, canvas: int, ratio: tuple[float, float], flip_probability: float) -> None:
        self.canvas = canvas
        self.ratio = ratio
        self.crop = RandomCrop(low=canvas, high=canvas)
        self.flip = Flip(probability=flip_probability)

    def make_params(self, rng: np.random.Generator, size: Size) -> LsjParams:
        """Samples the factor, the crop and the flip, in this order."""
        low, high = self.ratio
        ratio = float(rng.random()) * (high - low) + low
        crop = self.crop.make_params(rng, self.new_size(size, ratio))
        return LsjParams(ratio=ratio, crop=crop, flip=self.flip.make_params(rng, size))

    def apply(self, sample: Sample, params: LsjParams) -> Sample:
        """The sample after all steps; raises as `stages`."""
        *_, last = self.stages(sample, params)
        return last

    def stages(self, sample: Sample, params: LsjParams) -> Iterator[Sample]:
        """The sample after each step: resize, crop, filter, flip, pad.

        Raises:
            DroppedSampleError: boxes remain after the crop, but no pixel of their objects.
        """
        sample = _resized(sample, self.new_size(sample.size, params.ratio))
        yield sample
        sample = self.crop.apply(sample, params.crop)
        if sample.masks is not None:
            sample = replace(sample, boxes=sample.masks.tight_boxes())
        yield sample
        sample = self._filtered(sample)
        yield sample
        sample = self.flip.apply(sample, params.flip)
        yield sample
        yield _padded(sample, self.canvas)

    def new_size(self, size: Size, ratio: float) -> Size:
        """The size of an image of `size` after the resize, before the crop."""
        side = max(1, int(self.canvas * ratio))
        return _kept_ratio(size, (side, side))

    def _filtered(self, sample: Sample) -> Sample:
        widths, heights = sample.boxes[:, 2] - sample.boxes[:, 0], sample.boxes[:, 3] - sample.boxes[:, 1]
        keep = (widths > self.MIN_SIDE_PX) & (heights > self.MIN_SIDE_PX)
        # Parity: a sample that had no box before this step is kept as an image without objects.
        if len(keep) and not keep.any():
            raise DroppedSampleError
        return sample.select(keep)


AnyTransform = DetrAugmentation | LsjAugmentation | ResizeShortLong | ResizeToCanvas | ResizeToFit | Keep


def build_transforms(data: DataConfig, test: TestConfig, *, train: bool) -> AnyTransform:
    """The transform of training images (`data.augmentation`) or of test images.

    Without augmentation, training images are resized as test images are.
    """
    if train and data.augmentation == "lsj" and data.canvas is not None:
        return LsjAugmentation(canvas=data.canvas, ratio=data.lsj_ratio, flip_probability=data.flip_probability)
    if train and data.augmentation == "detr":
        return DetrAugmentation(
            flip_probability=data.flip_probability,
            short_sides=data.short_sides,
            long_side=data.long_side,
            crop_short_sides=data.crop_short_sides,
            crop_long_side=data.crop_long_side,
            crop_size=data.crop_size,
        )
    if test.canvas is not None:
        return ResizeToCanvas(canvas=test.canvas)
    if test.fixed_size is not None:
        return ResizeToFit(short_side=test.short_side, long_side=test.long_side, frame=test.fixed_size)
    return ResizeShortLong(short_sides=(test.short_side,), long_side=test.long_side)


def resized_size(size: Size, test: TestConfig) -> Size:
    """The (height, width) that the transform of test images resizes an image of `size` to, without padding."""
    if test.canvas is not None:
        return _kept_ratio(size, (test.canvas, test.canvas))
    if test.fixed_size is not None:
        fit = ResizeToFit(short_side=test.short_side, long_side=test.long_side, frame=test.fixed_size)
        return fit.new_size(size)
    return _kept_ratio(size, (test.short_side, test.long_side))
