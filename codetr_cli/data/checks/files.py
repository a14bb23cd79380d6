"""Checks the image files of one split against its annotation file: by their headers, or decoded one by one.

Headers are read by threads, which mostly wait for the disk; with a warm cache one thread reads 130,000 headers/s.
Decoding is done by processes; the decoders' messages are read from their stderr, file by file.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from codetr_cli.annotations.findings import Findings
from codetr_cli.annotations.image_folder import ImageFolder
from codetr_cli.data.checks.image_copies import ImageCopies
from codetr_cli.data.checks.leftovers import Leftovers
from codetr_cli.errors import DatasetError, ResourceError
from codetr_cli.images.headers import ImageFileError, ImageHeader, read_header_and_start
from codetr_cli.images.image_files import FORMAT_SUFFIXES

HEADER_THREADS = 16
"""Deliberately more than cores: on network disks each file costs milliseconds of waiting."""

ImageRecord = tuple[str, int, int]
"""File name, height and width in the annotation file; 0 and 0 where it has none."""


@dataclass(frozen=True)
class FileRules:
    """Settings of the check.

    Args:
        min_side: images with a smaller side are not trained on.
        folder: finds files by similar names.
        shared: the folder also contains images of annotation files that are not checked.
    """

    folder: ImageFolder
    where: str
    max_pixels: int
    min_side: int
    deep: bool = False
    shared: bool = False

    @property
    def images_dir(self) -> Path:
        """The folder that names are relative to."""
        return self.folder.folder


def check_files(
    records: Sequence[ImageRecord],
    rules: FileRules,
    findings: Findings,
    copies: ImageCopies,
    leftovers: Leftovers,
    *,
    workers: int,
    advance: Callable[[int], None],
) -> None:
    """Checks every image file of a split.

    The readable files are added to `copies`, and all that are used to `leftovers`. `advance` is called after every few
    files with their number.

    Raises:
        ResourceError: a decoding process died, e.g. of lack of memory.
    """
    if not rules.images_dir.is_dir():
        findings.add("no_image_folder", rules.where, str(rules.images_dir))
        advance(len(records))
        return
    size = 16 if rules.deep else 256
    renamed: set[str] = set()
    copies.start(rules.where, rules.images_dir)
    chunks = [records[start : start + size] for start in range(0, len(records), size)]
    try:
        with _pool(rules.deep, max(1, min(workers, len(chunks)))) as pool:
            results = pool.map(partial(_inspect_chunk, rules), chunks)
            for chunk, result in zip(chunks, results, strict=True):
                findings.merge(result.findings)
                renamed.update(result.renamed)
                copies.add(result.files)
                advance(len(chunk))
    except BrokenProcessPool as error:
        raise ResourceError(
            f"a process that decoded images of {rules.images_dir} was killed, probably by lack of memory: run again "
            f"with fewer --workers (now {workers}) or without --deep."
        ) from error
    leftovers.add(
        rules.images_dir, rules.where, {*(record[0] for record in records), *renamed}, is_complete=not rules.shared
    )


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


@dataclass
class _Inspected:
    """What was found about some files.

    Args:
        renamed: files that have other names than their records.
        files: name, size in bytes and checksum of the start of the readable ones.
    """

    findings: Findings = field(default_factory=Findings)
    renamed: list[str] = field(default_factory=list)
    files: list[tuple[str, int, int]] = field(default_factory=list)


def _inspect_chunk(rules: FileRules, chunk: Sequence[ImageRecord]) -> _Inspected:
    """Checks some files; runs in its own thread or process."""
    result = _Inspected()
    for record in chunk:
        for kind, detail in _inspect(rules, record, result):
            result.findings.add(kind, rules.where, f"{record[0]} ({detail})" if detail else record[0])
    return result


def _inspect(rules: FileRules, record: ImageRecord, result: _Inspected) -> Iterator[tuple[str, str]]:
    """Kind and detail of every finding about one file; adds the file to the result."""
    path = os.path.join(rules.images_dir, record[0])  # noqa: PTH118 (a Path a file would double the time)
    try:
        header, file_bytes, start = read_header_and_start(path)
    except ImageFileError as error:
        found = rules.folder.find(record[0]) if error.problem == "missing" else None
        if found is not None:
            result.renamed.append(found)
            yield "renamed_file", f"on disk it is {found}"
            yield from _inspect(rules, (found, *record[1:]), result)
            return
        kind = error.problem if error.problem == "not_an_image" else f"{error.problem}_file"
        yield kind, rules.folder.hint(record[0])[2:-1] if error.problem == "missing" else str(error)
        return
    result.files.append((record[0], file_bytes, start))
    height, width = header.size
    if not height or not width:
        yield "no_pixels", f"{width} x {height}"
        return
    if header.limit_needed > rules.max_pixels:
        yield (
            "too_many_pixels",
            f"{width} x {height} = {header.limit_needed / 1e6:,.0f} million, {rules.max_pixels:,} allowed",
        )
        return
    if rules.deep:
        yield from _decode(path, header, rules)
    yield from _compare_size(header, record)
    if min(height, width) < rules.min_side:
        yield "small_image", f"{width} x {height}"
    if header.colour != "rgb" or header.bits != 8:
        yield "unusual_pixels", f"{header.colour}, {header.bits} bits"
    if not record[0].lower().endswith(FORMAT_SUFFIXES[header.format]):
        yield "misnamed_file", header.format.upper()


def _compare_size(header: ImageHeader, record: ImageRecord) -> Iterator[tuple[str, str]]:
    height, width = header.size
    _, listed_height, listed_width = record
    if header.orientation != 1:
        yield "rotated", f"EXIF orientation {header.orientation}"
    problem = header.size_problem((listed_height, listed_width))
    if not problem or not listed_height:
        return
    sizes = f"{width} x {height} in the file, {listed_width} x {listed_height} listed"
    if problem == "rotation_differs":
        yield problem, f"{width} x {height} after rotation, {listed_width} x {listed_height} listed"
    elif (width, height) == (listed_height, listed_width):
        yield problem, f"{sizes}: width and height seem to be swapped"
    else:
        yield problem, sizes


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
    from codetr_cli.images.decoder import read_image

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
