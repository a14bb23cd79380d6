"""Detections as objects of other packages: supervision, FiftyOne, torchvision and pandas.

None of them is a dependency of codetr: each is imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from codetr_cli.annotations.outlines import decode
from codetr_cli.errors import ResourceError
from codetr_cli.inference.detections import Rle
from codetr_cli.inference.rle import decode_masks

if TYPE_CHECKING:
    import fiftyone
    import pandas as pd
    import supervision

TorchvisionLabels = Literal["category_id", "index"]


class Columns(Protocol):
    """The columns of a `prediction.Prediction`, see there."""

    @property
    def boxes(self) -> NDArray[np.float32]:
        """(N, 4) xyxy."""

    @property
    def scores(self) -> NDArray[np.float32]:
        """(N,)."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,)."""

    @property
    def category_ids(self) -> NDArray[np.int64]:
        """(N,)."""

    @property
    def class_names(self) -> Sequence[str]:
        """N."""

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width)."""

    @property
    def masks(self) -> Sequence[Rle] | None:
        """N, if there are any."""

    @property
    def mask_scores(self) -> NDArray[np.float32] | None:
        """(N,), if they have their own."""


def to_supervision(found: Columns) -> supervision.Detections:
    """See `Prediction.to_supervision`."""
    with _installed("supervision", "to_supervision"):
        import supervision as sv
    return sv.Detections(
        xyxy=found.boxes.astype(np.float32).reshape(-1, 4),
        confidence=found.scores.astype(np.float32),
        class_id=found.labels.astype(int),
        mask=None if found.masks is None else decode_masks(found.masks, found.image_size),
        data={
            "class_name": np.array(list(found.class_names), dtype=np.str_),
            "category_id": found.category_ids.astype(int),
        },
    )


def to_fiftyone(found: Columns) -> fiftyone.Detections:
    """See `Prediction.to_fiftyone`."""
    with _installed("fiftyone", "to_fiftyone"):
        import fiftyone as fo
    height, width = found.image_size
    scale = np.array([width, height, width, height], np.float64)
    boxes = (found.boxes.astype(np.float64) / scale).clip(0, 1)
    detections = []
    for i, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        more = {} if found.masks is None else {"mask": _cropped(found.masks[i], boxes[i] * scale, found.image_size)}
        detections.append(
            fo.Detection(
                label=found.class_names[i],
                bounding_box=[x1, y1, x2 - x1, y2 - y1],
                confidence=float(found.scores[i]),
                category_id=int(found.category_ids[i]),
                **more,
            )
        )
    return fo.Detections(detections=detections)


def _cropped(mask: Rle, box_xyxy: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels of a mask in its box, which is rounded to pixels and has at least one."""
    block = decode(mask, size)
    x1, y1, x2, y2 = np.round(box_xyxy).astype(int).tolist()
    x1, y1 = min(x1, size[1] - 1), min(y1, size[0] - 1)
    crop = np.zeros((max(y2 - y1, 1), max(x2 - x1, 1)), bool)
    top, left = max(block.top, y1), max(block.left, x1)
    bottom = min(block.top + block.pixels.shape[0], y1 + crop.shape[0])
    right = min(block.left + block.pixels.shape[1], x1 + crop.shape[1])
    if top < bottom and left < right:
        inner = block.pixels[top - block.top : bottom - block.top, left - block.left : right - block.left]
        crop[top - y1 : bottom - y1, left - x1 : right - x1] = inner != 0
    return crop


def to_torchvision(found: Columns, labels: TorchvisionLabels) -> dict[str, torch.Tensor]:
    """See `Prediction.to_torchvision`."""
    chosen = found.category_ids if labels == "category_id" else found.labels
    columns = {
        "boxes": torch.from_numpy(found.boxes.astype(np.float32).reshape(-1, 4)),
        "labels": torch.from_numpy(chosen.astype(np.int64)),
        "scores": torch.from_numpy(found.scores.astype(np.float32)),
    }
    if found.masks is not None:
        pixels = decode_masks(found.masks, found.image_size)
        columns["masks"] = torch.from_numpy(pixels.astype(np.uint8))[:, None]  # (N, 1, H, W)
    return columns


def to_pandas(found: Columns) -> pd.DataFrame:
    """See `Prediction.to_pandas`."""
    with _installed("pandas", "to_pandas"):
        import pandas as pd
    boxes = found.boxes.astype(np.float32).reshape(-1, 4)
    columns: dict[str, Any] = {name: boxes[:, i] for i, name in enumerate(("x1", "y1", "x2", "y2"))}
    columns |= {
        "score": found.scores,
        "label": found.labels,
        "category_id": found.category_ids,
        "class_name": pd.Series(list(found.class_names), dtype="object"),
    }
    if found.masks is not None:
        columns["mask"] = pd.Series(list(found.masks), dtype="object")
    if found.mask_scores is not None:
        columns["mask_score"] = found.mask_scores
    return pd.DataFrame(columns)


@contextmanager
def _installed(package: str, method: str) -> Iterator[None]:
    """Inside, the package is imported; that it is missing is an error that names it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ResourceError(f"{method} needs the package {package}: pip install {package}") from error
