"""Names of classes: which characters they may have, and when two of them are the same."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

MAX_NAME = 1000  # characters


def plain_class_name(name: str) -> str:
    """The form in which class names are compared: lower case, words separated by single spaces."""
    return " ".join(re.split(r"[\s_-]+", name.strip().casefold()))


def alike_names(names: Iterable[str]) -> list[list[str]]:
    """Groups of different names that have the same plain form, such as Cat and cat."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        groups.setdefault(plain_class_name(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def has_control_characters(text: str) -> bool:
    """Whether a text has characters that act on a terminal (C0, DEL, C1) or that UTF-8 cannot hold (surrogates).

    Format characters, e.g. the joiners of Persian words and of emoji, are part of honest names.
    """
    return any(unicodedata.category(character) in ("Cc", "Cs") for character in text)


def spaced_class_name(name: str) -> str:
    r"""A name with a space for each tab, line break or other white space that is a control character."""
    return re.sub(r"[\t-\r\x1c-\x1f\x85]", " ", name)


def storable_class_name(name: str) -> str:
    r"""The name as checkpoints hold it: white space as spaces, other control characters as text such as `\x1b`.

    A name of more than `MAX_NAME` characters is cut. Most names stay as they are.
    """
    spaced = spaced_class_name(name)
    if has_control_characters(spaced):
        shown = (ascii(each)[1:-1] if has_control_characters(each) else each for each in spaced)
        spaced = "".join(shown)
    return spaced if len(spaced) <= MAX_NAME else spaced[: MAX_NAME - 3] + "..."
