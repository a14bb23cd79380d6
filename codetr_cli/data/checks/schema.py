"""The counts of an annotation file of COCO's kind, and findings on its images and categories that are no errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from codetr_cli.annotations.annotation_columns import CategoryColumns, ImageColumns, Problem
from codetr_cli.annotations.annotation_json import FREQUENCIES
from codetr_cli.annotations.finding_kinds import KINDS
from codetr_cli.annotations.findings import SHOWN, Findings
from codetr_cli.class_names import plain_class_name


@dataclass
class AnnotationSummary:
    """Counts of one annotation file.

    Args:
        images: (file name, height, width) of each image with a usable record; 0, 0 where the size is missing.
        without_objects: number of images without any annotation.
        max_objects: most annotations in one image.
        usable: annotations that training uses: no crowds, at least a pixel wide and high, inside their image.
        outlines: annotations with a mask that can be drawn.
        frequencies: LVIS's "r", "c" and "f" -> number of rare, common and frequent classes.
        errors: number of problems of entries that stop training.
        is_lvis: whether the file has what only LVIS has.
        knows_categories: whether all categories have an id and a name, so that those of other files can be compared.
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
    errors: int = 0
    knows_categories: bool = True
    is_lvis: bool = False

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


class AllProblems:
    """Adds every problem of an annotation file to findings; see `annotation_columns.Problems`.

    Attributes:
        errors: number of problems that stop training.
    """

    def __init__(self, findings: Findings, where: str) -> None:
        self.findings, self.where = findings, where
        self.errors = 0

    def add(self, kind: str, problems: Sequence[Any], describe: Callable[[Any], Problem]) -> None:
        """Adds problems of one kind; only the first are described, which takes longer."""
        if KINDS[kind].severity == "error":
            self.errors += len(problems)
        for problem in problems[:SHOWN]:
            self.findings.add(kind, self.where, describe(problem).name)
        if len(problems) > SHOWN:
            self.findings.add(kind, self.where, count=len(problems) - SHOWN)


def summarize_images(images: ImageColumns, summary: AnnotationSummary, findings: Findings, where: str) -> None:
    """Adds the images to the summary, and reports file names that occur again, of images with other ids."""
    for name, (height, width) in zip(images.names, images.sizes.tolist(), strict=True):
        if name is not None:
            summary.images.append((name, height, width))
    if len(set(images.names)) < len(images.names):
        pairs = set(zip(images.ids.tolist(), images.names, strict=True))
        for name, count in Counter(name for _, name in pairs if name is not None).items():
            if count > 1:
                findings.add("duplicate_file_name", where, name)


def summarize_categories(
    categories: CategoryColumns, summary: AnnotationSummary, findings: Findings, where: str
) -> None:
    """Adds the names of the categories to the summary, and reports names that are alike."""
    for category_id, name in zip(categories.ids.tolist(), categories.names, strict=True):
        if name is not None:
            summary.category_names.setdefault(category_id, name)
    if categories.frequencies:
        counts = Counter(categories.frequencies)
        summary.frequencies = {letter: counts[letter] for letter in FREQUENCIES}
    names = Counter(summary.category_names.values())
    for name, count in names.items():
        if count > 1:
            findings.add("duplicate_category_name", where, name)
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(plain_class_name(name), []).append(name)
    for group in alike.values():
        if len(group) > 1:
            findings.add("alike_class_names", where, ", ".join(group))


def count_images_without_objects(images: ImageColumns, image_rows: np.ndarray) -> int:
    """The number of image ids that no annotation has; `image_rows` are the images of all annotations."""
    has_objects = np.zeros(len(images.ids), bool)
    has_objects[image_rows] = True
    return len(np.unique(images.ids)) - len(np.unique(images.ids[has_objects]))
