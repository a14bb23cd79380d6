"""Where results are written, and what a writer of one format is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from codetr_cli.prediction.labels.options import DatasetOptions, LabelOptions
from codetr_cli.prediction.results import ImageResult
from codetr_cli.prediction.sources.input_list import InputImage

SHARD_SIZE = 10_000
"""Images in a file of a format that divides its results."""


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
        images: all inputs, by the number of the image.
        shard_size: images in a file of a format that divides its results.
        labels: which detections are labels, and in which form.
        model: the name of the network, for formats that have a place for it.
        dataset: the data set that is made of the labels; None: none is.
        facts: what made the labels, for the card of the data set.
        notes: sentences on what a format cannot hold, by format; writers add them.
    """

    folder: Path
    scratch: Path
    request: str
    force: bool
    class_names: Sequence[str]
    category_ids: Sequence[int]
    images: Sequence[InputImage] = ()
    shard_size: int = SHARD_SIZE
    labels: LabelOptions = field(default_factory=LabelOptions)
    model: str = "codetr"
    dataset: DatasetOptions | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)


class OutputWriter(Protocol):
    """Writes one format; made by a context manager, which completes the files unless an error leaves it."""

    def add(self, result: ImageResult) -> None:
        """Writes the result of an image, which may be an error."""


OpenWriter = Callable[[OutputTarget], AbstractContextManager[OutputWriter]]
