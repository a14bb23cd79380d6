"""Class names: the 80 of COCO, and matching of names that data sets spell differently."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from codetr_cli.class_names import plain_class_name

COCO_CATEGORIES = {
    1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus", 7: "train", 8: "truck", 9: "boat",
    10: "traffic light", 11: "fire hydrant", 13: "stop sign", 14: "parking meter", 15: "bench", 16: "bird", 17: "cat",
    18: "dog", 19: "horse", 20: "sheep", 21: "cow", 22: "elephant", 23: "bear", 24: "zebra", 25: "giraffe",
    27: "backpack", 28: "umbrella", 31: "handbag", 32: "tie", 33: "suitcase", 34: "frisbee", 35: "skis",
    36: "snowboard", 37: "sports ball", 38: "kite", 39: "baseball bat", 40: "baseball glove", 41: "skateboard",
    42: "surfboard", 43: "tennis racket", 44: "bottle", 46: "wine glass", 47: "cup", 48: "fork", 49: "knife",
    50: "spoon", 51: "bowl", 52: "banana", 53: "apple", 54: "sandwich", 55: "orange", 56: "broccoli", 57: "carrot",
    58: "hot dog", 59: "pizza", 60: "donut", 61: "cake", 62: "chair", 63: "couch", 64: "potted plant", 65: "bed",
    67: "dining table", 70: "toilet", 72: "tv", 73: "laptop", 74: "mouse", 75: "remote", 76: "keyboard",
    77: "cell phone", 78: "microwave", 79: "oven", 80: "toaster", 81: "sink", 82: "refrigerator", 84: "book",
    85: "clock", 86: "vase", 87: "scissors", 88: "teddy bear", 89: "hair drier", 90: "toothbrush",
}  # fmt: skip

# COCO's name first, then those of Pascal VOC, LVIS and Objects365.
SAME_MEANING = {
    other: words[0]
    for words in (
        ("airplane", "aeroplane"), ("motorcycle", "motorbike"), ("couch", "sofa"),
        ("tv", "tvmonitor", "television", "television set", "monitor/tv", "moniter/tv"),
        ("potted plant", "pottedplant"), ("dining table", "diningtable"), ("tie", "necktie"), ("donut", "doughnut"),
        ("cell phone", "cellular telephone"), ("remote", "remote control"), ("laptop", "laptop computer"),
        ("microwave", "microwave oven"), ("fire hydrant", "fireplug"), ("hair drier", "hair dryer"),
    )
    for other in words[1:]
}  # fmt: skip


def same_classes(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether two lists have the same classes in the same order, ignoring case."""
    return [name.strip().casefold() for name in first] == [name.strip().casefold() for name in second]


def match_names(names: Sequence[str], others: Sequence[str]) -> list[int | None]:
    """For each class, the label of the same class in another list, or None.

    Ignores case, `_`, `-`, and LVIS's additions in parentheses where the name is unique without them. Known synonyms
    match too.
    """
    exact = {plain_class_name(name): label for label, name in reversed(list(enumerate(others)))}
    loose = _by_loose_name(others)
    ours = _by_loose_name(names)
    return [
        exact.get(plain_class_name(name), loose.get(_loose(name)) if _loose(name) in ours else None) for name in names
    ]


def _by_loose_name(names: Sequence[str]) -> dict[str, int]:
    """Labels by loose name, without those that several classes share."""
    counts = Counter(map(_loose, names))
    return {_loose(name): label for label, name in enumerate(names) if counts[_loose(name)] == 1}


def _loose(name: str) -> str:
    plain = re.sub(r" ?\([^)]*\)$", "", plain_class_name(name))
    return SAME_MEANING.get(plain, plain)


def numbered_names(count: int) -> list[str]:
    """Names for classes of which only the number is known."""
    return [f"class_{label + 1}" for label in range(count)]


def same_numbered_classes(
    class_names: Sequence[str], category_ids: Sequence[int], data_category_ids: Sequence[int]
) -> bool:
    """Whether a checkpoint without class names has the category ids of a data set.

    Its classes are then assumed to be the data set's: published LVIS and Objects365 checkpoints have no class names.
    """
    return list(class_names) == numbered_names(len(class_names)) and list(category_ids) == list(data_category_ids)
