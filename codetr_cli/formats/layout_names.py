"""Names of the layouts that are written; without numpy and OpenCV, for the command line."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

LayoutName: TypeAlias = Literal["coco", "yolo", "voc", "labelme", "cvat", "label-studio", "csv"]
LAYOUTS: tuple[LayoutName, ...] = get_args(LayoutName)
LISTED = f"{', '.join(LAYOUTS[:-1])} or {LAYOUTS[-1]}"
"""As help texts list them."""
TITLES: dict[LayoutName, str] = {
    "coco": "COCO",
    "yolo": "YOLO",
    "voc": "Pascal VOC",
    "labelme": "labelme",
    "cvat": "CVAT for images",
    "label-studio": "Label Studio",
    "csv": "CSV",
}
