"""Masks of detections in COCO's run-length encoding, encoded from the part of the image in their box."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from codetr_cli.annotations.masks import Masks
from codetr_cli.annotations.outlines import decode
from codetr_cli.models.mask_grid import paste_crops
from codetr_cli.models.postprocess import Detections


@dataclass(frozen=True)
class StitchedDetections(Detections):
    """Detections, some of which have masks of several parts; their other columns are those of any detection.

    Attributes:
        fragments: by row, detections whose masks together are that of the row.
    """

    fragments: Mapping[int, Detections] = field(default_factory=dict)


def encode_masks(detections: Detections, size: tuple[int, int]) -> list[dict[str, Any]] | None:
    """The masks of one image in COCO's compressed run-length encoding, ready for JSON.

    Args:
        detections: in pixels of the original image.
        size: (height, width) of the original image.

    Returns:
        one `{"size": [height, width], "counts": string}` per detection; None without masks.
    """
    if detections.masks is None:
        return None
    crops = paste_crops(detections.masks, detections.boxes.to(detections.masks.device), size)
    encoded = {i: encode_crop(pasted.pixels.numpy(), pasted.top, pasted.left, size) for i, pasted in crops}
    if isinstance(detections, StitchedDetections):
        encoded |= {row: _united(encode_masks(parts, size) or []) for row, parts in detections.fragments.items()}
    return [encoded[i] for i in range(len(encoded))]


def _united(masks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The union of masks of one image."""
    merged = coco_mask.merge([{**mask, "counts": mask["counts"].encode("ascii")} for mask in masks])
    return {"size": list(merged["size"]), "counts": merged["counts"].decode("ascii")}


def decode_masks(masks: Sequence[dict[str, Any]], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Masks in COCO's compressed run-length encoding as pixels, bool (N, height, width); `size` is (height, width)."""
    return Masks([decode(mask, size) for mask in masks], size).array() != 0


def resize_mask(mask: dict[str, Any], size: tuple[int, int], new_size: tuple[int, int]) -> dict[str, Any]:
    """The run-length encoding of a mask in its image at another size.

    Args:
        mask: in COCO's run-length encoding.
        size: (height, width) of its image.
        new_size: that of the resized image, each of whose pixels shows the one at its centre.
    """
    block = decode(mask, size)
    rows, columns = (
        np.floor((np.arange(new) + 0.5) * (old / new)).astype(np.int64) - start
        for new, old, start in zip(new_size, size, (block.top, block.left), strict=True)
    )
    height, width = block.pixels.shape
    shown_rows = np.flatnonzero((rows >= 0) & (rows < height))
    shown_columns = np.flatnonzero((columns >= 0) & (columns < width))
    if not len(shown_rows) or not len(shown_columns):
        return encode_crop(np.zeros((0, 0), np.bool_), 0, 0, new_size)
    pixels = block.pixels[np.ix_(rows[shown_rows], columns[shown_columns])] != 0
    return encode_crop(pixels, int(shown_rows[0]), int(shown_columns[0]), new_size)


def encode_crop(pixels: NDArray[np.bool_], top: int, left: int, size: tuple[int, int]) -> dict[str, Any]:
    """The run-length encoding of a mask that is background outside a part of its image.

    Args:
        pixels: bool (h, w), the part.
        top: row of its first pixel.
        left: column of its first pixel.
        size: (height, width) of the image.
    """
    height, width = size
    part_height, part_width = pixels.shape
    # COCO counts down the columns. A row of background above and below each column makes its runs start and end in it.
    framed = np.zeros((part_width, part_height + 2), np.int8)
    framed[:, 1:-1] = pixels.T
    column, row = np.nonzero(np.diff(framed, axis=1))
    edges = (left + column).astype(np.int64) * height + top + row  # run after run: its first pixel, the one after it
    starts, ends = edges[::2], edges[1::2]
    # A run to the bottom continues at the top of the next column.
    apart = starts[1:] != ends[:-1]
    starts = starts[np.concatenate([[True], apart])] if len(starts) else starts
    ends = ends[np.concatenate([apart, [True]])] if len(ends) else ends
    edges = np.stack([starts, ends], 1).ravel()
    counts = np.diff(np.concatenate([[0], edges, [height * width]]))
    if len(counts) > 1 and counts[-1] == 0:  # the mask reaches the last pixel
        counts = counts[:-1]
    encoded = coco_mask.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return {"size": [height, width], "counts": encoded["counts"].decode("ascii")}
