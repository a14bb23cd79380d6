"""Names of images as a layout can have them: unique, inside their folder, and found again by every reader."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator

from codetr_cli.images.image_files import IMAGE_SUFFIXES, is_debris
from codetr_cli.result_files import folded

MAX_BYTES = 200
"""Of a part of a name: endings of label files and temporary files are added."""
USUAL_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_UNUSABLE = re.compile("[\x00-\x1f\x7f-\x9f\\\\\ud800-\udfff\u2028\u2029]")
_FLAG = re.compile(r"\s(?=(-1|0|1)$)")
_SUFFIX = re.compile(r"\.(jpe?g|png|xml)$", re.IGNORECASE)
_SUFFIX_OF = {"jpeg": ".jpg", "tiff": ".tif", "jp2": ".jp2", "jpeg2000": ".jp2"}


def without_suffix(name: str) -> str:
    """The name of an image without its suffix, if it is one of images: `a.b` is that of no `a`."""
    stem, suffix = os.path.splitext(name)  # noqa: PTH122 (a part of a path)
    return stem if suffix.lower() in IMAGE_SUFFIXES else name


def is_rare(name: str) -> bool:
    """Whether a name of an image has a suffix that trainers for the layouts skip without a word, such as .gif."""
    return not name.lower().endswith(USUAL_SUFFIXES)


class NamePlan:
    """Gives each image its name.

    Readers join a label file to an image by the name without suffix, so two images must differ in it where `by_stem` is
    set; on some systems case and the form of accents do not distinguish names, so they must differ in more than these.

    Args:
        by_stem: whether names must differ before their suffix.
        for_lists: whether names without suffix stand in lists, a line each, where a flag may follow.
    """

    def __init__(self, *, by_stem: bool, for_lists: bool = False) -> None:
        self._by_stem, self._for_lists = by_stem, for_lists
        self._taken: set[int] = set()  # of a million images, their names would need hundreds of megabytes

    def assign(self, scope: str, name: str, file_format: str = "") -> str:
        """A name that no other image of a scope has.

        Args:
            scope: the folder that names must be unique in.
            name: of the source, relative to its folder or absolute.
            file_format: of the file, as in its header; decides the suffix where the name has no usual one.
        """
        parts = [part for part in re.split(r"^[A-Za-z]:|/", name) if part not in (None, "", ".", "..")] or ["image"]
        cleaned = "/".join(_cleaned(part) for part in parts)
        stem = without_suffix(cleaned)
        suffix = cleaned[len(stem) :]
        if not suffix and file_format:
            suffix = _SUFFIX_OF.get(file_format, f".{file_format}")
        if self._for_lists:
            stem = _SUFFIX.sub(r"_\1", _FLAG.sub("_", stem.rstrip()))
        for candidate in _numbered(stem):
            key = _key(scope, folded(candidate if self._by_stem else candidate + suffix))
            if key not in self._taken:
                self._taken.add(key)
                return candidate + suffix
        raise AssertionError("numbers do not end")


def _key(scope: str, name: str) -> int:
    """A number for a name in a scope; should two names have the same one, the second gets a number, too."""
    content = f"{scope}/{name}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


def _numbered(stem: str) -> Iterator[str]:
    yield stem
    number = 2
    while True:
        yield f"{stem}_{number}"
        number += 1


def _cleaned(part: str) -> str:
    """A part of a name without characters that lists, XML or other systems cannot have, and not that of debris."""
    part = _UNUSABLE.sub("_", part).strip()
    if not part or is_debris(part) or part.lower() in ("images", "labels"):
        part = f"_{part}"
    if len(part.encode()) > MAX_BYTES:
        stem, suffix = os.path.splitext(part)  # noqa: PTH122 (a part of a path)
        mark = hashlib.sha1(part.encode(), usedforsecurity=False).hexdigest()[:8]
        suffix = suffix if len(suffix) < 10 else ""
        while len(f"{stem}_{mark}{suffix}".encode()) > MAX_BYTES:
            stem = stem[:-1]
        part = f"{stem}_{mark}{suffix}"
    return part
