"""The data card of a labelled data set: README.md says which model made the labels, how, and what is in them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from codetr_cli import __version__
from codetr_cli.inference.detector import Detector
from codetr_cli.inference.exported.network import precision_of
from codetr_cli.inference.options import DetectOptions
from codetr_cli.markdown import code, plain, table
from codetr_cli.prediction.labels.options import DatasetOptions, LabelOptions
from codetr_cli.reading import open_file

NAME = "README.md"
BINS = 10
"""Of the histogram of scores."""
BAR = 40
"""Letters of its longest bar."""
MAX_REVIEWS = 50
"""Images to be reviewed that the card lists; review.txt has all."""


def describe_model(
    detector: Detector, options: DetectOptions, labels: LabelOptions, overrides: Sequence[str], *, tta: bool
) -> dict[str, Any]:
    """What makes the labels, as plain values; reads the file of the weights for its digest.

    Args:
        detector: the network.
        options: how images are detected.
        labels: which detections become labels.
        overrides: settings as `key=value`.
        tta: test-time augmentation.

    Raises:
        OSError: the file cannot be read.
    """
    loaded, test = detector.loaded, detector.loaded.settings.test
    path = loaded.path
    return {
        "codetr": __version__,
        "date": datetime.now(UTC).date().isoformat(),
        "checkpoint": None if path is None else str(path.absolute()),
        "sha256": None if path is None else _digest(path),
        "preset": loaded.settings.name,
        "settings": {
            "short_side": test.short_side,
            "long_side": test.long_side,
            "head": test.head,
            "nms": options.nms or test.nms,
            "max_dets": options.max_dets or test.max_detections,
            "precision": precision_of(loaded.model, detector.precision),
            "tta": tta or None,
            "tiles": None if options.tiles is None else str(options.tiles),
            "overrides": list(overrides),
        },
        "score": options.score,
        "class_scores": dict(options.class_scores),
        "class_map": dict(labels.class_map),
        "review": None if labels.review is None else list(labels.review),
    }


def _digest(path: Path) -> str:
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass
class Contents:
    """What is in a data set.

    Attributes:
        images: of each split.
        objects: of each split.
        classes: objects of each class, in the order of the labels.
        empty: images without objects.
        scores: objects by score, a number for each tenth.
        reviews: images to be reviewed, with the reason.
        review_count: their number.
        failed: images that could not be read.
        notes: sentences.
    """

    images: Counter[str] = field(default_factory=Counter)
    objects: Counter[str] = field(default_factory=Counter)
    classes: dict[str, int] = field(default_factory=dict)
    empty: int = 0
    scores: list[int] = field(default_factory=lambda: [0] * BINS)
    reviews: list[tuple[str, str]] = field(default_factory=list)
    review_count: int = 0
    failed: int = 0
    notes: list[str] = field(default_factory=list)

    def count(self, split: str, objects: Sequence[tuple[str, float]]) -> None:
        """Counts an image with the class and score of each object."""
        self.images[split] += 1
        self.objects[split] += len(objects)
        self.empty += not objects
        for name, score in objects:
            self.classes[name] += 1
            self.scores[min(int(score * BINS), BINS - 1)] += 1

    def add_review(self, name: str, reason: str) -> None:
        """Counts an image to be reviewed."""
        self.review_count += 1
        if len(self.reviews) < MAX_REVIEWS:
            self.reviews.append((name, reason))

    def as_dict(self) -> dict[str, Any]:
        """The numbers, for the receipt."""
        return {
            "splits": {split: {"images": self.images[split], "objects": self.objects[split]} for split in self.images},
            "classes": dict(self.classes),
            "images_without_objects": self.empty,
            "scores": list(self.scores),
            "images_to_review": self.review_count,
            "failed": self.failed,
        }


def card(name: str, title: str, facts: Mapping[str, Any], options: DatasetOptions, contents: Contents) -> str:
    """The text of the card, in Markdown.

    Args:
        name: of the data set.
        title: of its layout.
        facts: of `describe_model`.
        options: how the data set is made.
        contents: what is in it.
    """
    total = sum(contents.images.values())
    lines = [
        f"# {plain(name)}",
        "",
        f"{total:,} images from {code(options.source)} with {sum(contents.objects.values()):,} objects, labelled "
        "by a model. Nobody has checked the labels.",
        "",
        "## The model",
        "",
        *table(("", ""), _facts(facts)),
        "",
        "## Contents",
        "",
        *table(
            ("part", "images", "objects"),
            [(split, f"{images:,}", f"{contents.objects[split]:,}") for split, images in contents.images.items()],
        ),
        "",
        f"Layout: {title}. {contents.empty:,} images have no objects.",
        *(f"{sentence}." for sentence in contents.notes),
        "",
        *table(("class", "objects"), [(name, f"{count:,}") for name, count in contents.classes.items()]),
        "",
        "## Scores",
        "",
        "```",
        *_histogram(contents.scores),
        "```",
    ]
    if facts.get("review"):
        low, high = facts["review"]
        lines += ["", "## To be reviewed", ""]
        lines += [
            f"{contents.review_count:,} images have a detection with a score from {low:g} to {high:g}, see review.txt."
        ]
        lines += ["", *(f"- {code(place)}: {plain(reason)}" for place, reason in contents.reviews)]
        if contents.review_count > len(contents.reviews):
            lines.append(f"- and {contents.review_count - len(contents.reviews):,} more")
    lines += ["", "## Use", "", "```bash", "codetr prepare .", "codetr train --data .", "```", ""]
    return "\n".join(lines)


def _facts(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [("made by", f"codetr {facts.get('codetr', __version__)}, `codetr label`"), ("date", str(facts.get("date")))]
    rows += [(key, str(facts.get(key))) for key in ("checkpoint", "sha256", "preset")]
    settings = facts.get("settings", {})
    rows += [(key.replace("_", " "), _value(value)) for key, value in settings.items() if value not in (None, [])]
    rows.append(("lowest score", str(facts.get("score"))))
    rows += [(f"lowest score of {name}", str(score)) for name, score in facts.get("class_scores", {}).items()]
    rows += [(f"class {old}", f"is {new}" if new else "is dropped") for old, new in facts.get("class_map", {}).items()]
    return rows


def _value(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _histogram(counts: Sequence[int]) -> list[str]:
    largest = max(*counts, 1)
    return [
        f"{index / BINS:.1f}-{(index + 1) / BINS:.1f} {count:>9,} {'#' * round(BAR * count / largest)}".rstrip()
        for index, count in enumerate(counts)
    ]
