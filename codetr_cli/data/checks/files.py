"""Checks the image files of one split against its annotation file: by their headers, or decoded one by one.

Headers are read by threads: they wait for the disk; from a warm cache one thread alone reads 130,000 headers a second.
Decoding is done by processes, whose decoders' complaints are caught from their stderr, file by file.
"""

from __future__ import annotations

import multiprocessing
import os
import posixpath
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from codetr_cli.data.checks.findings import Findings
from codetr_cli.data.formats.detect import list_images
from codetr_cli.data.headers import ImageFileError, ImageHeader, read_header
from codetr_cli.errors import DatasetError, ResourceError

HEADER_THREADS = 16
"""More than cores on purpose: on network disks each file costs milliseconds of waiting."""

ImageRecord = tuple[str, int, int]
"""File name, height, width, as the annotation file has them."""

_KIND_OF_PROBLEM = {
    "missing": "missing_file",
    "unreadable": "unreadable_file",
    "empty": "empty_file",
    "not_an_image": "not_an_image",
    "truncated": "truncated_file",
    "unsupported": "unsupported_file",
}
_SUFFIXES = {
    "jpeg": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "png": (".png",),
    "webp": (".webp",),
    "gif": (".gif",),
    "bmp": (".bmp", ".dib"),
    "tiff": (".tif", ".tiff"),
}


@dataclass(frozen=True)
class FileRules:
    """What is checked and how.

    Args:
        images_dir: the folder that file names are relative to.
        where: how findings call the folder.
        max_pixels: most pixels an image may have.
        min_side: images with a smaller side are not trained on.
        deep: decode every image, as training does.
        shared: other images than those of the records belong there too.
    """

    images_dir: Path
    where: str
    max_pixels: int
    min_side: int
    deep: bool = False
    shared: bool = False


def check_files(
    records: Sequence[ImageRecord],
    rules: FileRules,
    findings: Findings,
    *,
    workers: int,
    advance: Callable[[int], None],
) -> None:
    """Checks every image file of a split and looks for files that no record mentions.

    Args:
        records: from the annotation file.
        rules: what to check.
        findings: takes what is wrong.
        workers: threads for headers, processes for decoding.
        advance: told after every few files how many more are done.

    Raises:
        ResourceError: a decoding process died, e.g. for want of memory.
    """
    if not rules.images_dir.is_dir():
        findings.add("no_image_folder", rules.where, str(rules.images_dir))
        advance(len(records))
        return
    size = 16 if rules.deep else 256
    chunks = [records[start : start + size] for start in range(0, len(records), size)]
    try:
        with _pool(rules.deep, max(1, min(workers, len(chunks)))) as pool:
            for chunk, found in zip(chunks, pool.map(partial(_inspect_chunk, rules), chunks), strict=True):
                findings.merge(found)
                advance(len(chunk))
    except BrokenProcessPool as error:
        raise ResourceError(
            f"a process that decoded images of {rules.images_dir} was killed, probably for want of memory: run again "
            f"with fewer --workers (now {workers}) or without --deep."
        ) from error
    _compare_with_disk(records, rules, findings)


def default_workers(deep: bool) -> int:
    """Threads that suit reading headers, or processes that suit decoding, on this machine."""
    if not deep:
        return HEADER_THREADS
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _pool(deep: bool, workers: int) -> Executor:
    if not deep:
        return ThreadPoolExecutor(workers)
    # Spawned, not forked: the program may hold threads by now.
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start_decoder)


def _inspect_chunk(rules: FileRules, chunk: Sequence[ImageRecord]) -> Findings:
    """Checks some files; runs in a thread or a process of its own."""
    findings = Findings()
    for record in chunk:
        for kind, detail in _inspect(rules, record):
            findings.add(kind, rules.where, f"{record[0]} ({detail})" if detail else record[0])
    return findings


def _inspect(rules: FileRules, record: ImageRecord) -> Iterator[tuple[str, str]]:
    """Kind and detail of everything noteworthy about one file."""
    path = os.path.join(rules.images_dir, record[0])  # noqa: PTH118 (a Path a file would double the time)
    try:
        header = read_header(path)
    except ImageFileError as error:
        yield _KIND_OF_PROBLEM[error.problem], "" if error.problem == "missing" else str(error)
        return
    height, width = header.size
    if not height or not width:
        yield "no_pixels", f"{width} x {height}"
        return
    if height * width > rules.max_pixels:
        yield (
            "too_many_pixels",
            f"{width} x {height} = {height * width / 1e6:,.0f} million, {rules.max_pixels:,} allowed",
        )
        return
    if rules.deep:
        yield from _decode(path, header, rules)
    yield from _compare_size(header, record)
    if min(height, width) < rules.min_side:
        yield "small_image", f"{width} x {height}"
    if header.colour != "rgb" or header.bits != 8:
        yield "unusual_pixels", f"{header.colour}, {header.bits} bits"
    if not record[0].lower().endswith(_SUFFIXES.get(header.format, "")):
        yield "misnamed_file", header.format.upper()


def _compare_size(header: ImageHeader, record: ImageRecord) -> Iterator[tuple[str, str]]:
    height, width = header.size
    _, listed_height, listed_width = record
    if header.orientation != 1:
        yield "rotated", f"EXIF orientation {header.orientation}"
    if (height, width) == (listed_height, listed_width):
        return
    sizes = f"{width} x {height} in the file, {listed_width} x {listed_height} listed"
    if header.orientation >= 5 and header.stored_size == (listed_height, listed_width):
        yield "rotation_differs", f"{width} x {height} after turning, {listed_width} x {listed_height} listed"
    elif (width, height) == (listed_height, listed_width):
        yield "size_differs", f"{sizes}: width and height look exchanged"
    else:
        yield "size_differs", sizes


# ----------------------------------------------------------------------------------------------------------- decoding

_complaints: Any = None
"""In a decoding process: the file that its stderr goes to."""

_HARMLESS = ("iCCP", "sRGB profile")


def _start_decoder() -> None:
    """Makes ready a process that decodes images."""
    global _complaints
    import cv2

    cv2.setNumThreads(1)
    _complaints = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
    os.dup2(_complaints.fileno(), 2)


def _decode(path: str, header: ImageHeader, rules: FileRules) -> Iterator[tuple[str, str]]:
    """Reads the image as training does and reports what the decoder said."""
    from codetr_cli.data.images import read_image

    start = os.lseek(2, 0, os.SEEK_END)
    try:
        image = read_image(Path(path), max_pixels=rules.max_pixels)
    except DatasetError:
        yield "decode_failed", _said_since(start) or "no reason given"
        return
    said = _said_since(start)
    if said:
        yield "decode_complained", said
    if image.shape[:2] != header.size:
        height, width = image.shape[:2]
        yield "size_differs", f"{width} x {height} decoded, {header.size[1]} x {header.size[0]} by its header"


def _said_since(start: int) -> str:
    """The first line on this process' stderr since a position, shortened."""
    os.lseek(2, start, os.SEEK_SET)
    lines = os.read(2, 10_000).decode(errors="replace").splitlines()
    os.lseek(2, 0, os.SEEK_END)
    spoken = [line.strip() for line in lines if line.strip() and not any(word in line for word in _HARMLESS)]
    return spoken[0][:120] if spoken else ""


# ------------------------------------------------------------------------------------------------------ folder on disk


def _compare_with_disk(records: Sequence[ImageRecord], rules: FileRules, findings: Findings) -> None:
    """Reports files that no record mentions, and says where missing ones may be."""
    listed = {posixpath.normpath(name) if "./" in name or "//" in name else name for name, _, _ in records}
    on_disk = set(list_images(rules.images_dir))
    unlisted = sorted(on_disk - listed)
    for name in () if rules.shared else unlisted:
        findings.add("unlisted_file", rules.where, name)
    missing = findings.get("missing_file", rules.where)
    if missing and unlisted:
        by_base = {name.rpartition("/")[2]: name for name in unlisted}
        by_lower = {name.lower(): name for name in unlisted}
        by_stem = {name.rpartition(".")[0]: name for name in unlisted}
        for index, name in enumerate(missing.first):
            base, stem = name.rpartition("/")[2], name.rpartition(".")[0]
            if base in by_base:
                missing.first[index] = f"{name} (it lies there as {by_base[base]})"
            elif name.lower() in by_lower:
                missing.first[index] = f"{name} (on disk it is written {by_lower[name.lower()]})"
            elif stem in by_stem:
                missing.first[index] = f"{name} (there is {by_stem[stem]})"
