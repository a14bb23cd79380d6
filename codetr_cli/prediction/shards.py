"""Results in shards: files of a fixed number of images, in the order of the inputs, as JSON Lines or Parquet.

A shard gets its name when it is whole. The index is written after the last shard and removed before the first one is
replaced: where it is, all shards are, and they are of one command.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Protocol

from codetr_cli.prediction.parquet import detections_type, import_pyarrow
from codetr_cli.prediction.results import ImageResult
from codetr_cli.prediction.targets import OutputTarget, OutputWriter
from codetr_cli.result_files import ResultRecord, write_result

ROWS_TOGETHER = 1000
"""Of a Parquet file: a reader needs the memory of so many images."""
DETECTION_KEYS = ("bbox", "score", "category_id", "category_name", "segmentation", "mask_score")


class RowFile(Protocol):
    """An open file of rows."""

    def add(self, row: dict[str, Any]) -> None:
        """Writes a row."""

    def close(self) -> None:
        """Writes what is left; the file is whole."""


def shard_name(kind: str, number: int) -> str:
    """The file name of a shard: predictions-00000.jsonl, ..."""
    return f"predictions-{number:05}.{kind}"


def index_name(kind: str) -> str:
    """The file name of the list of all shards."""
    return f"predictions-{kind}.json"


def shard_names(kind: str, images: int, shard_size: int) -> list[str]:
    """All files of a format for so many images; the index is the last one."""
    return [*(shard_name(kind, number) for number in range(-(-images // shard_size))), index_name(kind)]


def image_row(result: ImageResult, target: OutputTarget) -> dict[str, Any]:
    """What a shard says of an image: the same keys for each, also for one that cannot be read."""
    facts = result.image or {}
    of_input = target.images[result.number] if result.number < len(target.images) else None
    return {
        "file": result.file,
        "file_name": facts.get("file_name", of_input and of_input.name),
        "image_id": facts.get("image_id", of_input and of_input.image_id),
        "height": facts.get("height"),
        "width": facts.get("width"),
        "detections": [{key: record[key] for key in DETECTION_KEYS if key in record} for record in result.records],
        "error": result.error,
    }


class _JsonLines:
    def __init__(self, path: Path) -> None:
        # Bytes of file names that are not UTF-8 are written as JSON's \udc80 to \udcff.
        self._file: IO[str] = path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n")

    def add(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def close(self) -> None:
        self._file.close()


class _Parquet:
    """One row an image, whose detections are a list of structures: images without detections have a row, too."""

    def __init__(self, path: Path) -> None:
        self._arrow = import_pyarrow()
        self._schema = _schema(self._arrow)
        self._writer = importlib.import_module("pyarrow.parquet").ParquetWriter(path, self._schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append({key: _utf_8(value) for key, value in row.items()})
        if len(self._rows) >= ROWS_TOGETHER:
            self._write()

    def _write(self) -> None:
        if self._rows:
            self._writer.write_table(self._arrow.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []

    def close(self) -> None:
        self._write()
        self._writer.close()


def _utf_8(value: Any) -> Any:
    """Text without the bytes of file names that are not UTF-8, which are written as in JSON."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _schema(arrow: Any) -> Any:
    return arrow.schema(
        [
            *((name, arrow.string()) for name in ("file", "file_name")),
            ("image_id", arrow.int64()),
            *((name, arrow.int32()) for name in ("height", "width")),
            ("detections", detections_type(arrow)),
            ("error", arrow.string()),
        ]
    )


class _Shards:
    """Writes one shard after the other."""

    def __init__(self, target: OutputTarget, kind: str, open_file: Callable[[Path], RowFile]) -> None:
        self._target, self._kind, self._open = target, kind, open_file
        self._record = ResultRecord(target.folder)
        self._stack = ExitStack()
        self._file: RowFile | None = None
        self.shards: list[dict[str, Any]] = []

    def add(self, result: ImageResult) -> None:
        if self._file is None:
            self._begin()
        assert self._file is not None
        self._file.add(image_row(result, self._target))
        shard = self.shards[-1]
        shard["images"] += 1
        shard["detections"] += len(result.records)
        shard["failed"] += result.error is not None
        if shard["images"] >= self._target.shard_size:
            self.end()

    def _begin(self) -> None:
        name = shard_name(self._kind, len(self.shards))
        temporary = self._stack.enter_context(self.writing(name))
        self._file = self._open(temporary)
        self.shards.append({"file": name, "images": 0, "detections": 0, "failed": 0})

    def end(self) -> None:
        """Completes the open shard."""
        if self._file is not None:
            self._file.close()
            self._stack.close()
        self._file = None

    def abandon(self, error: BaseException) -> None:
        """Deletes the open shard."""
        if self._file is not None:
            with suppress(Exception):
                self._file.close()
        self._stack.__exit__(type(error), error, error.__traceback__)

    def writing(self, name: str) -> Any:
        """A file of the results, as of `result_files.write_result`."""
        target = self._target
        return write_result(
            target.folder / name,
            by="predict",
            force=target.force,
            request=target.request,
            scratch=target.scratch,
            record=self._record,
        )


def remove_earlier(target: OutputTarget, name: str) -> bool:
    """Removes an earlier result if it is one that may be replaced; whether there was one."""
    path = target.folder / name
    found = os.path.lexists(path) and ResultRecord(target.folder).may_write(
        path, force=target.force, request=target.request
    )
    if found:
        path.unlink()
    return found


@contextmanager
def open_shards(target: OutputTarget, kind: str, open_file: Callable[[Path], RowFile]) -> Iterator[OutputWriter]:
    """Writes `predictions-00000.KIND`, ... and their index.

    Args:
        target: where.
        kind: suffix of the files.
        open_file: opens a file of rows.
    """
    shards = _Shards(target, kind, open_file)
    remove_earlier(target, index_name(kind))
    try:
        yield shards
        shards.end()
    except BaseException as error:
        shards.abandon(error)
        raise
    number = len(shards.shards)
    while remove_earlier(target, shard_name(kind, number)):  # of an earlier result with more shards
        number += 1
    classes = [
        {"id": identity, "name": name} for identity, name in zip(target.category_ids, target.class_names, strict=True)
    ]
    totals = {key: sum(shard[key] for shard in shards.shards) for key in ("images", "detections", "failed")}
    index = {**totals, "shard_size": target.shard_size, "shards": shards.shards, "categories": classes}
    with shards.writing(index_name(kind)) as temporary:
        temporary.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


@contextmanager
def open_jsonl(target: OutputTarget) -> Iterator[OutputWriter]:
    """Writes JSON Lines, an image a line."""
    with open_shards(target, "jsonl", _JsonLines) as writer:
        yield writer


@contextmanager
def open_parquet(target: OutputTarget) -> Iterator[OutputWriter]:
    """Writes Parquet, an image a row."""
    import_pyarrow()
    with open_shards(target, "parquet", _Parquet) as writer:
        yield writer
