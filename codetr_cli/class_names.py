"""When two class names are the same: regardless of case, spaces, `_` and `-`."""

from __future__ import annotations

import re


def plain_class_name(name: str) -> str:
    """The form in which class names are compared: lower case, words separated by single spaces."""
    return " ".join(re.split(r"[\s_-]+", name.strip().casefold()))
