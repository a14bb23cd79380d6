"""What an analysis is made from: detections, the objects that they are compared with, and the images if they are here.

Shape letters: I evaluated images, N detections, G annotated objects of these images.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codetr_cli.annotations.objects import Annotations
from codetr_cli.formats.resolve import DataPaths
from codetr_cli.inference.detections import DetectionTable


@dataclass(frozen=True, eq=False)
class AnalysisInputs:
    """Detections and annotated objects of the evaluated images.

    Attributes:
        ground_truth: of the whole file; with outlines where masks are analysed.
        detections: with original category ids; of evaluated images only.
        image_ids: (I,) int64, ascending: the evaluated images.
        paths: of the images and annotations.
    """

    ground_truth: Annotations
    detections: DetectionTable
    image_ids: NDArray[np.int64]
    paths: DataPaths

    @classmethod
    def of(
        cls,
        ground_truth: Annotations,
        detections: DetectionTable,
        paths: DataPaths,
        image_ids: Iterable[int] | None = None,
    ) -> AnalysisInputs:
        """The inputs of some images; None: of all images of the annotations."""
        wanted = ground_truth.image_ids if image_ids is None else np.array(sorted(set(image_ids)), np.int64)
        images = np.sort(ground_truth.image_ids[np.isin(ground_truth.image_ids, wanted)])
        return cls(ground_truth, detections.of_images(images.tolist()), images, paths)

    @cached_property
    def file_rows(self) -> NDArray[np.int64]:
        """(I,) row of each evaluated image in the annotations."""
        order = np.argsort(self.ground_truth.image_ids)
        found: NDArray[np.int64] = order[
            np.searchsorted(self.ground_truth.image_ids, self.image_ids, sorter=order)
        ].astype(np.int64)
        return found

    @cached_property
    def object_rows(self) -> NDArray[np.int64]:
        """(G,) rows in the annotations of the objects of evaluated images, ascending, with crowds."""
        is_evaluated = np.zeros(len(self.ground_truth.image_ids), bool)
        is_evaluated[self.file_rows] = True
        return np.flatnonzero(is_evaluated[self.ground_truth.image_rows])

    def file_name(self, image: int) -> str:
        """Name of the file of the evaluated image number `image`, as the annotations have it."""
        return self.ground_truth.file_names[self.file_rows[image]]

    def image_path(self, image: int) -> Path:
        """Path of the evaluated image number `image`; the file may not be there."""
        return self.paths.images_dir / self.file_name(image)

    def may_read(self, image: int) -> bool:
        """Whether the name of an image stays inside the data set, or others are allowed (`data.allow_outside`)."""
        rule = self.paths.names
        return rule.allow_outside or rule.is_inside(self.file_name(image), str(self.paths.images_dir.absolute()))

    def image_size(self, image: int) -> tuple[int, int]:
        """(height, width) in pixels of the evaluated image number `image`, according to the annotations."""
        height, width = self.ground_truth.sizes[self.file_rows[image]].tolist()
        return height, width
