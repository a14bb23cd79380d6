"""The same few validation images with their detections at every evaluation, and a sheet that shows how they change.

    plots/val_images/IMAGE_STEP.webp   image number IMAGE (from 0) after a step: hits, misses and false alarms
    plots/val_images.webp              a row for each image, a column for each of some steps, the newest last

Images are chosen by a rule that depends on the annotations alone: of the images with objects (of all images, where none
has any), ordered by id, those in the middle of as many equal parts as images are drawn. Steps are bounded in number:
the first and the newest stay, and those between that are closest to others go.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from codetr_cli.annotations.objects import Annotations
from codetr_cli.data.coco import CocoDataset
from codetr_cli.errors import CodetrError
from codetr_cli.files import replace_file
from codetr_cli.inference.detections import DetectionTable
from codetr_cli.inference.draw_options import DrawOptions
from codetr_cli.inference.prediction import Prediction
from codetr_cli.prediction.comparison import compare
from codetr_cli.prediction.comparison_drawing import draw_comparison
from codetr_cli.prediction.ground_truth import AnnotatedImages
from codetr_cli.prediction.montage import GridShape, draw_montage, read_thumbnail
from codetr_cli.prediction.picture_files import encode_picture, fitted
from codetr_cli.runs.folder import RunFolder
from codetr_cli.runs.plot_files import PLOTS, SHEET_NAME, VAL_IMAGES, picture_name, plot_files

logger = logging.getLogger(__name__)

LEAST_SCORE = 0.3
"""Detections with lower scores are not drawn."""
MOST_DETECTIONS = 100
"""Of an image, the best ones, that are drawn."""
SIDE_PX = 480
QUALITY = 80
KEPT_STEPS = 16
SHEET_COLUMNS, SHEET_ROWS = 4, 8


class ValPictures:
    """Draws validation images.

    Args:
        dataset: of the validation images.
        ground_truth: its annotations.
        folder: of the run.
        count: images that are drawn; 0: none.
    """

    def __init__(self, dataset: CocoDataset, ground_truth: Annotations, folder: RunFolder, count: int) -> None:
        self._dataset, self._folder = dataset, folder
        labels = np.arange(len(ground_truth.category_ids))
        self._truth = AnnotatedImages(ground_truth, dataset.images_dir, labels)
        self._rows = chosen_rows(ground_truth, count)
        self._small: dict[int, NDArray[np.uint8] | None] = {}

    def draw(self, step: int, detections: DetectionTable) -> list[Path]:
        """Draws the images with their detections after a step.

        Args:
            step: of the evaluation.
            detections: of all validation images, with original category ids.

        Returns:
            the pictures, without those of images that cannot be read.

        Raises:
            ResourceError: the folder cannot be written.
        """
        if not self._rows:
            return []
        folder = self._folder.plots_dir / VAL_IMAGES
        folder.mkdir(exist_ok=True)
        if folder.is_symlink():
            raise OSError(f"{folder} is a link")
        ids = [int(self._truth.annotations.image_ids[row]) for row in self._rows]
        drawn = []
        for number, (row, of_image) in enumerate(zip(self._rows, _of_each(detections, ids), strict=True)):
            picture = self._draw_image(row, of_image)
            if picture is not None:
                path = folder / picture_name(number, step)
                _write(path, picture)
                drawn.append(path)
        self._remove_old(step)
        self._draw_sheet(step)
        return drawn

    def _draw_image(self, row: int, detections: DetectionTable) -> NDArray[np.uint8] | None:
        image = self._image(row)
        if image is None:
            return None
        annotations = self._truth.annotations
        truth = self._truth.truth(row, len(annotations.category_ids))
        best = np.argsort(-detections.scores, kind="stable")[:MOST_DETECTIONS]
        detections = detections.select(best[detections.scores[best] >= LEAST_SCORE])
        x, y, w, h = detections.boxes_xywh.T
        labels = np.searchsorted(np.array(annotations.category_ids), detections.category_ids)
        prediction = Prediction(
            boxes=np.stack([x, y, x + w, y + h], axis=1).astype(np.float32),
            scores=detections.scores.astype(np.float32),
            labels=labels,
            category_ids=detections.category_ids,
            class_names=[annotations.class_names[label] for label in labels.tolist()],
            image_size=truth.size,
        )
        comparison = compare(prediction.boxes, prediction.scores, labels, truth)
        return draw_comparison(image, prediction, comparison, DrawOptions(), "overlay")

    def _image(self, row: int) -> NDArray[np.uint8] | None:
        """An image in the size in which it is drawn, read once; None where it cannot be read."""
        if row not in self._small:
            index = self._dataset.image_ids.index(int(self._truth.annotations.image_ids[row]))
            self._small[row] = None
            with suppress(CodetrError):  # the evaluation has reported it
                image = self._dataset.decode(index, self._dataset.read_bytes(index))
                height, width = fitted((image.shape[0], image.shape[1]), SIDE_PX)
                small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
                self._small[row] = np.asarray(small, np.uint8)
        return self._small[row]

    def _remove_old(self, step: int) -> None:
        """Removes pictures of steps that are too many, and of later ones, which a run that went back has made."""
        pictures = plot_files(self._folder.path).val_pictures
        kept = kept_steps([picture.step for picture in pictures if picture.step <= step], KEPT_STEPS)
        for picture in pictures:
            if picture.step not in kept:
                picture.path.unlink(missing_ok=True)

    def _draw_sheet(self, step: int) -> None:
        pictures = [each for each in plot_files(self._folder.path).val_pictures if each.image < SHEET_ROWS]
        steps = _spread(sorted({each.step for each in pictures}), SHEET_COLUMNS)
        images = sorted({each.image for each in pictures})
        paths = {(each.image, each.step): each.path for each in pictures}
        cells = [
            (f"step {column:,}", read_thumbnail(paths[image, column]) if (image, column) in paths else None)
            for image in images
            for column in steps
        ]
        if cells:
            sheet = draw_montage(cells, GridShape(len(images), len(steps), len(cells)))
            _write(self._folder.path / PLOTS / SHEET_NAME, sheet)


def chosen_rows(ground_truth: Annotations, count: int) -> list[int]:
    """The rows in the annotations of the images that are drawn, by the rule of this module."""
    objects = ground_truth.image_rows[ground_truth.iscrowd == 0]
    rows = np.unique(objects) if len(objects) else np.arange(len(ground_truth.image_ids))
    rows = rows[np.argsort(ground_truth.image_ids[rows], kind="stable")]
    count = min(count, len(rows))
    return [int(rows[(2 * part + 1) * len(rows) // (2 * count)]) for part in range(count)]


def kept_steps(steps: Sequence[int], limit: int) -> set[int]:
    """Some of the steps: the first, the newest, and between them those that are spread most evenly."""
    kept = sorted(set(steps))
    while len(kept) > limit:
        gaps = [kept[index + 2] - kept[index] for index in range(len(kept) - 2)]
        del kept[1 + gaps.index(min(gaps))]
    return set(kept)


def _spread(steps: Sequence[int], count: int) -> list[int]:
    """So many of the steps at most, from the first to the last."""
    if len(steps) <= count:
        return list(steps)
    return [steps[round(number * (len(steps) - 1) / (count - 1))] for number in range(count)]


def _of_each(detections: DetectionTable, image_ids: Sequence[int]) -> list[DetectionTable]:
    """The detections of each of some images."""
    of_them = detections.of_images(image_ids)
    return [of_them.of_images([image_id]) for image_id in image_ids]


def _write(path: Path, picture: NDArray[np.uint8]) -> None:
    with replace_file(path, sync=False) as temporary:
        temporary.write_bytes(encode_picture(picture, ".webp", QUALITY))
