"""The result files of a prediction, written from the results of all images in the order of the inputs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from codetr_cli.files import write_result
from codetr_cli.prediction.results import ImageResult

PREDICTIONS_NAME = "predictions.json"


@dataclass(frozen=True, kw_only=True)
class OutputTarget:
    """Where result files go, and what they need to know.

    Attributes:
        folder: the output folder.
        scratch: a folder for files that are not complete yet, on the same disk.
        request: name of the request.
        force: own files of other requests are replaced.
        class_names: by label.
        category_ids: by label.
    """

    folder: Path
    scratch: Path
    request: str
    force: bool
    class_names: Sequence[str]
    category_ids: Sequence[int]


class OutputWriter(Protocol):
    """Writes one format; made by a context manager, which completes the files unless an error leaves it."""

    def add(self, result: ImageResult) -> None:
        """Writes the result of an image, which may be an error."""


OpenWriter = Callable[[OutputTarget], AbstractContextManager[OutputWriter]]


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


WRITERS: dict[str, OpenWriter] = {"coco": open_coco}
"""The formats of results by name."""

RESULT_NAMES = {"coco": PREDICTIONS_NAME}
"""What each format writes into the output folder: a folder that has it is not free."""


def write_outputs(results: Iterable[ImageResult], formats: Sequence[str], target: OutputTarget) -> None:
    """Writes the results in some formats, all at once: results are taken one by one.

    Raises:
        ConfigError: a file that codetr did not make has come into the place of one.
        ResourceError: no space left, or the folder cannot be written.
    """
    with ExitStack() as stack:
        writers = [stack.enter_context(WRITERS[name](target)) for name in formats]
        for result in results:
            for writer in writers:
                writer.add(result)
