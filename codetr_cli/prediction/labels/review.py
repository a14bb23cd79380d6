"""The images that somebody should look at: review.txt, a path a line, and review.json with the reasons."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

from codetr_cli.prediction.results import ImageResult
from codetr_cli.prediction.targets import OutputTarget, OutputWriter
from codetr_cli.result_files import write_result
from codetr_cli.weights.urls import is_url

LIST_NAME = "review.txt"
REASONS_NAME = "review.json"
SHOWN = 3


def review_of(result: ImageResult) -> Mapping[str, Any] | None:
    """Why an image is to be reviewed, see `selection`; None if it is not."""
    found = (result.image or {}).get("review")
    return found if found else None


def phrase(review: Mapping[str, Any] | None) -> str:
    """The reasons in a few words: `cat 0.41, dog 0.22`; empty if there are none."""
    if review is None:
        return ""
    rows = [f"{each['class']} {each['score']:.2f}" for each in review["detections"][:SHOWN]]
    more = review["count"] - len(rows)
    return ", ".join(rows) + (f" and {more} more" if more > 0 else "")


def _place(file: str) -> str:
    """A path from the root, since readers of lists, codetr's among them, take others as relative to the list."""
    return file if is_url(file) else os.path.join(os.getcwd(), file)  # noqa: PTH109, PTH118 (keeps links and ..)


class _ReviewWriter:
    def __init__(self, names: IO[str], reasons: IO[str]) -> None:
        self._names, self._reasons, self._separator = names, reasons, ""

    def add(self, result: ImageResult) -> None:
        review = review_of(result)
        if review is None or result.image is None:
            return
        self._names.write(_place(result.file).replace("\n", " ") + "\n")
        record = {"file": result.file, "file_name": result.image["file_name"], **review}
        self._reasons.write(f"{self._separator}\n{json.dumps(record, ensure_ascii=False)}")
        self._separator = ","


@contextmanager
def open_review(target: OutputTarget) -> Iterator[OutputWriter]:
    """Writes both files."""
    how: dict[str, Any] = {
        **{"by": "predict", "force": target.force, "request": target.request, "scratch": target.scratch}
    }
    with (
        write_result(target.folder / LIST_NAME, **how) as list_path,
        write_result(target.folder / REASONS_NAME, **how) as reasons_path,
        # Bytes of file names that are not UTF-8 stay in the list, which is of paths, and are escaped in JSON.
        list_path.open("w", encoding="utf-8", errors="surrogateescape") as names,
        reasons_path.open("w", encoding="utf-8", errors="backslashreplace") as reasons,
    ):
        band = json.dumps(target.labels.review)
        reasons.write(f'{{"band": {band}, "images": [')
        yield _ReviewWriter(names, reasons)
        reasons.write("\n]}\n")
