"""The results of a video so far, in segments of some seconds of work: its lines and the piece of the drawn video.

The files of a segment are in the folder of the parts. They count once their manifest is a part: a kill at any instant
leaves only whole segments, and the same command continues after the last one.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from codetr_cli.distributed.part_files import PartFiles
from codetr_cli.distributed.part_frames import Part
from codetr_cli.files import make_way, rename_synced
from codetr_cli.prediction.video.encoder import PieceWriter, VideoFormat, open_piece
from codetr_cli.reading import open_file, parse_json

ATTEMPTS = 1 << 10
"""Unit numbers of a segment among the parts: it has one for each time that it was written."""
UNITS = 1 << 32
"""Unit numbers of a video: those of its segments, and of one for the whole."""
FINAL = UNITS // ATTEMPTS - 1
"""Number of the segment that stands for the whole."""
LINES, PIECE = ".jsonl", ".nut"
BLOCK = 1 << 20


class Totals(BaseModel):
    """What a video has up to the end of a segment.

    Attributes:
        frames: chosen ones.
        failed: those of them that could not be read.
        last_number: of the last frame, among all of the video; -1: none.
        first_pts: timestamp of the first chosen frame.
        last_pts: of the last one.
        drawn_pts: of the last one in the drawn video.
        moved: frames of the drawn video with a later timestamp than that of the source.
        jumps: timestamps that begin another recording.
        header: what the header of the video says.
        time_base: numerator and denominator.
        rate: frames per second, the same.
        aspect: width of a pixel by its height, the same.
        size: (height, width) of the drawn video; None: nothing is drawn yet.
        shift: subtracted from timestamps for the drawn video.
        detections: number of them.
        objects: number of detections by class.
        tracks: number of ids.
        problems: see `frames.Problems`.
        finished: whether the video is complete.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    frames: int = Field(0, ge=0)
    failed: int = Field(0, ge=0)
    last_number: int = Field(-1, ge=-1)
    first_pts: int = 0
    last_pts: int = 0
    drawn_pts: int = 0
    moved: int = Field(0, ge=0)
    jumps: int = Field(0, ge=0)
    header: str = ""
    time_base: list[int] = Field([1, 1000], min_length=2, max_length=2)
    rate: list[int] = Field([25, 1], min_length=2, max_length=2)
    aspect: list[int] = Field([1, 1], min_length=2, max_length=2)
    size: list[int] | None = None
    shift: int = 0
    detections: int = 0
    objects: dict[str, int] = {}
    tracks: int = 0
    problems: dict[str, Any] = {}
    finished: bool = False


class Manifest(BaseModel):
    """A segment: `totals` up to its end, sizes of its files in bytes, and a checksum of its lines."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    segment: int = Field(ge=0)
    totals: Totals
    lines_size: int = Field(ge=0)
    lines_checksum: int
    piece_size: int = Field(ge=0)

    def pack(self) -> bytes:
        """As the content of a part; names of files in it may have bytes that are not text."""
        return json.dumps(self.model_dump()).encode("ascii")

    @classmethod
    def unpack(cls, content: bytes) -> Manifest:
        """The manifest of a part.

        Raises:
            ValueError: it is none.
        """
        return cls.model_validate(parse_json(content))


def check_manifest(part: Part) -> None:
    """Ensures that a part is a manifest, of the segment that its unit says.

    Raises:
        ValueError: it is not.
    """
    manifest = Manifest.unpack(part.content)
    if len(part.units) != 1 or part.units[0] % UNITS // ATTEMPTS != manifest.segment:
        raise ValueError("it is of another segment")


class SegmentStore:
    """The segments of one video.

    Args:
        parts: open.
        video: number of the video among those of the command.
    """

    def __init__(self, parts: PartFiles, video: int) -> None:
        self._parts, self._video = parts, video
        self._attempts: dict[int, int] = {}
        self.count = 0
        self.totals = Totals()

    @property
    def _start(self) -> str:
        return f"video{self._video}-"

    def path(self, segment: int, suffix: str) -> Path:
        """Of a file of a segment."""
        return self._parts.path / f"{self._start}{segment:06}{suffix}"

    def paths(self, suffix: str) -> list[Path]:
        """Of all segments, in order; without those that have no such file."""
        return [path for number in range(self.count) if (path := self.path(number, suffix)).exists()]

    def recover(self, *, restart: bool = False) -> None:
        """Finds the segments of an earlier start, and deletes the files of others.

        Args:
            restart: delete all.
        """
        found: dict[int, list[Manifest]] = {}
        self._attempts, self.count, self.totals = {}, 0, Totals()
        for part in self._parts.read():
            if part.units and part.units[0] // UNITS == self._video:
                segment, attempt = divmod(part.units[0] % UNITS, ATTEMPTS)
                self._attempts[segment] = max(attempt, self._attempts.get(segment, 0))
                with suppress(ValueError):
                    manifest = Manifest.unpack(part.content)
                    found.setdefault(manifest.segment, []).append(manifest)
        if restart:
            found = {}
        if final := found.get(FINAL):
            self.totals = final[-1].totals
            self.clear()
            return
        for segment in range(len(found)):
            whole = [manifest for manifest in found.get(segment, []) if self._is_whole(manifest)]
            if not whole:
                break
            self.count, self.totals = segment + 1, whole[-1].totals
        kept = {self.path(number, suffix) for number in range(self.count) for suffix in (LINES, PIECE)}
        for path in self._parts.path.glob(f"{self._start}*"):
            if path not in kept:
                make_way(path)

    def _is_whole(self, manifest: Manifest) -> bool:
        """Whether the files of a segment are as they were written."""
        checksum = size = 0
        try:
            with open_file(self.path(manifest.segment, LINES)) as file:
                while block := file.read(BLOCK):
                    checksum, size = zlib.crc32(block, checksum), size + len(block)
            piece = self.path(manifest.segment, PIECE)
            piece_size = piece.stat().st_size if manifest.piece_size else 0
        except OSError:
            return False
        return (size, checksum, piece_size) == (manifest.lines_size, manifest.lines_checksum, manifest.piece_size)

    def lines(self) -> Iterator[bytes]:
        """All lines so far."""
        for path in self.paths(LINES):
            with open_file(path) as file:
                yield from file

    def start(self) -> SegmentWriter:
        """A writer of the next segment."""
        return SegmentWriter(self.path(self.count, LINES), self.path(self.count, PIECE))

    def complete(self, writer: SegmentWriter, totals: Totals) -> None:
        """Adds the segment that was written."""
        sizes = writer.finish()
        self._add(Manifest(segment=self.count, totals=totals, **sizes))
        self.count, self.totals = self.count + 1, totals.model_copy(deep=True)

    def finish(self, totals: Totals) -> None:
        """Notes that the results of the video are complete, and deletes its segments."""
        totals.finished = True
        self._add(Manifest(segment=FINAL, totals=totals, lines_size=0, lines_checksum=0, piece_size=0))
        self.clear()

    def _add(self, manifest: Manifest) -> None:
        attempt = self._attempts.get(manifest.segment, -1) + 1
        self._attempts[manifest.segment] = attempt
        unit = self._video * UNITS + manifest.segment * ATTEMPTS + attempt % ATTEMPTS
        self._parts.add(Part([unit], manifest.pack()))

    def clear(self) -> None:
        """Deletes the files of all segments."""
        for path in self._parts.path.glob(f"{self._start}*"):
            make_way(path, ignore_errors=True)


class SegmentWriter:
    """Writes one segment.

    Args:
        lines: path of the lines.
        piece: path of the piece of the drawn video; without frames there is none.
    """

    def __init__(self, lines: Path, piece: Path) -> None:
        self._paths = {path: path.with_name(f"{path.name}.tmp") for path in (lines, piece)}
        self._lines_path, self._piece_path = lines, piece
        self._stack = ExitStack()
        self._file = self._stack.enter_context(self._paths[lines].open("wb"))
        self._piece: PieceWriter | None = None
        self._size = self._checksum = 0
        self.frames = 0

    def add(self, line: bytes) -> None:
        """Writes the line of a frame."""
        self._file.write(line)
        self._size += len(line)
        self._checksum = zlib.crc32(line, self._checksum)
        self.frames += 1

    def draw(self, pixels: NDArray[np.uint8], pts: int, video: VideoFormat) -> None:
        """Encodes a drawn frame (H, W, 3) uint8 RGB."""
        if self._piece is None:
            self._piece = self._stack.enter_context(open_piece(self._paths[self._piece_path], video))
        self._piece.add(pixels, pts)

    def finish(self) -> dict[str, int]:
        """Completes the files.

        Returns:
            what the manifest says of them.
        """
        self._stack.close()
        rename_synced(self._paths[self._lines_path], self._lines_path)
        piece_size = 0
        if self._piece is not None:
            rename_synced(self._paths[self._piece_path], self._piece_path)
            piece_size = self._piece_path.stat().st_size
        return {"lines_size": self._size, "lines_checksum": self._checksum, "piece_size": piece_size}

    def abort(self) -> None:
        """Deletes the files, whatever state they are in."""
        with suppress(Exception):
            self._stack.close()
        for temporary in self._paths.values():
            make_way(temporary, ignore_errors=True)
