"""Images of a Python program in a stream of predictions: files, and images in memory that the program may change."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from codetr_cli.errors import ArgumentError
from codetr_cli.images.decoder import BrokenImageError
from codetr_cli.images.headers import decoded_bytes
from codetr_cli.inference.given_pixels import to_pixels, to_regions, worded_images
from codetr_cli.inference.options import DetectOptions
from codetr_cli.inference.prediction import Prediction
from codetr_cli.inference.stream import BatchDetector, detect_stream


@dataclass
class GivenImage:
    """A file that a thread reads later, or the pixels of an image in memory, or why it is none."""

    path: str | os.PathLike[str] | None = None
    pixels: Any = None
    error: ArgumentError | None = None


class _UnusableImageError(BrokenImageError):
    """An image in memory that cannot be used."""

    def __init__(self, error: ArgumentError) -> None:
        super().__init__(str(error))
        self.error = error


def predict_images(
    detector: BatchDetector, images: Iterable[Any], options: DetectOptions, *, max_pixels: int, raise_errors: bool
) -> Generator[Prediction | ArgumentError, None, None]:
    """One prediction an image, in order.

    Args:
        detector: finds the objects.
        images: as `Detector.predict` takes each.
        options: how.
        max_pixels: images with more are refused.
        raise_errors: raise the error of an image that cannot be used; otherwise it comes in place of its prediction.

    Raises:
        ArgumentError: an image cannot be used; an `ImageError`, a `DatasetError` too, if it is a file.
    """

    def read(given: GivenImage) -> Any:
        if given.error is not None:
            raise _UnusableImageError(given.error)
        if given.path is None:
            pixels, given.pixels = given.pixels, None
            return pixels
        try:
            return (to_pixels if options.tiles is None else to_regions)(given.path, max_pixels=max_pixels)
        except ArgumentError as error:
            if isinstance(error, BrokenImageError):
                raise
            raise _UnusableImageError(error) from error

    def failed(given: GivenImage, error: BrokenImageError) -> ArgumentError:
        found = error.error if isinstance(error, _UnusableImageError) else error
        try:
            with worded_images():
                raise found
        except ArgumentError as worded:
            if raise_errors:
                raise
            return worded

    return detect_stream(
        detector,
        _given(images, max_pixels),
        options,
        read=read,
        finish=lambda given, pixels, prediction, seconds: prediction,
        failed=failed,
        weigh=lambda given: 0 if given.path is None else decoded_bytes(os.fsdecode(given.path)),
    )


def _given(images: Iterable[Any], max_pixels: int) -> Iterator[GivenImage]:
    """The images one by one: what is in memory is read before the next one is taken, which may overwrite it."""
    may_change = not isinstance(images, list | tuple)
    for image in images:
        if isinstance(image, str | os.PathLike):
            yield GivenImage(path=image)
            continue
        try:
            pixels = to_pixels(image, max_pixels=max_pixels)
        except ArgumentError as error:
            yield GivenImage(error=error)
            continue
        yield GivenImage(pixels=pixels.copy() if may_change else pixels)
