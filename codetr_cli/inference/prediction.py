"""`Prediction`: the detections in one image, as columns and as objects."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from codetr_cli.config.data_settings import DataConfig
from codetr_cli.errors import ArgumentError
from codetr_cli.inference import adapters
from codetr_cli.inference.arguments import check_image_id, check_pixels, check_size, check_word
from codetr_cli.inference.detections import DetectionTable, Rle
from codetr_cli.inference.draw_options import LABELS, MAX_PX, DrawOptions, Labels
from codetr_cli.inference.drawing import draw_detections
from codetr_cli.inference.given_pixels import to_pixels
from codetr_cli.inference.palette import class_colours
from codetr_cli.inference.rle import decode_masks, resize_mask

if TYPE_CHECKING:
    import fiftyone
    import pandas as pd
    import supervision

ImageInput = str | Path | Image.Image | np.ndarray | torch.Tensor


@dataclass(frozen=True)
class Detection:
    """One object.

    Attributes:
        box: (x1, y1, x2, y2) in pixels of the image as given.
        score: in [0, 1].
        label: class index, from 0.
        category_id: of the class in the annotations that the model was trained on.
        class_name: name of the class.
        mask: the object's pixels in COCO's run-length encoding; None: the network has no masks.
        mask_score: in [0, 1]; None: the mask has the score of its box.
    """

    box: tuple[float, float, float, float]
    score: float
    label: int
    category_id: int
    class_name: str
    mask: Rle | None = None
    mask_score: float | None = None


@dataclass(frozen=True, eq=False)
class Prediction:
    """The detections in one image, best score first: as columns, or as `Detection` objects by iteration.

    Attributes:
        boxes: (N, 4) float32 xyxy in pixels of the image as given. They may extend slightly beyond its edges.
        scores: (N,) float32 in [0, 1].
        labels: (N,) int64 class indices.
        category_ids: (N,) int64 original category ids.
        class_names: N names.
        classes: names of all classes of the network, by label; empty: not known.
        image_size: (height, width) in pixels of the image as given.
        masks: N masks in COCO's run-length encoding, see `bitmaps`; None: the network has no masks.
        mask_scores: (N,) float32 in [0, 1]; None: masks have the scores of their boxes.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    category_ids: NDArray[np.int64]
    class_names: list[str]
    image_size: tuple[int, int]
    masks: list[Rle] | None = None
    mask_scores: NDArray[np.float32] | None = None
    classes: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        none = [None] * len(self)
        mask_scores = none if self.mask_scores is None else self.mask_scores.tolist()
        names = (self.labels.tolist(), self.category_ids.tolist(), self.class_names)
        columns = (self.scores.tolist(), *names, none if self.masks is None else self.masks, mask_scores)
        for box, *rest in zip(self.boxes.tolist(), *columns, strict=True):
            yield Detection(tuple(box), *rest)

    @overload
    def __getitem__(self, rows: int | np.integer[Any]) -> Detection: ...

    @overload
    def __getitem__(self, rows: slice | Sequence[int] | NDArray[Any] | torch.Tensor) -> Prediction: ...

    def __getitem__(
        self, rows: int | np.integer[Any] | slice | Sequence[int] | NDArray[Any] | torch.Tensor
    ) -> Detection | Prediction:
        """One detection, `detections[0]`, or some: `detections[:10]`, `detections[detections.scores > 0.5]`.

        Raises:
            IndexError: there is no detection of a number, or the array of booleans has another length.
            TypeError: it is no number, slice, list or array (N,) of numbers or booleans.
        """
        if isinstance(rows, torch.Tensor):
            rows = rows.detach().cpu().numpy()
        is_single = isinstance(rows, np.ndarray) and not rows.ndim
        if isinstance(rows, bool | np.bool_) or (is_single and np.asarray(rows).dtype == bool):
            raise TypeError(f"detections are chosen by numbers or booleans (N,), not by {rows}")
        if not isinstance(rows, slice | list | tuple | np.ndarray) or is_single:
            number = operator.index(cast("int", rows))
            if not -len(self) <= number < len(self):
                raise IndexError(f"there is no detection {number}: there are {len(self)}")
            return next(iter(self[[number % len(self)]]))
        if not isinstance(rows, slice):
            rows = np.asarray(rows) if len(rows) else np.zeros(0, np.int64)
            if rows.ndim != 1 or rows.dtype.kind not in "biu":
                raise TypeError(f"detections are chosen by numbers or booleans (N,), not by {rows.dtype} {rows.shape}")
        chosen = np.arange(len(self))[rows].tolist()
        return replace(
            self,
            boxes=self.boxes[rows],
            scores=self.scores[rows],
            labels=self.labels[rows],
            category_ids=self.category_ids[rows],
            class_names=[self.class_names[row] for row in chosen],
            masks=None if self.masks is None else [self.masks[row] for row in chosen],
            mask_scores=None if self.mask_scores is None else self.mask_scores[rows],
        )

    def bitmaps(self) -> NDArray[np.bool_]:
        """The masks as pixels (N, height, width); (0, height, width) without masks. Large: select detections first."""
        return decode_masks(self.masks or [], self.image_size)

    def resized(self, size: tuple[int, int]) -> Prediction:
        """The same detections in the image at another (height, width), to draw those of a large image on a small one.

        Raises:
            ValueError: it is no pair of whole numbers from 1.
        """
        size = check_size("size", size)
        scale = np.array([size[1] / self.image_size[1], size[0] / self.image_size[0]], np.float32)
        return replace(
            self,
            boxes=self.boxes * np.tile(scale, 2),
            image_size=size,
            masks=None if self.masks is None else [resize_mask(mask, self.image_size, size) for mask in self.masks],
        )

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """The detections in COCO's result format, boxes as (x, y, width, height), masks as RLE.

        Raises:
            ValueError: the id is no whole number of at most 64 bits.
        """
        table = DetectionTable.of_image(
            check_image_id(image_id), self.boxes, self.scores, self.category_ids, self.masks, self.mask_scores
        )
        return table.to_records()

    def to_supervision(self) -> supervision.Detections:
        """The detections as `supervision.Detections`.

        `class_id` is the class index; `data` has "class_name" and "category_id"; `mask` (N, height, width) bool is
        large, see `bitmaps`.

        Raises:
            ResourceError: the package supervision is not installed.
        """
        return adapters.to_supervision(self)

    def to_fiftyone(self) -> fiftyone.Detections:
        """The detections as `fiftyone.Detections`: label, box as shares of the image, confidence and mask in the box.

        Boxes are clipped to the image. `category_id` is an attribute of each detection.

        Raises:
            ResourceError: the package fiftyone is not installed.
        """
        return adapters.to_fiftyone(self)

    def to_torchvision(self, labels: adapters.TorchvisionLabels = "category_id") -> dict[str, torch.Tensor]:
        """The detections as torchvision's detectors return them.

        Args:
            labels: "category_id" is what torchvision's own detectors of COCO return, where 0 is the background;
                "index" is the class index, from 0 without a background.

        Returns:
            `boxes` (N, 4) float32 xyxy in pixels, `labels` (N,) int64, `scores` (N,) float32 and, if the network has
            masks, `masks` (N, 1, height, width) uint8, 0 or 1; on the CPU.

        Raises:
            ValueError: another value of `labels`.
        """
        return adapters.to_torchvision(self, check_word("labels", labels, ("category_id", "index")))

    def to_pandas(self) -> pd.DataFrame:
        """The detections as a table: x1, y1, x2, y2, score, label, category_id and class_name.

        Of networks with masks also `mask`, in COCO's run-length encoding, and `mask_score` where it has its own.

        Raises:
            ResourceError: the package pandas is not installed.
        """
        return adapters.to_pandas(self)

    def draw(
        self,
        image: ImageInput,
        *,
        labels: Labels = "score",
        thickness: int | None = None,
        font_size: int | None = None,
    ) -> Image.Image:
        """A copy of the predicted image with masks, boxes and labels drawn on it.

        Args:
            image: the predicted one.
            labels: "none", "class" (the name) or "score" (name and score).
            thickness: of lines in pixels, 1 to 1000; None: by the size of the image and of the object.
            font_size: of labels in pixels, 1 to 1000; None: likewise.

        Raises:
            ValueError: it is no image, or of another size, or another argument is not allowed.
        """
        options = DrawOptions(
            labels=check_word("labels", labels, LABELS),
            thickness=check_pixels("thickness", thickness, MAX_PX),
            font_size=check_pixels("font_size", font_size, MAX_PX),
        )
        pixels = to_pixels(image, max_pixels=max(DataConfig().max_pixels, math.prod(self.image_size)))
        if pixels.shape[:2] != self.image_size:
            raise ArgumentError(
                f"image has {pixels.shape[1]} x {pixels.shape[0]} pixels, the predicted one had {self.image_size[1]} x "
                f"{self.image_size[0]}: give the same image"
            )
        return Image.fromarray(self.drawn_on(pixels, options))

    def drawn_on(self, pixels: NDArray[np.uint8], options: DrawOptions) -> NDArray[np.uint8]:
        """As `draw`, for an image (H, W, 3) uint8 RGB of the predicted size."""
        return draw_detections(
            pixels,
            self.boxes,
            self.scores,
            self.class_names,
            self.masks,
            category_ids=self.category_ids.tolist(),
            colours=class_colours(self.classes),
            options=options,
        )
