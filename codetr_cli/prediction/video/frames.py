"""The frames of videos, in order, with their exact timestamps; pixels are made when they are asked for."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from codetr_cli.errors import ResourceError
from codetr_cli.images.decoder import NOT_THE_FILE, BrokenImageError, read_image
from codetr_cli.prediction.video.container import StreamInfo, import_av, open_video, reason
from codetr_cli.prediction.video.inputs import VideoInput

Pixels = NDArray[np.uint8]
MAX_NAMED = 100
"""Bad frames of a video that are named; all are counted."""
# A damaged header asks for more memory than there is.
_NOT_THE_FILE = {errno.EIO, *NOT_THE_FILE} - {errno.ENOMEM}


@dataclass(frozen=True)
class VideoFrame:
    """A frame.

    Attributes:
        number: among all frames of the video, from 0.
        pts: its timestamp.
        time_base: seconds of the timestamp's unit.
        decode: gives its upright pixels (H, W, 3) uint8 RGB; any thread may call it. Raises `BrokenImageError`.
        is_turned: whether they are stored with their sides exchanged.
        file: of an image sequence.
    """

    number: int
    pts: int
    time_base: Fraction
    decode: Callable[[], Pixels]
    is_turned: bool = False
    file: Path | None = None

    @property
    def time(self) -> Fraction:
        """In seconds."""
        return self.pts * self.time_base


@dataclass
class Problems:
    """What is wrong with a video.

    Attributes:
        bad: the first frames that could not be read: [number of the next frame, reason].
        bad_count: number of all.
        damaged: frames that the decoder has repaired.
        untimed: frames without a timestamp of their own.
        early_end: a sentence about a video that is shorter than its header says.
        dropped: frames of a live stream that came while the network was busy.
        reconnects: of a live stream.
    """

    bad: list[list[Any]] = field(default_factory=list)
    bad_count: int = 0
    damaged: int = 0
    untimed: int = 0
    early_end: str = ""
    dropped: int = 0
    reconnects: int = 0

    def add_bad(self, number: int, why: str) -> None:
        """Counts a frame that could not be read, before the frame of this number."""
        self.bad_count += 1
        if len(self.bad) < MAX_NAMED:
            self.bad.append([number, why])

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


class FrameSource(Protocol):
    """The frames of one video."""

    info: StreamInfo
    problems: Problems

    def frames(self) -> Iterator[VideoFrame]:
        """All frames, from the first one."""


class FileFrames:
    """The frames of a file, or of a URL with an end: every one, however long its reader takes.

    Args:
        video: the file or URL.
        max_pixels: of a frame.
    """

    def __init__(self, video: VideoInput, *, max_pixels: int) -> None:
        self._video, self._max_pixels, self._number = video, max_pixels, 0
        self.problems = Problems()
        with self._open() as (_, _, self.info):
            pass

    def _open(self) -> AbstractContextManager[tuple[Any, Any, StreamInfo]]:
        return open_video(self._video, max_pixels=self._max_pixels)

    def frames(self) -> Iterator[VideoFrame]:
        """All frames, from the first one; what cannot be decoded is in `problems`.

        Raises:
            ResourceError: the disk or the network failed.
        """
        problems = self.problems = Problems()
        self._number = end = 0
        with self._open() as (container, stream, info):
            times = _Timestamps(stream, info, in_order_of_coding=container.format.name == "avi")
            for frame in decoded(container, stream, self._video, lambda why: problems.add_bad(self._number, why)):
                problems.damaged += bool(frame.is_corrupt)
                pts = times.next(frame, problems)
                end = max(end, pts + max(frame.duration or 0, times.step))
                yield video_frame(self._number, pts, info.time_base, frame, self._video, self._max_pixels)
                self._number += 1
            problems.early_end = self._early_end(info, end * info.time_base if self._number else None)

    def _early_end(self, info: StreamInfo, end: Fraction | None) -> str:
        """A sentence about a video that is shorter than its header says; empty for others."""
        if end is None or info.seconds is None:
            return ""
        expected = (info.start or 0) + info.seconds
        if end + 2 / info.rate + Fraction(1, 2) >= expected:
            return ""
        return (
            f"{self._video.label} ends at {float(end):.2f} s, and its header says {float(expected):.2f} s: it is "
            "truncated"
        )


class _Timestamps:
    """The timestamps of the frames of a file, one after the other.

    Args:
        stream: PyAV's.
        info: of its header.
        in_order_of_coding: whether the file has timestamps of packets only, as AVI does: FFmpeg numbers the packets,
            and frames that are coded after later ones would have the wrong numbers.

    Attributes:
        step: from one frame to the next, on average.
    """

    def __init__(self, stream: Any, info: StreamInfo, *, in_order_of_coding: bool) -> None:
        self._context, self._in_order_of_coding = stream.codec_context, in_order_of_coding
        self.step = max(1, round(1 / (info.rate * info.time_base)))
        self._last: int | None = None

    def next(self, frame: Any, problems: Problems) -> int:
        """The timestamp of the next frame of PyAV."""
        pts, last = frame.pts, self._last
        if self._in_order_of_coding:
            # A frame is shown when the packet comes that lets it out, less the packets that the decoder waits for.
            # Those that come out at the end have no such packet.
            step = frame.duration or self.step
            pts = None if frame.dts is None else frame.dts - self._context.reorder_depth * step
            pts = last + step if last is not None and (pts is None or pts <= last) else max(0, pts or 0)
        if pts is None:
            problems.untimed += 1
            pts = 0 if last is None else last + self.step
        self._last = pts
        return int(pts)


class SequenceFrames:
    """The images of a numbered sequence as frames.

    Args:
        video: the sequence.
        rate: frames per second.
        max_pixels: of an image.
    """

    def __init__(self, video: VideoInput, *, rate: Fraction, max_pixels: int) -> None:
        self._files, self._max_pixels = video.files, max_pixels
        self.problems = Problems()
        count = len(video.files)
        self.info = StreamInfo(
            size=(0, 0),
            time_base=1 / rate,
            rate=rate,
            start=Fraction(0),
            seconds=count / rate,
            aspect=Fraction(1),
            codec="images",
            live=False,
        )

    def frames(self) -> Iterator[VideoFrame]:
        """All images, in the order of their numbers."""
        for number, path in enumerate(self._files):
            yield VideoFrame(number, number, self.info.time_base, _reader(path, self._max_pixels), file=path)


def _reader(path: Path, max_pixels: int) -> Callable[[], Pixels]:
    return lambda: read_image(path, max_pixels=max_pixels)


def readable_size(video: VideoInput, stored: tuple[int, int], *, max_pixels: int) -> tuple[int, int]:
    """The (height, width) that a frame has that cannot be read: that of the first image of a sequence that can be.

    Args:
        video: the video.
        stored: by the header of a file.
        max_pixels: of an image.
    """
    for path in video.files if video.kind == "sequence" else ():
        with suppress(BrokenImageError):
            height, width = read_image(path, max_pixels=max_pixels).shape[:2]
            return height, width
    return stored if min(stored) else (64, 64)


def decoded(container: Any, stream: Any, video: VideoInput, bad: Callable[[str], object]) -> Iterator[Any]:
    """PyAV's frames of a stream; a packet that cannot be decoded is reported and skipped.

    Raises:
        ResourceError: the disk or the network failed.
    """
    av = import_av()
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except (av.error.FFmpegError, OSError) as error:
            is_damage = isinstance(error, av.error.InvalidDataError | av.error.EOFError) or video.kind == "file"
            if not is_damage or error.errno in _NOT_THE_FILE:
                raise ResourceError(
                    f"cannot read {video.label} any further: {reason(error)}. The same command continues there"
                ) from error
            bad(f"the rest of the file cannot be read: {reason(error)}")
            packet = None
        try:
            yield from stream.codec_context.decode(packet)
        except av.error.EOFError:
            return
        except av.error.FFmpegError as error:
            bad(f"it cannot be decoded: {reason(error)}")
        if packet is None:
            return


def video_frame(
    number: int, pts: int, time_base: Fraction, frame: Any, video: VideoInput, max_pixels: int
) -> VideoFrame:
    """A frame of PyAV with its number and timestamp."""
    is_turned = round(frame.rotation / 90) % 2 == 1
    return VideoFrame(number, pts, time_base, pixels_of(frame, video, max_pixels), is_turned)


def pixels_of(frame: Any, video: VideoInput, max_pixels: int) -> Callable[[], Pixels]:
    """The function that makes the upright pixels of a frame of PyAV."""

    def decode() -> Pixels:
        if frame.width * frame.height > max_pixels:
            text = f"{frame.width} x {frame.height} pixels"
            raise BrokenImageError(
                f"a frame of {video.label} has {text}", Path(video.label), text, frame.width * frame.height
            )
        try:
            pixels = frame.to_ndarray(format="rgb24")
        except (ValueError, OSError, NotImplementedError) as error:  # PyAV's errors are of these types
            text = f"its pixels cannot be converted: {reason(error)}"
            raise BrokenImageError(
                f"a frame of {video.label} cannot be read: {text}", Path(video.label), text
            ) from error
        turns = round(frame.rotation / 90) % 4  # counterclockwise
        return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels

    return decode


def chosen(
    frames: Iterator[VideoFrame],
    *,
    stride: int = 1,
    start: Fraction | None = None,
    end: Fraction | None = None,
    first: Fraction | None = None,
) -> Iterator[VideoFrame]:
    """Every `stride`-th frame of a range of time.

    Args:
        frames: from the first one.
        stride: 1: all.
        start: seconds after the first frame; None: from it.
        end: seconds after the first frame, excluded; None: to the last one.
        first: time of the first frame; None: as it comes.
    """
    index = 0
    for frame in frames:
        first = frame.time if first is None else first
        if end is not None and frame.time - first >= end:
            return
        if start is None or frame.time - first >= start:
            if index % stride == 0:
                yield frame
            index += 1
