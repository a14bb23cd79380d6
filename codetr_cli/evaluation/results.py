"""The results of one process of an evaluation, and of all processes as one: images, detections, unreadable files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from safetensors.numpy import load, save

from codetr_cli.annotations.run_length_codes import check_compressed
from codetr_cli.data.bad_files import BadFile
from codetr_cli.inference.detections import DetectionTable, is_rle
from codetr_cli.reading import parse_json

COLUMNS = ("image_ids", "category_ids", "boxes_xywh", "scores")
MAX_HEADER_BYTES = 1 << 16


@dataclass(frozen=True)
class RankResults:
    """Results of one process: the images that it processed, their detections, and the files that it could not read."""

    image_ids: list[int]
    detections: DetectionTable
    skipped: list[BadFile] = field(default_factory=list)


class Collector(Protocol):
    """Receives the results of each batch, and makes those of all processes of them."""

    def add(self, results: RankResults) -> None:
        """Takes the results of the next batch."""

    def gather(self) -> list[RankResults]:
        """The results of all processes; an empty list in processes that do not score."""


class LocalCollector:
    """Keeps the results of this process in memory; it is the only one."""

    def __init__(self) -> None:
        self._results: list[RankResults] = []

    def add(self, results: RankResults) -> None:
        """As `Collector.add`."""
        self._results.append(results)

    def gather(self) -> list[RankResults]:
        """As `Collector.gather`."""
        return [join_results(self._results)]


def join_results(results: Sequence[RankResults]) -> RankResults:
    """Results of different images as one, in their order."""
    return RankResults(
        image_ids=[image_id for part in results for image_id in part.image_ids],
        detections=DetectionTable.join(part.detections for part in results),
        skipped=[bad for part in results for bad in part.skipped],
    )


def merge_results(gathered: Sequence[RankResults], order: Sequence[int] | None = None) -> RankResults:
    """The results of all processes as one.

    An image in several of them counts once, with the detections of the first.

    Args:
        gathered: of the processes.
        order: image ids in the order of the result, e.g. of the annotations, so that it does not depend on the number
            of processes; None: ascending.
    """
    seen: set[int] = set()
    tables: list[DetectionTable] = []
    for results in gathered:
        new = set(results.image_ids) - seen
        complete = len(new) == len(results.image_ids)
        tables.append(results.detections if complete else results.detections.of_images(new))
        seen |= new
    skipped = sorted({bad for results in gathered for bad in results.skipped})
    image_ids = sorted(seen) if order is None else [image_id for image_id in order if image_id in seen]
    return RankResults(image_ids, DetectionTable.join(tables).in_order_of(image_ids), skipped)


def pack_results(results: Sequence[RankResults]) -> bytes:
    """Results of several batches as the bytes of a safetensors file; `unpack_results` reads it."""
    whole = join_results(results)
    table = whole.detections
    arrays: dict[str, Any] = {name: getattr(table, name) for name in COLUMNS}
    if table.mask_scores is not None:
        arrays["mask_scores"] = table.mask_scores
    texts = {"masks": table.masks, "skipped": whole.skipped}
    arrays |= {name: np.frombuffer(json.dumps(value).encode("utf-8"), np.uint8) for name, value in texts.items()}
    arrays["processed"] = np.array(whole.image_ids, np.int64)
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def unpack_results(content: bytes) -> RankResults:
    """The results that `pack_results` wrote.

    Raises:
        Exception: of any kind, for other content; no array can be larger than that.
    """
    if int.from_bytes(content[:8], "little") > MAX_HEADER_BYTES:  # the library accepts 100 MB
        raise ValueError("it has a header that is too long")
    arrays = load(content)
    masks, skipped = (parse_json(arrays.pop(name).tobytes()) for name in ("masks", "skipped"))
    processed, count = arrays.pop("processed"), len(arrays["scores"])
    kinds = {name: (array.dtype.str, array.shape) for name, array in arrays.items()}
    wanted: dict[str, tuple[str, tuple[int, ...]]] = {
        **{"image_ids": ("<i8", (count,)), "category_ids": ("<i8", (count,)), "boxes_xywh": ("<f8", (count, 4))},
        **{name: ("<f8", (count,)) for name in ("scores", "mask_scores") if name in arrays},
    }
    if kinds != wanted or (processed.dtype.str, processed.ndim) != ("<i8", 1):
        raise ValueError("it has columns of other types or lengths")
    if masks is not None and not (isinstance(masks, list) and len(masks) == count and all(map(is_rle, masks))):
        raise ValueError("it has something else than a mask for each detection")
    if not np.isin(arrays["image_ids"], processed).all():
        raise ValueError("it has detections of other images")
    return RankResults(processed.tolist(), DetectionTable(**arrays, masks=masks), [BadFile(*bad) for bad in skipped])


def check_packed(content: bytes, image_ids: Sequence[int], category_ids: Iterable[int]) -> None:
    """Ensures that results are those of some images, all of which were read.

    Raises:
        Exception: of any kind, if they are of other images or categories, or no results.
    """
    results = unpack_results(content)
    if results.skipped or results.image_ids != list(image_ids):
        raise ValueError("it has results of other images")
    if not set(results.detections.category_ids.tolist()) <= set(category_ids):
        raise ValueError("it has detections of other categories")
    if results.detections.masks:
        check_compressed(results.detections.masks)
