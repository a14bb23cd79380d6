"""Which detections become labels, and in which form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from codetr_cli.formats.layout_names import LayoutName

Band = tuple[float, float]
"""Scores from the first up to, but without, the second."""


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """Which detections become labels, and in which form.

    Attributes:
        class_map: new names of classes by the model's, see `class_map.ClassMap`; others keep theirs.
        review: images with a detection in this band are listed; None: no list.
        outlines: write masks as polygons where a layout has them.
        crops: write the part of the image in each box as a file.
    """

    class_map: Mapping[str, str] = field(default_factory=dict)
    review: Band | None = None
    outlines: bool = False
    crops: bool = False


@dataclass(frozen=True, kw_only=True)
class DatasetOptions:
    """A data set that is made of images and their labels.

    Attributes:
        layout: of `codetr convert-data`.
        source: the folder of the images.
        images: how their files get into the data set.
        val_fraction: share of the images reserved for validation, where folders do not divide them.
        keep_empty: whether images without labels are in it.
    """

    layout: LayoutName
    source: str
    images: Literal["copy", "link", "symlink"] = "copy"
    val_fraction: float = 0.2
    keep_empty: bool = True
