"""The result files of a prediction, written from the results of all images in the order of the inputs."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from codetr_cli.data.writers.folder import RECEIPT
from codetr_cli.distributed.part_files import has_parts
from codetr_cli.errors import ConfigError, nearest
from codetr_cli.prediction.labels.card import NAME as CARD_NAME
from codetr_cli.prediction.labels.crops import FOLDER as CROPS
from codetr_cli.prediction.labels.crops import remove_crops
from codetr_cli.prediction.labels.dataset import open_dataset
from codetr_cli.prediction.labels.layouts import CSV_NAME, FOLDERS, LAYOUT_WRITERS, check_class_names, taken_folder
from codetr_cli.prediction.labels.options import LabelOptions
from codetr_cli.prediction.labels.review import LIST_NAME, REASONS_NAME, open_review
from codetr_cli.prediction.parquet import import_pyarrow
from codetr_cli.prediction.results import ImageResult
from codetr_cli.prediction.shards import (
    image_row,
    open_jsonl,
    open_parquet,
    remove_earlier,
    shard_name,
    shard_names,
)
from codetr_cli.prediction.targets import SHARD_SIZE, OpenWriter, OutputTarget, OutputWriter
from codetr_cli.result_files import write_result

__all__ = [
    "CROPS",
    "OutputTarget",
    "OutputWriter",
    "check_class_names",
    "check_formats",
    "remove_crops",
    "result_names",
    "write_outputs",
]

PREDICTIONS_NAME = "predictions.json"
FAILURES_NAME = "failed.jsonl"
"""A line for each image that cannot be read; there is no such file where all can."""


class _CocoWriter:
    def __init__(self, file: IO[str]) -> None:
        self._file, self._separator = file, ""

    def add(self, result: ImageResult) -> None:
        if result.records:
            self._file.write(self._separator + json.dumps(result.records, ensure_ascii=False)[1:-1])
            self._separator = ", "


@contextmanager
def open_coco(target: OutputTarget) -> Iterator[OutputWriter]:
    """Writes `predictions.json`: COCO's result format, with `file_name` and `category_name`."""
    path = target.folder / PREDICTIONS_NAME
    with (
        write_result(
            path, by="predict", force=target.force, request=target.request, scratch=target.scratch
        ) as temporary,
        # Bytes of file names that are not UTF-8 are written as JSON's \udc80 to \udcff, and read back as they were.
        temporary.open("w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        file.write("[")
        yield _CocoWriter(file)
        file.write("]")


class _FailureWriter:
    def __init__(self, target: OutputTarget, stack: ExitStack) -> None:
        self._target, self._stack = target, stack
        self._file: IO[str] | None = None

    def add(self, result: ImageResult) -> None:
        if result.error is None:
            return
        if self._file is None:
            target = self._target
            temporary = self._stack.enter_context(
                write_result(
                    target.folder / FAILURES_NAME,
                    by="predict",
                    force=target.force,
                    request=target.request,
                    scratch=target.scratch,
                )
            )
            self._file = self._stack.enter_context(
                temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="\n")
            )
        row = image_row(result, self._target)
        line = {key: row[key] for key in ("file", "file_name", "image_id", "error")}
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")


@contextmanager
def _open_failures(target: OutputTarget) -> Iterator[OutputWriter]:
    """Writes `failed.jsonl` if there are any, and removes that of an earlier result."""
    remove_earlier(target, FAILURES_NAME)
    with ExitStack() as stack:
        yield _FailureWriter(target, stack)


REVIEW = "review"
"""The list of images to be reviewed, which is written beside the formats."""
DATASET = "dataset"
"""A data set in place of formats, see `labels.dataset`."""

WRITERS: dict[str, OpenWriter] = {
    **{"coco": open_coco, "jsonl": open_jsonl, "parquet": open_parquet},
    **LAYOUT_WRITERS,
    REVIEW: open_review,
    DATASET: open_dataset,
}
"""The formats of results by name."""

RESULT_NAMES = {
    "coco": PREDICTIONS_NAME,
    "jsonl": shard_name("jsonl", 0),
    "parquet": shard_name("parquet", 0),
    **{layout: layout for layout in FOLDERS},
    "csv": CSV_NAME,
    REVIEW: LIST_NAME,
    DATASET: CARD_NAME,
}
"""What each format writes into the output folder, or the first of it: a folder that has it is not free."""

SHARDED = ("jsonl", "parquet")
"""Formats in files of a fixed number of images."""

PARTIAL = ("coco",)
"""Formats that are also written while the images are not all done."""


def check_formats(names: Iterable[str]) -> tuple[str, ...]:
    """The formats of a list of names, each once, in the order of the list.

    Raises:
        ConfigError: there is no such format.
        ResourceError: a format needs a package that is not installed.
    """
    found = tuple(dict.fromkeys(names))
    known = sorted(WRITERS.keys() - {REVIEW, DATASET})
    for name in found:
        if name not in known:
            raise ConfigError(f"--format {name}: there is no such format of results; {nearest(name, known)}")
    if "parquet" in found:
        import_pyarrow()
    return found


def result_names(formats: Collection[str], images: int, shard_size: int = SHARD_SIZE) -> list[str]:
    """Names in the output folder that the results of so many images have."""
    names: list[str] = []
    for name in formats:
        names += shard_names(name, images, shard_size) if name in SHARDED else [RESULT_NAMES[name]]
    return [*names, REASONS_NAME] if REVIEW in formats else names


def result_files(names: Iterable[str]) -> list[str]:
    """A file of each result, in the place of a folder: the one that codetr has listed in the output folder."""
    return [f"{name}/{RECEIPT}" if name in FOLDERS else name for name in names]


def taken(folder: Path, formats: Collection[str], labels: LabelOptions, *, request: str, force: bool) -> str | None:
    """Why results must not be written into a folder, since something of their name is there; None if they may.

    Args:
        folder: the output folder.
        formats: of the results.
        labels: of the request.
        request: its name.
        force: own results are replaced.
    """
    is_new = labels.crops and not force and not has_parts(folder, request)
    if is_new and os.path.lexists(folder / CROPS):
        return f"{folder / CROPS} already exists: give another --out"
    return taken_folder(folder, formats, request=request, force=force)


def write_outputs(
    results: Iterable[ImageResult], formats: Sequence[str], target: OutputTarget, *, complete: bool = True
) -> None:
    """Writes the results in some formats, all at once: results are taken one by one.

    Args:
        results: in the order of the inputs.
        formats: their names.
        target: where.
        complete: whether these are the results of all images; then those that cannot be read are listed in a file.

    Raises:
        ConfigError: a file that codetr did not make has come into the place of one.
        ResourceError: no space left, or the folder cannot be written.
    """
    with ExitStack() as stack:
        opened = [WRITERS[name] for name in formats] + ([_open_failures] if complete else [])
        writers = [stack.enter_context(open_writer(target)) for open_writer in opened]
        for result in results:
            for writer in writers:
                writer.add(result)
