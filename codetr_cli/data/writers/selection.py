"""Which images and classes of a data set are written: `--classes` and `--sample`."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from codetr_cli.data.writers.content import WrittenClasses
from codetr_cli.data.writers.source import SourceSplit
from codetr_cli.errors import ConfigError, nearest


def choose_classes(
    splits: Sequence[SourceSplit],
    classes: WrittenClasses,
    wanted: Sequence[str] | None,
    counts: Counter[str],
    *,
    keep_empty: bool,
) -> WrittenClasses:
    """Keeps the objects of some classes, and the images with any of them; ids stay.

    Args:
        splits: whose `labels` and `rows` are set.
        classes: all of them.
        wanted: names of classes, each text one or several with commas between them; None: all classes.
        counts: of `content.NOTES`.
        keep_empty: keep images without any.

    Returns:
        the chosen classes.

    Raises:
        ConfigError: there is no class of a name.
    """
    keep = range(len(classes.ids)) if wanted is None else _labels(classes.names, wanted)
    chosen = WrittenClasses(
        [classes.names[label] for label in keep],
        [classes.ids[label] for label in keep],
        {
            split: _records(records, {classes.ids[label] for label in keep})
            for split, records in classes.records.items()
        },
    )
    new = {category_id: label for label, category_id in enumerate(chosen.ids)}
    for split in splits:
        split.labels = np.array([new.get(each, -1) for each in split.annotations.category_ids], np.int64)
        if wanted is None:
            continue
        counts["other_class"] += split.other_objects()
        if not keep_empty:
            labels = split.annotations.labels
            rows = split.annotations.image_rows[split.labels[labels] >= 0] if len(labels) else labels
            kept = np.intersect1d(split.rows, rows)
            counts["without_class"] += len(split.rows) - len(kept)
            split.rows = kept
    return chosen


def choose_sample(splits: Sequence[SourceSplit], size: int, counts: Counter[str]) -> None:
    """Keeps `size` images of all splits together, always the same of the same data set.

    Each split gets its share, at least one image. Images are taken in the order of the SHA-1 of their names: first,
    from the rarest class on, one of each class that none has yet, then any.

    Args:
        splits: whose `rows` are set.
        size: number of images.
        counts: of `content.NOTES`.
    """
    shares = _shares([len(split.rows) for split in splits], size)
    for split, share in zip(splits, shares, strict=True):
        kept = _sample(split, share)
        counts["not_sampled"] += len(split.rows) - len(kept)
        split.rows = kept


def _labels(names: list[str], wanted: Sequence[str]) -> list[int]:
    """The labels of classes by their names, ascending."""
    chosen: set[int] = set()
    for text in wanted:
        parts = [text] if text in names else [part.strip() for part in text.split(",") if part.strip()]
        for part in parts:
            found = [label for label, name in enumerate(names) if name == part]
            if not found:
                raise ConfigError(f"--classes {text}: there is no class {part!r}; {nearest(part, names)}")
            chosen.update(found)
    if not chosen:
        raise ConfigError("--classes names no class: give names with commas between them, e.g. --classes cat,dog")
    return sorted(chosen)


def _records(records: list[dict[str, object]], ids: set[int]) -> list[dict[str, object]]:
    return [record for record in records if record.get("id") in ids]


def _shares(counts: list[int], size: int) -> list[int]:
    """The images that each split gives, in proportion to its own, at least one if it has any."""
    total = sum(counts)
    if size >= total:
        return counts
    shares = [min(count, max(1, size * count // total)) for count in counts]
    order = sorted(range(len(counts)), key=lambda index: -(size * counts[index] % total))
    while sum(shares) < size:  # the largest remainders first
        for index in order:
            if sum(shares) < size and shares[index] < counts[index]:
                shares[index] += 1
    while sum(shares) > max(size, 0) and max(shares) > 1:
        shares[shares.index(max(shares))] -= 1
    while sum(shares) > size:  # fewer images than splits
        shares[max(index for index, share in enumerate(shares) if share)] -= 1
    return shares


def _sample(split: SourceSplit, size: int) -> np.ndarray:
    names = split.annotations.file_names
    order = sorted(split.rows.tolist(), key=lambda row: _digest(names[row]))
    if size >= len(order):
        return split.rows
    image_rows, labels = split.classes_of_images()
    allowed = np.isin(image_rows, split.rows)
    classes_of: dict[int, set[int]] = {}
    for row, label in zip(image_rows[allowed].tolist(), labels[allowed].tolist(), strict=True):
        classes_of.setdefault(row, set()).add(label)
    first: dict[int, int] = {}
    for row in order:
        for label in classes_of.get(row, ()):
            first.setdefault(label, row)
    images = Counter(label for found in classes_of.values() for label in found)
    chosen: dict[int, None] = {}
    seen: set[int] = set()
    for label in sorted(first, key=lambda label: (images[label], label)):
        if label not in seen and len(chosen) < size:
            chosen[first[label]] = None
            seen |= classes_of[first[label]]
    for row in order:
        if len(chosen) >= size:
            break
        chosen.setdefault(row)
    return np.array(sorted(chosen), np.int64)


def _digest(name: str) -> bytes:
    return hashlib.sha1(name.encode(errors="surrogateescape"), usedforsecurity=False).digest()
