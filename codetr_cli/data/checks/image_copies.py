"""Finds image files with the same content, within a split and in two of them, without opening any other file again.

By what reading a header yields anyway, the size of the file and the bytes at its start, nearly all images differ.
Only files that agree in both are read as a whole.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from codetr_cli.annotations.findings import Findings
from codetr_cli.reading import open_file

MAX_FILES = 20_000
"""Files that are read as a whole, at most."""
MAX_BYTES = 8 << 30
"""Of all of them."""
CHUNK_BYTES = 1 << 20


@dataclass
class _Part:
    """The readable image files of a split."""

    where: str
    folder: Path
    names: list[str] = field(default_factory=list)
    sizes: array[int] = field(default_factory=lambda: array("Q"))
    starts: array[int] = field(default_factory=lambda: array("Q"))


class ImageCopies:
    """Collects the image files of all splits, then compares them."""

    def __init__(self) -> None:
        self._parts: list[_Part] = []

    def start(self, where: str, folder: Path) -> None:
        """Begins a split, whose name in messages is `where`, with the folder that its names are relative to."""
        self._parts.append(_Part(where, folder))

    def add(self, files: Sequence[tuple[str, int, int]]) -> None:
        """Adds files of the split: name, size in bytes, and a checksum of the start."""
        part = self._parts[-1]
        for name, size, start in files:
            part.names.append(name)
            part.sizes.append(size)
            part.starts.append(start)

    def report(self, findings: Findings, workers: int) -> None:
        """Adds findings about equal files; each is compared with the first one of its content.

        Args:
            findings: of the data set.
            workers: threads that read files.
        """
        if not self._parts:
            return
        candidates, ignored = self._candidates()
        with ThreadPoolExecutor(workers) as pool:
            digests = list(pool.map(self._digest, candidates))
        if ignored:
            findings.add("copies_not_compared", self._parts[0].where, count=ignored)
        first: dict[bytes, dict[int, str]] = defaultdict(dict)
        for (number, name), digest in zip(candidates, digests, strict=True):
            if digest is None:
                continue
            part, known = self._parts[number], first[digest]
            if number in known:
                if os.path.normpath(name) == os.path.normpath(known[number]):
                    continue  # one file of two records, which is reported as such
                findings.add("duplicate_image", part.where, f"{name} = {known[number]}")
                continue
            for other, same in known.items():
                findings.add("leaked_image", part.where, f"{name} = {self._parts[other].where}{same}")
                break
            known[number] = name

    def _candidates(self) -> tuple[list[tuple[int, str]], int]:
        """The split and name of each file that may be equal to another, and the number of those beyond the limits."""
        parts = np.concatenate([np.full(len(part.names), number) for number, part in enumerate(self._parts)])
        sizes = np.concatenate([np.array(part.sizes, np.uint64) for part in self._parts])
        starts = np.concatenate([np.array(part.starts, np.uint64) for part in self._parts])
        order = np.lexsort((starts, sizes))
        same = (sizes[order[1:]] == sizes[order[:-1]]) & (starts[order[1:]] == starts[order[:-1]])
        rows = np.unique(np.concatenate([order[1:][same], order[:-1][same]]))
        fitting = int(np.searchsorted(np.cumsum(sizes[rows]), MAX_BYTES, side="right"))
        kept = rows[: min(fitting, MAX_FILES)]
        before = np.cumsum([0, *(len(part.names) for part in self._parts)])
        found = [
            (number, self._parts[number].names[row - before[number]])
            for row, number in zip(kept.tolist(), parts[kept].tolist(), strict=True)
        ]
        return found, len(rows) - len(kept)

    def _digest(self, candidate: tuple[int, str]) -> bytes | None:
        """A checksum of the content of a file; None if it cannot be read any more."""
        number, name = candidate
        digest = hashlib.blake2b(digest_size=16)
        try:
            with open_file(os.path.join(self._parts[number].folder, name)) as file:  # noqa: PTH118
                while chunk := file.read(CHUNK_BYTES):
                    digest.update(chunk)
        except OSError:
            return None
        return digest.digest()
