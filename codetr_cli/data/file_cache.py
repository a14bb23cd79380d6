"""The newest image files in memory as they lie on the disk, for disks and networks that are slower than decoding.

A cache belongs to one process: each worker has its own. Encoded files are a tenth of the size of their pixels. What is
read is the same with and without.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

from codetr_cli.data.images import read_file


class FileCache:
    """Reads files and keeps those that were used last.

    Args:
        limit_bytes: never keeps more; 0 keeps nothing.

    Attributes:
        size: bytes kept.
    """

    def __init__(self, limit_bytes: int = 0) -> None:
        self.limit_bytes = limit_bytes
        self.size = 0
        self._files: OrderedDict[Path, bytes] = OrderedDict()

    def read(self, path: Path, *, check: str | None = None) -> bytes:
        """The bytes of a file; arguments and errors as of `codetr_cli.data.images.read_file`."""
        content = self._files.get(path)
        if content is not None:
            self._files.move_to_end(path)
            return content
        content = read_file(path, check=check)
        if len(content) <= self.limit_bytes:
            while self.size + len(content) > self.limit_bytes:
                self.size -= len(self._files.popitem(last=False)[1])
            self._files[path] = content
            self.size += len(content)
        return content

    def __len__(self) -> int:
        """Files kept."""
        return len(self._files)
