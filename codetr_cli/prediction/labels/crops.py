"""Crops: the part of the image in each box as a file, crops/CLASS/IMAGE_1.jpg, a folder a class.

Boxes are clipped to the image and enlarged to whole pixels. Files are JPEG of quality 95 without subsampled colours.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from codetr_cli.data.writers.names import NamePlan, without_suffix
from codetr_cli.images.regions import ImageRegions
from codetr_cli.inference.prediction import Prediction
from codetr_cli.prediction.drawings import drawing_request
from codetr_cli.prediction.inputs import InputImage
from codetr_cli.result_files import ResultRecord, write_result

FOLDER = "crops"
QUALITY = (
    *(cv2.IMWRITE_JPEG_QUALITY, 95),
    *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
)


def remove_crops(folder: Path) -> None:
    """Removes the crops of an earlier prediction that are as codetr has written them: the new ones have other numbers.

    Args:
        folder: the output folder.
    """
    record = ResultRecord(folder)
    for path in sorted((folder / FOLDER).rglob("*.jpg")):
        if record.is_own(path, quick=True):
            path.unlink()


class CropWriter:
    """Writes crops; any thread may.

    Args:
        folder: the output folder.
        images: all inputs: their names decide those of the crops.
        class_names: by label.
        scratch: a folder for files that are not complete yet, on the same disk.
        request: name of the request.
        force: own files of other requests are replaced.
    """

    def __init__(
        self,
        folder: Path,
        images: Sequence[InputImage],
        class_names: Sequence[str],
        *,
        scratch: Path,
        request: str,
        force: bool,
    ) -> None:
        self._folder, self._images = folder, images
        self._scratch, self._request, self._force = scratch, request, force
        plan = NamePlan(by_stem=False)
        self._folders = [plan.assign("", name.replace("/", "_")) for name in class_names]
        self._record = ResultRecord(folder)

    def write(self, number: int, image: ImageRegions, prediction: Prediction) -> int:
        """Writes the crops of an image; returns how many.

        Args:
            number: of the image.
            image: its parts are read one by one.
            prediction: its detections.

        Raises:
            BrokenImageError: its file is damaged.
            ConfigError: a file that codetr did not make is in the place of one.
            ResourceError: no space left, or the folder cannot be written.
        """
        count = 0
        for position, one in enumerate(prediction, 1):
            part = _part(image, one.box)
            if part is None:
                continue
            path = self._folder / FOLDER / self._folders[one.label] / f"{self._stems[number]}_{position}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            # Not synced, as drawn images are not.
            with write_result(
                path,
                by="predict",
                force=self._force,
                request=f"{drawing_request(self._request, number)}/{position}",
                record=self._record,
                scratch=self._scratch,
                sync=False,
            ) as temporary:
                done, content = cv2.imencode(".jpg", cv2.cvtColor(part, cv2.COLOR_RGB2BGR), QUALITY)
                if not done:
                    raise OSError(errno.EIO, "the crop cannot be encoded", str(path))
                temporary.write_bytes(content.tobytes())
            count += 1
        return count

    @cached_property
    def _stems(self) -> list[str]:
        """The start of the names of each image's crops."""
        plan = NamePlan(by_stem=True)
        names = (plan.assign("", image.name.replace("/", "_"), "jpeg") for image in self._images)
        return list(map(without_suffix, names))


def _part(image: ImageRegions, box: tuple[float, float, float, float]) -> NDArray[np.uint8] | None:
    """The pixels in a box; None if it is outside of the image."""
    height, width = image.size
    left, top = max(math.floor(box[0]), 0), max(math.floor(box[1]), 0)
    right, bottom = min(math.ceil(box[2]), width), min(math.ceil(box[3]), height)
    return image.read(left, top, right - left, bottom - top) if right > left and bottom > top else None
