"""The pictures of a prediction: drawn images, their comparison with annotations, and the montage."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from codetr_cli.images.regions import ImageRegions
from codetr_cli.inference.draw_options import DrawOptions
from codetr_cli.inference.fonts import missing_fonts
from codetr_cli.inference.prediction import Prediction
from codetr_cli.prediction.comparison import Comparison, compare
from codetr_cli.prediction.comparison_drawing import View, draw_comparison
from codetr_cli.prediction.drawings import FORMAT_SUFFIXES, drawing_request, drawn_names
from codetr_cli.prediction.ground_truth import GroundTruth, annotation_state
from codetr_cli.prediction.montage import GridShape, draw_montage, draw_thumbnail, read_thumbnail
from codetr_cli.prediction.picture_files import drawable, drawn_on, encode_picture, write_picture
from codetr_cli.prediction.sources.input_list import InputImage
from codetr_cli.result_files import ResultRecord, write_result

THUMBNAIL_SUFFIX = ".thumbnail.tmp"
"""Of files in the folder of the parts, where it means that they go with the parts."""


@dataclass(frozen=True, kw_only=True)
class PictureOptions:
    """Which pictures are made, and how.

    Attributes:
        draw: whether images with their detections are drawn.
        drawing: how.
        grid: the montage of the first images; None: there is none.
        against: annotations that detections are compared with; None: they are not.
        view: how the comparison is drawn.
    """

    draw: bool = True
    drawing: DrawOptions = field(default_factory=DrawOptions)
    grid: GridShape | None = None
    against: Path | None = None
    view: View = "side"

    def request(self) -> dict[str, Any]:
        """What pictures and counts depend on, of plain values; annotations by the state of their files."""
        drawing = asdict(self.drawing) if self.draw or self.grid else None
        if self.against is None:
            return {"draw": self.draw, "drawing": drawing, "grid": self.grid and asdict(self.grid)}
        against = [os.path.realpath(self.against), self.view, annotation_state(self.against)]
        return {"draw": self.draw, "drawing": drawing, "grid": self.grid and asdict(self.grid), "against": against}

    def result_names(self) -> list[str]:
        """The file of the montage, if there is one."""
        if self.grid is None:
            return []
        image_format = "jpg" if self.drawing.image_format == "same" else self.drawing.image_format
        return [f"grid{FORMAT_SUFFIXES[image_format][1]}"]

    def drawn_names(
        self, images: Sequence[InputImage], reserved: Sequence[str], folder: Path, *, request: str, force: bool
    ) -> list[Path]:
        """Names of the drawn images, see `drawings.drawn_names`; empty if none are drawn."""
        if not self.draw:
            return []
        image_format = self.drawing.image_format
        return drawn_names(images, reserved, folder, request=request, force=force, image_format=image_format)

    def ground_truth(self, class_names: Sequence[str], images: Sequence[InputImage]) -> GroundTruth | None:
        """The annotations that detections of some classes in these images are compared with; None if they are not.

        Raises:
            DatasetError: they cannot be read, or have none of the classes.
        """
        return None if self.against is None else GroundTruth(self.against, class_names, images)


class OutputPlace(Protocol):
    """The folder of the results, and one in it for files that are not complete yet."""

    @property
    def folder(self) -> Path:
        """Of the results."""

    @property
    def path(self) -> Path:
        """Of files that are not complete yet, on the same disk."""


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Makes the pictures of images.

    Attributes:
        options: which, and how.
        place: of the drawn images, and of what is not complete yet.
        names: of the drawn images in the folder, by the number of the image; empty: nothing is drawn.
        class_names: of the detections.
        truth: see `PictureOptions.ground_truth`.
        request: name of the request.
        force: pictures of other requests are replaced.
    """

    options: PictureOptions
    place: OutputPlace
    names: Sequence[Path] = ()
    class_names: Sequence[str] = ()
    truth: GroundTruth | None = None
    request: str
    force: bool = False

    @cached_property
    def record(self) -> ResultRecord:
        """Of the folder of the drawn images."""
        return ResultRecord(self.place.folder)

    def warnings(self) -> list[str]:
        """Sentences on names that cannot be drawn, and on classes that cannot be compared."""
        options = self.options
        is_drawn = options.drawing.labels != "none" and (options.draw or options.grid is not None)
        missing = missing_fonts(self.class_names) if is_drawn else ""
        return [*([f"{missing}."] if missing else []), *(self.truth.notes(self.class_names) if self.truth else [])]

    def make(self, number: int, image: InputImage, regions: ImageRegions, prediction: Prediction) -> dict[str, Any]:
        """Makes the pictures of one image; any thread may do it.

        Returns:
            what `--json` says of them: `drawn`, the file or None, and `against` if detections are compared: the
            numbers of hits, misses and false alarms, or None for an image without annotations.
        """
        comparison = self._compared(image, prediction)
        facts: dict[str, Any] = {"drawn": self._draw(number, regions, prediction, comparison)}
        if self.truth is not None:
            facts["against"] = comparison and comparison.counts()
        if self._is_in_grid(number):
            self._write_thumbnail(number, regions, prediction)
        return facts

    def _compared(self, image: InputImage, prediction: Prediction) -> Comparison | None:
        truth = None if self.truth is None else self.truth.find(image)
        if truth is None or truth.size != prediction.image_size:
            return None
        labels = np.array([self._labels[name] for name in prediction.class_names], np.int64)
        return compare(prediction.boxes, prediction.scores, labels, truth)

    @cached_property
    def _labels(self) -> dict[str, int]:
        return {name: label for label, name in enumerate(self.class_names)}

    def _draw(
        self, number: int, regions: ImageRegions, prediction: Prediction, comparison: Comparison | None
    ) -> str | None:
        if not self.names:
            return None
        drawn = self.place.folder / self.names[number]
        drawn.parent.mkdir(parents=True, exist_ok=True)
        # Not synced, which would take longer than the drawing; a power failure leaves empty files, drawn again.
        with write_result(
            drawn,
            by="predict",
            force=self.force,
            request=drawing_request(self.request, number),
            record=self.record,
            scratch=self.place.path,
            sync=False,
        ) as temporary:
            how = self.options.drawing
            if comparison is None:
                picture = drawn_on(regions, prediction, how)
            else:
                picture = draw_comparison(drawable(regions), prediction, comparison, how, self.options.view)
            write_picture(temporary, picture, drawn.suffix, how.quality)
        return str(drawn)

    # ------------------------------------------------------------------------------------------------------- montage

    def _is_in_grid(self, number: int) -> bool:
        return self.options.grid is not None and number < self.options.grid.count

    def _thumbnail(self, number: int) -> Path:
        return self.place.path / f"{number}{THUMBNAIL_SUFFIX}"

    def _write_thumbnail(self, number: int, regions: ImageRegions, prediction: Prediction) -> None:
        """Keeps the thumbnail of an image among the parts, so that any process can make the montage."""
        if self.options.grid is None:
            return
        small = draw_thumbnail(regions, prediction, self.options.drawing, self.options.grid.cell_px)
        path = self._thumbnail(number)
        unfinished = path.with_name(f"{number}.{os.getpid()}.tmp")
        unfinished.write_bytes(encode_picture(small, ".png", 100))
        unfinished.replace(path)

    def is_complete(self, number: int) -> bool:
        """Whether an image that has a result has its pictures, too, and they have survived a power failure."""
        if self._is_in_grid(number) and read_thumbnail(self._thumbnail(number)) is None:
            return False
        if not self.names:
            return True
        path, request = self.place.folder / self.names[number], drawing_request(self.request, number)
        return self.record.is_own(path, request=request, quick=True) and path.stat().st_size > 0

    def write_montage(self, images: Sequence[InputImage]) -> list[str]:
        """Writes the montage of the first images, if one is requested.

        Returns:
            the names of the files.

        Raises:
            ConfigError: a file that codetr did not make has come into its place.
            ResourceError: no space left, or the folder cannot be written.
        """
        names = self.options.result_names()
        if self.options.grid is None:
            return []
        thumbnails = [
            (image.name, read_thumbnail(self._thumbnail(number)))
            for number, image in enumerate(images[: self.options.grid.count])
        ]
        picture = draw_montage(thumbnails, self.options.grid)
        path = self.place.folder / names[0]
        with write_result(
            path, by="predict", force=self.force, request=self.request, scratch=self.place.path
        ) as temporary:
            write_picture(temporary, picture, path.suffix, self.options.drawing.quality)
        return names
