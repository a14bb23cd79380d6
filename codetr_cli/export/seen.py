"""An image as two detectors have seen it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from codetr_cli.export.agreement import Agreement
from codetr_cli.export.verify_images import VerifyImage
from codetr_cli.inference.detection_steps import PreparedImage
from codetr_cli.inference.detector import Detector
from codetr_cli.inference.options import DetectOptions
from codetr_cli.inference.prediction import Prediction
from codetr_cli.runtime.timing import seconds_of

ALL_SCORES = DetectOptions(score=0.0)


@dataclass(frozen=True, eq=False)
class Reading:
    """An image at the size of both networks, by the preprocessing of each."""

    image: VerifyImage
    reference: PreparedImage
    other: PreparedImage

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels (w, h) of the network's input for one of the image."""
        width, height = self.reference.target["scale_factor"]
        return float(width), float(height)


@dataclass(frozen=True, eq=False, kw_only=True)
class Seen:
    """The detections of both in an image.

    Attributes:
        reading: the image.
        shape: of the case that it counts for.
        batch: images at once.
        row: of the image in the batch.
        group: the batch, as the reference has prepared it.
        agreement: of the detections.
    """

    reading: Reading
    shape: str
    batch: int
    row: int
    group: Sequence[PreparedImage]
    agreement: Agreement

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the network's input."""
        height, width = (max(image.target["pad_size"][side] for image in self.group) for side in (0, 1))
        return height, width


def prepare(detector: Detector, image: VerifyImage) -> PreparedImage:
    """The image at the size of the network."""
    prepared = detector.prepare(image.pixels)
    assert isinstance(prepared, PreparedImage)
    return prepared


def detect_all(
    detector: Detector, images: Sequence[PreparedImage], options: DetectOptions = ALL_SCORES
) -> list[Prediction]:
    """The detections of a batch, whatever their scores."""
    found = detector.detect(images, options)
    return [detector.to_prediction(one, image.orig_size, options) for one, image in zip(found, images, strict=True)]


def detect_timed(detector: Detector, images: Sequence[PreparedImage]) -> tuple[list[Prediction], float]:
    """The detections of a batch, and the seconds per image."""
    found: list[Prediction] = []
    seconds = seconds_of(lambda: found.extend(detect_all(detector, images)), detector.device)
    return found, seconds / len(images)
