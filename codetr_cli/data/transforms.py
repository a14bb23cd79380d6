"""Resizing and augmentation of an image with its boxes and masks, equal to the published pipelines to the last bit.

Every random transform has two halves: `draw` makes its choices from a generator and `apply` carries them out without
chance, so that recorded choices reproduce recorded pixels. Behaviour: Sense-X/Co-DETR, projects/configs/_base_/datasets
with mmdet's RandomFlip, AutoAugment, Resize, RandomCrop, FilterAnnotations and Pad. Images are RGB here; no operation
mixes channels.
Shape letters: h w one image's height and width, G its boxes. Sizes are (height, width) in pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import cv2
import numpy as np
import torch

from codetr_cli.config.schema import DataConfig, TestConfig
from codetr_cli.data.batch import Target
from codetr_cli.data.masks import Masks

Size = tuple[int, int]
GREY = 114
"""What a canvas is padded with, in every channel."""

Choices = TypeVar("Choices")


@dataclass(frozen=True)
class Sample:
    """One image and its objects on the way through the transforms.

    Attributes:
        image: (h, w, 3) uint8 RGB.
        boxes: (G, 4) float32, xyxy in pixels of `image`.
        labels: (G,) int64 class indices.
        iscrowd: (G,) int64, 1 for a region of many objects.
        area: (G,) float32 as annotated, in square pixels of the original image; no transform changes it.
        scale_factor: (w, h) of the last resize, new / old side.
        masks: bitmaps of the objects; absent when nobody asked for them.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    iscrowd: np.ndarray
    area: np.ndarray
    scale_factor: tuple[float, float] = (1.0, 1.0)
    masks: Masks | None = None

    @classmethod
    def from_image(cls, image: np.ndarray) -> Sample:
        """An image (h, w, 3) uint8 RGB without objects."""
        return cls(
            image=image,
            boxes=np.zeros((0, 4), np.float32),
            labels=np.zeros(0, np.int64),
            iscrowd=np.zeros(0, np.int64),
            area=np.zeros(0, np.float32),
        )

    @property
    def size(self) -> Size:
        """(height, width) of the image."""
        return self.image.shape[0], self.image.shape[1]

    def select(self, keep: np.ndarray) -> Sample:
        """The sample with only those objects for which `keep` (G,) is true."""
        return replace(
            self,
            boxes=self.boxes[keep],
            labels=self.labels[keep],
            iscrowd=self.iscrowd[keep],
            area=self.area[keep],
            masks=None if self.masks is None else self.masks.select(keep),
        )

    def to_target(self, *, image_id: int, orig_size: Size, pad_divisor: int) -> Target:
        """What the model and the objective are told of this image; `codetr_cli.data.coco` lists the keys.

        Args:
            image_id: id of the image in its annotation file.
            orig_size: (height, width) as decoded.
            pad_divisor: the image counts as padded to multiples of this.
        """
        height, width = self.size
        pad_size = (-(-height // pad_divisor) * pad_divisor, -(-width // pad_divisor) * pad_divisor)
        masks = {} if self.masks is None else {"masks": torch.from_numpy(self.masks.array(pad_size))}
        return {
            "boxes": torch.from_numpy(self.boxes),
            "labels": torch.from_numpy(self.labels),
            "iscrowd": torch.from_numpy(self.iscrowd),
            "area": torch.from_numpy(self.area),
            "image_id": image_id,
            "orig_size": orig_size,
            "size": (height, width),
            "norm_size": (height, width),
            "pad_size": pad_size,
            "scale_factor": self.scale_factor,
            **masks,
        }


class Transform(ABC, Generic[Choices]):
    """A step that draws its choices and then applies them."""

    @abstractmethod
    def draw(self, rng: np.random.Generator, size: Size) -> Choices:
        """Makes the choices for an image of `size`."""

    @abstractmethod
    def apply(self, sample: Sample, choices: Choices) -> Sample:
        """Carries the choices out; never changes the arrays of `sample`."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Draws and applies."""
        return self.apply(sample, self.draw(rng, sample.size))


# ------------------------------------------------------------------------------------------------------------ the steps


@dataclass(frozen=True)
class NoParams:
    """Nothing to choose."""


class Keep(Transform[NoParams]):
    """Leaves an image as it was decoded: test-time augmentation makes several sizes of it later."""

    def draw(self, rng: np.random.Generator, size: Size) -> NoParams:
        """Draws nothing."""
        return NoParams()

    def apply(self, sample: Sample, choices: NoParams) -> Sample:
        """The sample itself."""
        return sample


@dataclass(frozen=True)
class FlipParams:
    """Whether to mirror the image left to right."""

    flip: bool


class Flip(Transform[FlipParams]):
    """Mirrors the image left to right with some probability."""

    def __init__(self, *, probability: float) -> None:
        self.probability = probability

    def draw(self, rng: np.random.Generator, size: Size) -> FlipParams:
        """Draws one uniform number."""
        return FlipParams(flip=bool(rng.random() < self.probability))

    def apply(self, sample: Sample, choices: FlipParams) -> Sample:
        """Mirrors image, boxes and masks, or returns the sample as it is."""
        if not choices.flip:
            return sample
        width = sample.size[1]
        boxes = sample.boxes.copy()
        boxes[:, 0] = width - sample.boxes[:, 2]
        boxes[:, 2] = width - sample.boxes[:, 0]
        masks = None if sample.masks is None else sample.masks.flipped()
        return replace(sample, image=cv2.flip(sample.image, 1), boxes=boxes, masks=masks)


@dataclass(frozen=True)
class ResizeParams:
    """Which of the short sides to take."""

    index: int


class ResizeShortLong(Transform[ResizeParams]):
    """Resizes, keeping the ratio, so that neither the short side nor the long side exceeds its limit.

    Args:
        short_sides: candidates for the limit of the short side; one of them is drawn.
        long_side: limit of the long side.
    """

    def __init__(self, *, short_sides: tuple[int, ...], long_side: int) -> None:
        self.short_sides = short_sides
        self.long_side = long_side

    def draw(self, rng: np.random.Generator, size: Size) -> ResizeParams:
        """Draws one integer."""
        return ResizeParams(index=int(rng.integers(len(self.short_sides))))

    def apply(self, sample: Sample, choices: ResizeParams) -> Sample:
        """Resizes image, boxes and masks."""
        return _resized(sample, self.new_size(sample.size, choices))

    def new_size(self, size: Size, choices: ResizeParams) -> Size:
        """The size that an image of `size` gets."""
        return _kept_ratio(size, (self.short_sides[choices.index], self.long_side))


class ResizeToCanvas(Transform[None]):
    """Resizes, keeping the ratio, until the long side is that of a square canvas, and pads to it with grey.

    Args:
        canvas: side of the square.
    """

    def __init__(self, *, canvas: int) -> None:
        self.canvas = canvas

    def draw(self, rng: np.random.Generator, size: Size) -> None:
        """Draws nothing."""

    def apply(self, sample: Sample, choices: None) -> Sample:
        """Resizes and pads image, boxes and masks."""
        return _padded(_resized(sample, _kept_ratio(sample.size, (self.canvas, self.canvas))), self.canvas)


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
    # Parity: the factor is rounded to float32 before it meets the boxes.
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
    # Parity: padded before normalisation, so that the network sees this grey and no padding mask hides it.
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


class RandomCrop(Transform[CropParams]):
    """Cuts out a window whose sides are drawn between two limits; smaller sides of the image are kept whole.

    Args:
        low: smallest side of the window.
        high: largest side of the window.
    """

    def __init__(self, *, low: int, high: int) -> None:
        self.low = low
        self.high = high

    def draw(self, rng: np.random.Generator, size: Size) -> CropParams:
        """Draws height, width, top and left, in this order."""
        height, width = (int(rng.integers(min(side, self.low), min(side, self.high) + 1)) for side in size)
        top = int(rng.integers(size[0] - height + 1))
        left = int(rng.integers(size[1] - width + 1))
        return CropParams(top=top, left=left, height=height, width=width)

    def apply(self, sample: Sample, choices: CropParams) -> Sample:
        """Crops image and masks, clips the boxes and drops those that are left without area; none may remain."""
        top, left, height, width = choices.top, choices.left, choices.height, choices.width
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
    """One path through `DetrAugmentation`; `crop` is absent in the policy that only resizes."""

    flip: FlipParams
    crop: tuple[ResizeParams, CropParams] | None
    resize: ResizeParams


class DetrAugmentation(Transform[DetrParams]):
    """Flip, then with equal chances a resize, or a resize, a crop and another resize (arXiv 2005.12872, section 4)."""

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

    def draw(self, rng: np.random.Generator, size: Size) -> DetrParams:
        """Draws flip, policy, the choices of the crop if there is one, and the resize."""
        flip = self.flip.draw(rng, size)
        crop = None
        if rng.integers(2):
            first = self.resize_before_crop.draw(rng, size)
            crop = (first, self.crop.draw(rng, self.resize_before_crop.new_size(size, first)))
        return DetrParams(flip=flip, crop=crop, resize=self.resize.draw(rng, size))

    def apply(self, sample: Sample, choices: DetrParams) -> Sample:
        """The sample after all steps."""
        *_, last = self.stages(sample, choices)
        return last

    def stages(self, sample: Sample, choices: DetrParams) -> Iterator[Sample]:
        """The sample after each step, in order."""
        sample = self.flip.apply(sample, choices.flip)
        yield sample
        if choices.crop is not None:
            sample = self.resize_before_crop.apply(sample, choices.crop[0])
            yield sample
            sample = self.crop.apply(sample, choices.crop[1])
            yield sample
        yield self.resize.apply(sample, choices.resize)


@dataclass(frozen=True)
class LsjParams:
    """One path through `LsjAugmentation`."""

    ratio: float
    crop: CropParams
    flip: FlipParams


class DroppedSampleError(Exception):
    """No pixel of any object is left in a sample that had some: another image takes its place."""


class LsjAugmentation(Transform[LsjParams]):
    """Large-scale jittering (arXiv 2012.07177): resize by a wide range, crop, flip, and pad to a square canvas.

    With masks, boxes become the tight boxes of what the crop left of them; without, they are clipped.

    Args:
        canvas: side of the square.
        ratio: the image's long side becomes the canvas times a factor from this range.
        flip_probability: of mirroring.
    """

    SMALLEST = 0.01
    """Boxes must be wider and higher than this, in pixels."""

    def __init__(self, *, canvas: int, ratio: tuple[float, float], flip_probability: float) -> None:
        self.canvas = canvas
        self.ratio = ratio
        self.crop = RandomCrop(low=canvas, high=canvas)
        self.flip = Flip(probability=flip_probability)

    def draw(self, rng: np.random.Generator, size: Size) -> LsjParams:
        """Draws the factor, the crop and the flip, in this order."""
        low, high = self.ratio
        ratio = float(rng.random()) * (high - low) + low
        crop = self.crop.draw(rng, self.new_size(size, ratio))
        return LsjParams(ratio=ratio, crop=crop, flip=self.flip.draw(rng, size))

    def apply(self, sample: Sample, choices: LsjParams) -> Sample:
        """The sample after all steps.

        Raises:
            DroppedSampleError: boxes were left by the crop, but nothing of their objects.
        """
        *_, last = self.stages(sample, choices)
        return last

    def stages(self, sample: Sample, choices: LsjParams) -> Iterator[Sample]:
        """The sample after each step: resize, crop, filter, flip, pad.

        Raises:
            DroppedSampleError: as `apply`.
        """
        sample = _resized(sample, self.new_size(sample.size, choices.ratio))
        yield sample
        sample = self.crop.apply(sample, choices.crop)
        if sample.masks is not None:
            sample = replace(sample, boxes=sample.masks.tight_boxes())
        yield sample
        sample = self._filtered(sample)
        yield sample
        sample = self.flip.apply(sample, choices.flip)
        yield sample
        yield _padded(sample, self.canvas)

    def new_size(self, size: Size, ratio: float) -> Size:
        """The size that an image of `size` gets before the crop."""
        side = max(1, int(self.canvas * ratio))
        return _kept_ratio(size, (side, side))

    def _filtered(self, sample: Sample) -> Sample:
        widths, heights = sample.boxes[:, 2] - sample.boxes[:, 0], sample.boxes[:, 3] - sample.boxes[:, 1]
        keep = (widths > self.SMALLEST) & (heights > self.SMALLEST)
        # Parity: a sample that had no box before this step is kept as an image without objects.
        if len(keep) and not keep.any():
            raise DroppedSampleError
        return sample.select(keep)


AnyTransform = DetrAugmentation | LsjAugmentation | ResizeShortLong | ResizeToCanvas | Keep


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
    return ResizeShortLong(short_sides=(test.short_side,), long_side=test.long_side)
