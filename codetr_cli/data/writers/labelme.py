"""labelme: a JSON file beside each image, in a folder a split.

Boxes are rectangles of two points, in pixels; with outlines, those of one polygon are polygons. Crowd regions are
marked `difficult`, and detections have their `score`, as X-AnyLabeling does. Proposals have the flag `proposed` and say
in their description why. There is no list of classes.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from codetr_cli.data.writers.content import (
    LayoutWriter,
    WrittenClasses,
    WrittenImage,
    clipped_objects,
    one_polygon,
    place,
)
from codetr_cli.data.writers.names import without_suffix

VERSION = "5.5.0"
"""Of labelme, whose form this is."""
SCORE_DIGITS = 8


class LabelmeWriter(LayoutWriter):
    """Writes the layout, see `content.LayoutWriter`."""

    def __init__(self, folder: Path, classes: WrittenClasses, counts: Counter[str], *, outlines: bool = False) -> None:
        super().__init__(folder, classes, counts, outlines=outlines)
        self._used: set[int] = set()

    def image_path(self, split: str, name: str) -> str:
        """Where the file of an image is."""
        return place(split, name)

    def add(self, image: WrittenImage) -> int:
        """Writes the file of an image."""
        path = self.folder / image.split / f"{without_suffix(image.name)}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        shapes: list[dict[str, Any]] = []
        for item, (x1, y1, x2, y2) in clipped_objects(image, self.counts):
            polygon = one_polygon(item, image, self.counts, wanted=self.outlines)
            self._used.add(item.label)
            points = list(zip(polygon[::2], polygon[1::2], strict=True)) if polygon else [(x1, y1), (x2, y2)]
            shapes.append(
                {
                    "label": self.classes.names[item.label],
                    "points": points,
                    "group_id": None,
                    "description": item.note,
                    "shape_type": "polygon" if polygon else "rectangle",
                    "flags": {"proposed": True} if item.is_proposed else {},
                    **({"difficult": True} if item.crowd else {}),
                    **({} if item.score is None else {"score": round(item.score, SCORE_DIGITS)}),
                }
            )
        table: dict[str, Any] = {
            "version": VERSION,
            "flags": {},
            "shapes": shapes,
            "imagePath": image.file or Path(image.name).name,
            "imageData": None,
            "imageHeight": image.height,
            "imageWidth": image.width,
        }
        path.write_text(json.dumps(table, ensure_ascii=False, indent=1), encoding="utf-8")
        return len(shapes)

    def finish(self) -> None:
        """Counts the classes that no file has."""
        self.counts["unused_classes"] += len(self.classes.names) - len(self._used)
