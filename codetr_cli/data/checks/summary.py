"""Counts of one annotation file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class AnnotationSummary:
    """Counts of one annotation file.

    Args:
        images: (file name, height, width) of each valid image record.
        without_objects: number of images without any annotation.
        max_objects: most annotations in one image.
        usable: annotations that training uses: no crowds, at least a pixel wide and high, inside their image.
        outlines: annotations with a mask that can be drawn.
        frequencies: LVIS's "r", "c" and "f" -> number of rare, common and frequent classes.
    """

    images: list[tuple[str, int, int]] = field(default_factory=list)
    category_names: dict[int, str] = field(default_factory=dict)
    annotations: int = 0
    crowd: int = 0
    without_objects: int = 0
    max_objects: int = 0
    per_category: dict[int, int] = field(default_factory=dict)
    usable: int = 0
    outlines: int = 0
    frequencies: dict[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The counts, under the keys of `--json`."""
        return {
            "images": len(self.images),
            "annotations": self.annotations,
            "crowd": self.crowd,
            "usable": self.usable,
            "categories": len(self.category_names),
            "used_categories": sum(count > 0 for count in self.per_category.values()),
            "images_without_objects": self.without_objects,
            "most_objects_in_an_image": self.max_objects,
            "masks": self.outlines,
            **({"class_frequencies": self.frequencies} if self.frequencies else {}),
        }
