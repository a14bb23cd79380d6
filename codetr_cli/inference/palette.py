"""The colours of classes: by their names, so that a class looks the same in every image and for every network."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

Colour = tuple[int, int, int]

PALETTE: tuple[Colour, ...] = (
    *((0, 120, 225), (255, 150, 0), (180, 0, 0), (0, 225, 255), (240, 60, 120), (105, 165, 255), (135, 60, 135)),
    *((195, 240, 120), (195, 60, 180), (120, 210, 135), (15, 45, 255), (120, 135, 0), (210, 120, 195), (165, 60, 90)),
    *((120, 45, 195), (255, 105, 150), (255, 195, 0), (255, 150, 195), (255, 105, 240), (105, 195, 75), (255, 30, 0)),
    *((165, 75, 135), (225, 15, 255), (0, 255, 180), (150, 225, 105), (195, 105, 150), (240, 0, 210), (210, 60, 90)),
    *((150, 0, 165), (120, 105, 195), (30, 195, 180), (90, 180, 105), (195, 45, 45), (45, 165, 60), (105, 30, 225)),
    *((0, 210, 210), (150, 60, 165), (240, 225, 60), (135, 120, 210), (255, 180, 255)),
)
"""RGB. Each one was chosen as far from those before it as possible: the smallest of the distances in OKLab that people
with full colour vision, protanopia, deuteranopia and tritanopia see (simulation of Machado et al., 2009)."""

FIRST = 16
"""Colours that are used before the others, which are more alike."""


def class_colours(names: Iterable[str]) -> Mapping[str, Colour]:
    """The colour of each of some classes.

    A class has the colour that a hash of its name chooses, unless another class of the list has it; then the next free
    one. The order of the names does not matter. Lists of more classes than there are colours use all equally often.
    """
    return _class_colours(frozenset(names))


@lru_cache(maxsize=16)
def _class_colours(names: frozenset[str]) -> Mapping[str, Colour]:
    uses = [0] * len(PALETTE)
    chosen: dict[str, Colour] = {}
    for number, name in sorted((_hash(name), name) for name in names):
        index = _least_used(number, uses)
        uses[index] += 1
        chosen[name] = PALETTE[index]
    return chosen


def class_colour(name: str) -> Colour:
    """The colour of a class alone."""
    return PALETTE[_hash(name) % FIRST]


def _least_used(number: int, uses: Sequence[int]) -> int:
    """The first colour from a hash on among those of the smallest group with a free one, else the least used one."""
    groups = (range(FIRST), range(FIRST, len(uses)))
    free = next((group for group in groups if min(uses[i] for i in group) == 0), range(len(uses)))
    order = [free[(number + step) % len(free)] for step in range(len(free))]
    return min(order, key=uses.__getitem__)


def _hash(name: str) -> int:
    content = name.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


def ink_on(colour: Colour) -> Colour:
    """Black or white, whichever contrasts more with a background."""
    red, green, blue = ((value / 255) ** 2.2 for value in colour)
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return (0, 0, 0) if luminance > 0.2 else (255, 255, 255)
