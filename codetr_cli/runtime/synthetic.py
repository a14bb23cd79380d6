"""Synthetic images and objects for measurements: their number and size matter, not their content."""

from __future__ import annotations

import math
import tempfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from codetr_cli.annotations.masks import Masks
from codetr_cli.config.schema import Settings
from codetr_cli.data.batch import Batch, collate, normalize
from codetr_cli.data.sample import Sample
from codetr_cli.data.transforms import AnyTransform
from codetr_cli.files import replace_file
from codetr_cli.images.decoder import read_image
from codetr_cli.runtime.timing import seconds_of

SOURCE_SHORT_SIDE = 480
"""Short side of the image that the data stage reads; most of COCO's have 427 or 480."""


def synthetic_batch(
    size: tuple[int, int], images: int, *, objects: int, num_classes: int = 1, masks: bool = False
) -> Batch:
    """Images without padding, with random objects of at least 8 pixels.

    Args:
        size: (height, width) in pixels.
        images: number of images.
        objects: boxes per image.
        num_classes: labels are below this.
        masks: add masks that fill the boxes.
    """
    height, width = size
    generator = np.random.default_rng(0)
    image = _image(height, width, generator)
    samples = []
    for image_id in range(images):
        corner = generator.random((objects, 2)) * np.array([width, height]) * 0.5
        sides = 8 + generator.random((objects, 2)) * np.array([width, height]) * 0.4
        boxes = np.concatenate([corner, np.minimum(corner + sides, [width, height])], axis=1).astype(np.float32)
        sample = Sample(
            image=image,
            boxes=boxes,
            labels=generator.integers(0, num_classes, objects),
            iscrowd=np.zeros(objects, np.int64),
            area=sides.prod(axis=1).astype(np.float32),
            masks=Masks.from_boxes(boxes, size) if masks else None,
        )
        samples.append((image, sample.to_target(image_id=image_id, orig_size=size, pad_divisor=1)))
    return collate(samples)


def write_photograph(path: Path, size: tuple[int, int], *, seed: int = 0) -> None:
    """Writes a JPEG file of (height, width) pixels that is as expensive to decode as a photograph.

    Raises:
        ResourceError: no space left, or the folder cannot be written.
    """
    pixels = _image(*size, np.random.default_rng(seed))
    with replace_file(path, sync=False) as temporary:  # whose error names the file
        temporary.write_bytes(cv2.imencode(".jpg", pixels)[1].tobytes())


def data_seconds(
    settings: Settings, transform: AnyTransform, size: tuple[int, int], images: int, device: torch.device
) -> float:
    """Seconds that one process needs to read, transform, batch, copy and normalize a batch; the median of three.

    Args:
        settings: of the data.
        transform: from the pixels of the file to those of the network.
        size: (height, width) of the network's input in pixels; the file has the same aspect ratio.
        images: in a batch.
        device: of the batch.
    """
    short = min(size)
    height, width = (max(1, round(side * SOURCE_SHORT_SIDE / short)) for side in size)
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="codetr-") as folder:
        path = Path(folder) / "photograph.jpg"
        write_photograph(path, (height, width))

        def prepare() -> None:
            samples = []
            for image_id in range(images):
                image = read_image(path, max_pixels=settings.data.max_pixels)
                sample = transform(Sample.from_image(image), generator)
                target = sample.to_target(image_id=image_id, orig_size=(height, width), pad_divisor=1)
                samples.append((np.ascontiguousarray(sample.image), target))
            batch = collate(samples).to(device)
            normalize(batch.images, batch.padding_mask, settings.data.mean, settings.data.std)

        prepare()
        return float(np.median([seconds_of(prepare, device) for _ in range(3)]))


@torch.no_grad()
def randomize_weights(model: nn.Module) -> None:
    """Replaces matrices of a new network that are initialized to zero by random numbers, as after training.

    With zeros, every query samples the same cells around it and every box stays its proposal: memory access would be
    more regular than in use, and a comparison of results would miss errors.

    Args:
        model: changed in place; the numbers depend only on the names of the parameters.
    """
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and not parameter.any():
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            numbers = torch.randn(parameter.shape, generator=generator) / math.sqrt(parameter.shape[1])
            parameter.copy_(numbers)


def _image(height: int, width: int, generator: np.random.Generator) -> np.ndarray:
    """Smooth colours with noise, (h, w, 3) uint8: as expensive to decode as a photograph."""
    coarse = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    return np.clip(smooth + generator.integers(-12, 13, (height, width, 3)), 0, 255).astype(np.uint8)
