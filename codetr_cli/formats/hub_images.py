"""Images inside parquet files, written to the cache once, since training reads images in any order.

They have the names that the rows state, without folders, or else the number of the row; nothing in a row decides where
a file is written. Rows are read a few at a time. `codetr cache clear` removes the images.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from codetr_cli.annotations.cache import IMAGES, cache_folder, find_conversion, finish_conversion, writing_to_cache
from codetr_cli.errors import DatasetError, ResourceError
from codetr_cli.files import real_path, replace_folder
from codetr_cli.images.image_files import IMAGE_SUFFIXES, is_debris
from codetr_cli.reading import open_file

BATCH_ROWS = 16
MAX_ROWS = 2_000_000
"""Objects365 has 1.7 million images."""
MAX_GROWTH = 100
"""Images may be so many times larger than the files that they are in: they are compressed already."""
SPARE_BYTES = 1 << 30
MAX_STRING_BYTES = 256 << 20
"""Of the description of a file's columns."""
SHAPE = {"row_names": {str: [str]}, "bytes": int}
"""The shape of a summary, see `cache.has_shape`."""
_PLAIN_NAME = re.compile(r"[\w][\w .()+,=@-]{0,150}")
_MAGIC = (
    (b"\xff\xd8", ".jpg"),
    (b"\x89PNG", ".png"),
    (b"GIF8", ".gif"),
    (b"BM", ".bmp"),
    (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"),
)


@contextmanager
def open_parquet(path: Path) -> Iterator[Any]:
    """A parquet file, by pyarrow, closed at the end.

    Raises:
        ResourceError: pyarrow is not installed.
        DatasetError: not a regular file, or not parquet.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ResourceError(
            f"{path} is a parquet file, and pyarrow, which reads these, is not installed: install it with pip install "
            "'codetr-cli[parquet]' (or pip install pyarrow)"
        ) from error
    try:
        source = open_file(path)
    except OSError as error:
        raise _error(path, error) from error
    with source:
        try:
            file = pyarrow.parquet.ParquetFile(
                source,
                buffer_size=1 << 20,
                pre_buffer=False,
                thrift_string_size_limit=MAX_STRING_BYTES,
                thrift_container_size_limit=10_000_000,
            )
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise _error(path, error) from error
        yield file


def rows(path: Path, columns: Sequence[str], batch_rows: int) -> Iterator[dict[str, Any]]:
    """The rows of a parquet file, a few in memory at a time.

    Raises:
        DatasetError: it is damaged.
    """
    with open_parquet(path) as file:
        import pyarrow

        try:
            for batch in file.iter_batches(batch_rows, columns=list(columns), use_threads=False):
                yield from batch.to_pylist()
        except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
            raise _error(path, error) from error


def _error(path: Path, error: Exception) -> DatasetError:
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    return DatasetError(f"{path} cannot be read as parquet: {text:.300}. Download or write it again")


def extract(folder: Path, files: Sequence[tuple[str, str]], column: str) -> tuple[Path, dict[str, list[str]], int]:
    """Writes the images of parquet files to the cache, or finds them there.

    Args:
        folder: of the data set.
        files: their names relative to it, and the split of each.
        column: that has the images, as bytes or as tables with `bytes` and `path`.

    Returns:
        the folder of the images; by file, the names of the images of its rows, relative to that folder, empty for a row
        that has none inside; the bytes of all images.

    Raises:
        DatasetError: a file is damaged, or its images are far too large.
        ResourceError: the cache has no space for them.
    """
    place = real_path(folder)
    digest = hashlib.sha256(f"1\0{column}\0{place}".encode(errors="surrogateescape"))
    sizes = []
    for name, split in files:
        status = (place / name).stat()
        sizes.append(status.st_size)
        text = f"\0{split}\0{name}\0{status.st_size}\0{status.st_mtime_ns}"
        digest.update(text.encode(errors="surrogateescape"))
    target = cache_folder() / f"{place.name}-{digest.hexdigest()[:16]}-images"
    images = target / IMAGES
    summary = find_conversion(target, SHAPE)
    if summary is None or _count(images) != _total(summary["row_names"]):
        with writing_to_cache():
            target.mkdir(parents=True, exist_ok=True)
            _check_space(place, files, target)
            row_names: dict[str, list[str]] = {}
            with replace_folder(images) as temporary:
                writer = _Writer(temporary, MAX_GROWTH * sum(sizes) + SPARE_BYTES)
                for name, split in files:
                    row_names[name] = [
                        writer.add(row[column], split, place / name) for row in _rows(place, name, column)
                    ]
            table = {"images_dir": str(images), "folders": [str(place)], "names": {}}
            summary = finish_conversion(target, [], {**table, "row_names": row_names, "bytes": writer.bytes})
    return images, summary["row_names"], summary["bytes"]


def _rows(place: Path, name: str, column: str) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(rows(place / name, [column], BATCH_ROWS)):
        if number >= MAX_ROWS:
            raise DatasetError(f"{place / name} has more than {MAX_ROWS:,} rows, the limit")
        yield row


def _total(row_names: Mapping[str, list[str]]) -> int:
    return sum(bool(name) for names in row_names.values() for name in names)


def _count(images: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(images))


def _check_space(place: Path, files: Sequence[tuple[str, str]], target: Path) -> None:
    """Raises a ResourceError if the disk of the cache has too little space for the images, as the files state it."""
    needed = 0
    for name, _ in files:
        with open_parquet(place / name) as file:
            metadata = file.metadata
            needed += sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))
    free = shutil.disk_usage(target).free
    if needed > free:
        raise ResourceError(
            f"the images in the parquet files of {place} need about {needed / 1e9:,.1f} GB in the cache, and the disk "
            f"of {target.parent} has {free / 1e9:,.1f} GB free. Free space there, or choose another folder with the "
            "environment variable CODETR_CACHE"
        )


class _Writer:
    """Writes images to a folder of each split."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.bytes = 0
        self._folder, self._limit = folder, limit
        self._names: dict[str, set[str]] = {}

    def add(self, value: Any, split: str, source: Path) -> str:
        """Writes the image of a row; returns its name, empty if the row has none inside."""
        content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        if not isinstance(content, bytes) or not content:
            return ""
        self.bytes += len(content)
        if self.bytes > self._limit:
            raise DatasetError(
                f"{source}: its images are more than {MAX_GROWTH} times as large as the file, as no images are"
            )
        part = split or "all"
        taken = self._names.setdefault(part, set())
        if not taken:
            (self._folder / part).mkdir(exist_ok=True)
        name = _plain_name(path)
        if not name or name.casefold() in taken:
            name = f"{len(taken) + 1:08d}{_suffix(content)}"
            while name.casefold() in taken:
                name = f"_{name}"
        taken.add(name.casefold())
        (self._folder / part / name).write_bytes(content)
        return f"{part}/{name}"


def _plain_name(path: Any) -> str:
    """The name of a file in a path, if every system can have it and it is that of an image."""
    if not isinstance(path, str):
        return ""
    name = re.split(r"[/\\]", path)[-1]
    usable = _PLAIN_NAME.fullmatch(name) and not is_debris(name) and Path(name).suffix.lower() in IMAGE_SUFFIXES
    return name if usable and len(name.encode(errors="replace")) < 200 else ""


def _suffix(content: bytes) -> str:
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return ".webp"
    return next((suffix for magic, suffix in _MAGIC if content.startswith(magic)), "")
