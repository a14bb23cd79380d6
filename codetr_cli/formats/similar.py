"""Which images of a data set show nearly the same: copies of one picture, and frames of a video.

Copies belong on one side of a split: a detector that was trained on one knows the other. Frames do, too, as far as that
is possible; pictures of one scene that are taken one after the other look like frames.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from codetr_cli.errors import DatasetError
from codetr_cli.images.decoder import MAX_PIXELS, read_file
from codetr_cli.images.decoder_input import decoder_input
from codetr_cli.images.headers import ImageFileError, header_of

logger = logging.getLogger(__name__)

MAX_COMPARED = 20_000
"""Images whose pixels are compared: half a millisecond for a small JPEG, 60 for a large PNG, and a kilobyte each."""
ANNOUNCED = 200
"""From so many images on, a message says that they are compared."""
THREADS = 4
BITS = 64
SIDE = 32
"""Of the thumbnails, in pixels; a reduced image has at least twice as many, so that its size does not matter."""
MAX_BITS = 8
"""Bits of the hashes of two copies that differ: 8 x 8 signs of the horizontal gradient."""
NEAREST = 20
"""Images that each is compared with, those whose hashes agree best."""
COPY_CORRELATION, COPY_DIFFERENCE = 0.98, 0.2
"""Of the thumbnails of two copies: correlation, and the largest difference of a block of 2 x 2 pixels as a share of
their contrast (standard deviation), both after brightness and contrast are made equal. Different pictures of a fixed
camera or an X-ray correlate by up to 0.999, but differ by more than 0.4 where the object is."""
FRAME_CORRELATION = 0.9
"""Of two images whose names follow each other."""
MIN_CONTRAST = 4.0
"""Of a thumbnail, 0 to 255: below it is mostly noise, and the image is a copy only of a file with the same bytes."""
_AUGMENTED = re.compile(r"(.+)_(?:jpe?g|png|bmp|webp|tiff?|gif|avif)\.rf\.[0-9a-zA-Z]{16,}")
"""Roboflow's name of a copy: that of the original, and a hash."""
_NUMBER = re.compile(r"(\d+)")


class Similar(NamedTuple):
    """Groups of N images, each named by its first image.

    Attributes:
        copies: the group of each image (N): copies of one picture.
        frames: the group of each image (N): copies, and images that follow each other and look alike.
        is_compared: whether pixels were compared; else only names.
        unreadable: images that could not be read, so that their pixels were not compared.
    """

    copies: list[int]
    frames: list[int]
    is_compared: bool
    unreadable: int = 0


class _Picture(NamedTuple):
    """What is kept of an image: a digest of its bytes, signs (64) int8, and a thumbnail (SIDE * SIDE) uint8."""

    digest: bytes
    signs: np.ndarray
    thumbnail: np.ndarray


def similar_groups(paths: Sequence[Path], advance: Callable[[int], object] | None = None) -> Similar:
    """Groups of similar images; groups are chains of similar pairs. Files that cannot be read are similar to none.

    Args:
        paths: of N images. Of more than `MAX_COMPARED`, only the names are compared: numbers that follow each other are
            taken for frames.
        advance: called with the number of images that were read since the last call; None: a message announces that
            many are compared.
    """
    copies, frames = _Chains(len(paths)), _Chains(len(paths))
    order = sorted(range(len(paths)), key=lambda index: name_order(paths[index]))
    following = [(first, second) for first, second in pairwise(order) if paths[first].parent == paths[second].parent]
    copies.join(_augmented(paths))
    is_compared, unreadable = len(paths) <= MAX_COMPARED, 0
    if is_compared:
        if len(paths) >= ANNOUNCED and advance is None:
            logger.info("comparing %s images once, to keep similar ones in one part", f"{len(paths):,}")
        with ThreadPoolExecutor(THREADS) as pool:
            pictures = []
            for picture in pool.map(_picture, paths):
                pictures.append(picture)
                if advance is not None:
                    advance(1)
        unreadable = pictures.count(None)
        copies.join(_alike(pictures))
        frames.join(pair for pair in following if _correlation(pictures, *pair) >= FRAME_CORRELATION)
    else:
        frames.join(pair for pair in following if _is_next(paths[pair[0]].name, paths[pair[1]].name))
    frames.join(enumerate(copies.groups()))
    return Similar(copies.groups(), frames.groups(), is_compared, unreadable)


class _Chains:
    """Groups that grow by pairs."""

    def __init__(self, count: int) -> None:
        self._parents = list(range(count))

    def join(self, pairs: Iterator[tuple[int, int]] | enumerate[int]) -> None:
        for first, second in pairs:
            low, high = sorted((self._root(first), self._root(second)))
            self._parents[high] = low

    def groups(self) -> list[int]:
        return [self._root(index) for index in range(len(self._parents))]

    def _root(self, index: int) -> int:
        parents = self._parents
        while parents[index] != index:
            parents[index] = index = parents[parents[index]]
        return index


def name_order(path: Path) -> tuple[str, list[tuple[int, str]]]:
    """A key that sorts names of a folder as people count: frame 9 before frame 10."""
    words = _NUMBER.split(path.name)
    return str(path.parent), [(int(word[:18]), "") if word.isdecimal() else (-1, word) for word in words]


def _is_next(first: str, second: str) -> bool:
    """Whether two names differ in one number, which is one larger."""
    before, after = _NUMBER.split(first), _NUMBER.split(second)
    different = [(one, two) for one, two in zip(before, after, strict=False) if one != two]
    if len(before) != len(after) or len(different) != 1:
        return False
    one, two = different[0]
    return one.isdecimal() and two.isdecimal() and int(two[:18]) == int(one[:18]) + 1


def _augmented(paths: Sequence[Path]) -> Iterator[tuple[int, int]]:
    """Pairs of augmented copies of one image, by their names."""
    first: dict[str, int] = {}
    for index, path in enumerate(paths):
        match = _AUGMENTED.match(path.name)
        if match:
            yield first.setdefault(match[1], index), index


def _alike(pictures: Sequence[_Picture | None]) -> Iterator[tuple[int, int]]:
    """Pairs of copies, by their bytes or pixels."""
    first: dict[bytes, int] = {}
    for index, picture in enumerate(pictures):
        if picture is not None:
            yield first.setdefault(picture.digest, index), index
    known = [index for index in first.values() if _contrast(pictures[index]) >= MIN_CONTRAST]
    if len(known) < 2:
        return
    signs = np.array([picture.signs for index in known if (picture := pictures[index])], np.float32)
    chunk = 1024
    for start in range(0, len(known), chunk):
        agreement = signs[start : start + chunk] @ signs.T
        for row, agreements in enumerate(agreement, start):
            agreements[row:] = -BITS  # each pair once
            count = min(NEAREST, len(agreements) - 1)
            nearest = np.argpartition(agreements, -count)[-count:]
            for other in nearest[agreements[nearest] >= BITS - 2 * MAX_BITS].tolist():
                if _are_copies(pictures[known[other]], pictures[known[row]]):
                    yield known[other], known[row]


def _are_copies(first: _Picture | None, second: _Picture | None) -> bool:
    if first is None or second is None:
        return False
    one, two = _normalized(first), _normalized(second)
    if float(one @ two) / one.size < COPY_CORRELATION:
        return False
    difference = np.abs(one - two).reshape(SIDE, SIDE)
    return float(cv2.blur(difference, (2, 2)).max()) <= COPY_DIFFERENCE


def _correlation(pictures: Sequence[_Picture | None], first: int, second: int) -> float:
    one, two = pictures[first], pictures[second]
    if one is None or two is None:
        return 0.0
    return float(_normalized(one) @ _normalized(two)) / one.thumbnail.size


def _normalized(picture: _Picture) -> np.ndarray:
    """The thumbnail (SIDE * SIDE) float32 with mean 0 and standard deviation 1; zeros if it is of one colour."""
    values = picture.thumbnail.astype(np.float32)
    values -= values.mean()
    return values / max(float(values.std()), 1e-3)


def _contrast(picture: _Picture | None) -> float:
    return 0.0 if picture is None else float(picture.thumbnail.std())


def _picture(path: Path) -> _Picture | None:
    """What is kept of an image; None if it cannot be read."""
    try:
        content = read_file(path)
        header = header_of(content)
        if header.excess(MAX_PIXELS):
            return None
        shrink = next((each for each in (8, 4, 2) if min(header.size) >= 2 * SIDE * each), 1)
        flags = _REDUCED[shrink] | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(np.frombuffer(decoder_input(content, header), np.uint8), flags)
    except (DatasetError, ImageFileError, cv2.error):
        return None
    if image is None:
        return None
    resized: Callable[[int, int], np.ndarray] = lambda width, height: np.asarray(  # noqa: E731
        cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    )
    small = resized(9, 8).astype(np.int16)
    signs = np.where(small[:, 1:] > small[:, :-1], 1, -1).astype(np.int8).ravel()
    digest = hashlib.sha1(content, usedforsecurity=False).digest()
    return _Picture(digest, signs, resized(SIDE, SIDE).ravel())


_REDUCED = {
    1: cv2.IMREAD_GRAYSCALE,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
