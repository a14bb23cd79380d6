"""Predicts image files: reads them, and turns detections into results and drawn images."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codetr_cli.images.decoder import BrokenImageError, read_image
from codetr_cli.images.headers import decoded_bytes
from codetr_cli.images.large_images import open_regions
from codetr_cli.images.regions import ArrayRegions, ImageRegions
from codetr_cli.inference.cores import cores_shared
from codetr_cli.inference.detector import Detector
from codetr_cli.inference.options import DetectOptions
from codetr_cli.inference.prediction import Prediction
from codetr_cli.inference.stage_seconds import StageSeconds
from codetr_cli.inference.stream import detect_stream
from codetr_cli.prediction.labels.crops import CropWriter
from codetr_cli.prediction.labels.selection import LabelOptions, LabelSelection
from codetr_cli.prediction.pictures import Pictures
from codetr_cli.prediction.results import ImageResult
from codetr_cli.prediction.sources.content import read_pixels
from codetr_cli.prediction.sources.input_list import InputImage

Pixels = NDArray[np.uint8]
Numbered = tuple[int, InputImage]


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """Predicts image files.

    Attributes:
        detector: runs on each image.
        options: how.
        folder: the output folder.
        pictures: makes the pictures of each image; None: there are none.
        scratch: a folder for files that are not complete yet, on the same disk.
        request: name of the request.
        force: files of other requests are replaced.
        stages: adds up what the stages take.
        selection: which detections are kept, and as which classes; None: all, as they are.
        labels: whether crops are written, too.
        images: all inputs, whose names decide those of the crops.
    """

    detector: Detector
    options: DetectOptions
    folder: Path
    pictures: Pictures | None = None
    scratch: Path
    request: str
    force: bool = False
    stages: StageSeconds = field(default_factory=StageSeconds)
    selection: LabelSelection | None = None
    labels: LabelOptions = field(default_factory=LabelOptions)
    images: Sequence[InputImage] = ()

    @cached_property
    def _crops(self) -> CropWriter:
        names = self.detector.class_names if self.selection is None else self.selection.class_names
        how: dict[str, Any] = {"scratch": self.scratch, "request": self.request, "force": self.force}
        return CropWriter(self.folder, self.images, names, **how)

    def predict(self, images: Iterable[Numbered]) -> Generator[ImageResult, None, None]:
        """The results of numbered images, in their order; a file that cannot be read gives a result with an error."""
        options = self.options if self.selection is None else self.selection.options
        with cores_shared(self.detector.loaded, self.detector.device):
            yield from detect_stream(
                self.detector,
                images,
                options,
                read=self._read,
                finish=self._finish,
                failed=self._failed,
                weigh=self._weigh,
                stages=self.stages,
            )

    def _weigh(self, item: Numbered) -> int:
        """Bytes of the pixels of an image, as far as they are known before it is decoded."""
        return decoded_bytes(item[1].path) if item[1].is_file else 0

    def _read(self, item: Numbered) -> Any:
        """The pixels of an image; with tiles the regions of a file, which need not be in memory."""
        image, max_pixels = item[1], self.detector.loaded.settings.data.max_pixels
        if not image.is_file:
            return read_pixels(image, max_pixels=max_pixels)
        read = read_image if self.detector.tiles_of(self.options) is None else open_regions
        return read(image.path, max_pixels=max_pixels)

    def _failed(self, item: Numbered, error: BrokenImageError) -> ImageResult:
        number, image = item
        return ImageResult(number, image.file, error=error.advise("--set data.max_pixels={}", image.file))

    def _finish(
        self, item: Numbered, picture: Pixels | ImageRegions, prediction: Prediction, seconds: float
    ) -> ImageResult:
        number, image = item
        regions = ArrayRegions(picture) if isinstance(picture, np.ndarray) else picture
        review = None
        if self.selection is not None:
            prediction, review = self.selection.select(prediction)
        started = time.perf_counter()
        pictures = {"drawn": None} if self.pictures is None else self.pictures.make(number, image, regions, prediction)
        if self.labels.crops:
            self._crops.write(number, regions, prediction)
        self.stages.add("write", time.perf_counter() - started)
        height, width = prediction.image_size
        facts = {
            "file": image.file,
            "file_name": image.name,
            "image_id": image.image_id,
            "height": height,
            "width": width,
            "objects": dict(Counter(prediction.class_names).most_common()),
            "seconds": round(seconds, 4),
            **pictures,
            **({} if review is None else {"review": review}),
        }
        return ImageResult(number, image.file, image=facts, records=_records(image, prediction))


def _records(image: InputImage, prediction: Prediction) -> list[dict[str, Any]]:
    """The detections in COCO's result format, with the names of their image and category."""
    names = dict(zip(prediction.category_ids.tolist(), prediction.class_names, strict=True))
    return [
        {**record, "file_name": image.name, "category_name": names[record["category_id"]]}
        for record in prediction.to_coco(image.image_id)
    ]
