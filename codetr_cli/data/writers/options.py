"""What is written of a data set, and how: the options of `codetr convert-data`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from codetr_cli.data.writers.slicing import SliceRule
from codetr_cli.formats.layout_names import LayoutName
from codetr_cli.images.decoder import MAX_PIXELS

ImagesMode = Literal["copy", "link", "symlink", "none"]


@dataclass(frozen=True)
class WriteOptions:
    """What is written of a data set, and how.

    Args:
        layout: to write.
        images: how their files get into the folder; "none": not at all.
        outlines: write outlines of one polygon where the layout has them; COCO always has all.
        slicing: cut images into tiles.
        sample: number of images; None: all.
        classes: names of classes; None: all.
        keep_empty: keep images and tiles without objects; None: all but images without any of `classes`.
        skip_bad: skip images that cannot be read, which would otherwise raise an error.
        max_pixels: of an image that is cut.
    """

    layout: LayoutName = "coco"
    images: ImagesMode = "none"
    outlines: bool = False
    slicing: SliceRule | None = None
    sample: int | None = None
    classes: Sequence[str] | None = None
    keep_empty: bool | None = None
    skip_bad: bool = False
    max_pixels: int = MAX_PIXELS
