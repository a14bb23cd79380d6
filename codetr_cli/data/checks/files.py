"""Checks the image files of one split against its annotation file: by their headers, or decoded one by one.

Headers are read by threads, which mostly wait for the disk; with a warm cache one thread reads 130,000 headers/s.
Decoding is done by processes; the decoders' messages are read from their stderr, file by file.
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
from codetr_cli.data.headers import ImageFileError, ImageHeader, read_header
from codetr_cli.data.image_files import list_images
from codetr_cli.errors import DatasetError, ResourceError

HEADER_THREADS = 16
"""Deliberately more than cores: on network disks each file costs milliseconds of waiting."""

ImageRecord = tuple[str, int, int]
"""File name, height and width in the annotation file."""

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
    """Settings of the check.

    Args:
        min_side: images with a smaller side are not trained on.
        shared: the folder also contains images of other annotation files.
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
    """Checks every image file of a split and reports files that no record mentions.

    `advance` is called after every few files with their number.

    Raises:
        ResourceError: a decoding process died, e.g. of lack of memory.
    """
    if not rules.images_dir.is_dir():
        findings.add("no_image_folder", rules.where, str(rules.images_dir))
        advance(len(records))
        return
    size = 16 if rules.deep else 256
    chunks = [records[start : start + size] for start in range(0, len(records), size)]
    try:
        with _pool(rules.deep, max(1, min(workers, len(chunks)))) as pool:
            for chunk, chunk_findings in zip(chunks, pool.map(partial(_inspect_chunk, rules), chunks), strict=True):
                findings.merge(chunk_findings)
                advance(len(chunk))
    except BrokenProcessPool as error:
        raise ResourceError(
            f"a process that decoded images of {rules.images_dir} was killed, probably by lack of memory: run again "
            f"with fewer --workers (now {workers}) or without --deep."
        ) from error
    _compare_with_disk(records, rules, findings)


def default_workers(deep: bool) -> int:
    """Default number of threads for headers, or of processes for decoding, on this machine."""
    if not deep:
        return HEADER_THREADS
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _pool(deep: bool, workers: int) -> Executor:
    if not deep:
        return ThreadPoolExecutor(workers)
    # Spawned, not forked: the program may have threads by now.
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start_decoder)


def _inspect_chunk(rules: FileRules, chunk: Sequence[ImageRecord]) -> Findings:
    """Checks some files; runs in its own thread or process."""
    findings = Findings()
    for record in chunk:
        for kind, detail in _inspect(rules, record):
            findings.add(kind, rules.where, f"{record[0]} ({detail})" if detail else record[0])
    return findings


def _inspect(rules: FileRules, record: ImageRecord) -> Iterator[tuple[str, str]]:
    """Kind and detail of every finding about one file."""
    path = os.path.join(rules.images_dir, record[0])  # noqa: PTH118 (a Path a file would double the time)
    try:
        header = read_header(path)
    except ImageFileError as error:
        kind = error.problem if error.problem == "not_an_image" else f"{error.problem}_file"
        yield kind, "" if error.problem == "missing" else str(error)
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
        yield "rotation_differs", f"{width} x {height} after rotation, {listed_width} x {listed_height} listed"
    elif (width, height) == (listed_height, listed_width):
        yield "size_differs", f"{sizes}: width and height seem to be swapped"
    else:
        yield "size_differs", sizes


_decoder_messages: Any = None
"""In a decoding process: the file that its stderr is redirected to."""

_HARMLESS = ("iCCP", "sRGB profile")


def _start_decoder() -> None:
    """Initializes a process that decodes images."""
    global _decoder_messages
    import cv2

    cv2.setNumThreads(1)
    _decoder_messages = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
    os.dup2(_decoder_messages.fileno(), 2)


def _decode(path: str, header: ImageHeader, rules: FileRules) -> Iterator[tuple[str, str]]:
    """Reads the image as training does and reports the decoder's messages."""
    from codetr_cli.data.images import read_image

    start = os.lseek(2, 0, os.SEEK_END)
    try:
        image = read_image(Path(path), max_pixels=rules.max_pixels)
    except DatasetError:
        yield "decode_failed", _message_since(start) or "no reason given"
        return
    message = _message_since(start)
    if message:
        yield "decode_complained", message
    if image.shape[:2] != header.size:
        height, width = image.shape[:2]
        yield "size_differs", f"{width} x {height} decoded, {header.size[1]} x {header.size[0]} in its header"


def _message_since(start: int) -> str:
    """The first line on this process's stderr since an offset, shortened."""
    os.lseek(2, start, os.SEEK_SET)
    lines = os.read(2, 10_000).decode(errors="replace").splitlines()
    os.lseek(2, 0, os.SEEK_END)
    messages = [line.strip() for line in lines if line.strip() and not any(word in line for word in _HARMLESS)]
    return messages[0][:120] if messages else ""


def _compare_with_disk(records: Sequence[ImageRecord], rules: FileRules, findings: Findings) -> None:
    """Reports files that no record mentions, and where missing ones may be."""
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
                missing.first[index] = f"{name} (found as {by_base[base]})"
            elif name.lower() in by_lower:
                missing.first[index] = f"{name} (on disk it is spelled {by_lower[name.lower()]})"
            elif stem in by_stem:
                missing.first[index] = f"{name} (found {by_stem[stem]})"
