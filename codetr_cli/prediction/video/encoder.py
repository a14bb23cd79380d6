"""Drawn videos: encoded in pieces, one a segment, which are joined without encoding again.

Every frame gets the timestamp of its source. The encoder sees frames at a constant rate and makes no frames that depend
on later ones, so that packets have the order of frames and get the timestamps afterwards, exact in any codec.
"""

from __future__ import annotations

import functools
import heapq
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from codetr_cli.errors import ResourceError
from codetr_cli.prediction.video.container import import_av, reason

Pixels = NDArray[np.uint8]

PIECE_FORMAT = "nut"
"""Container of the pieces: it holds any time base exactly."""
HD_HEIGHT = 720
"""Videos from this height on have the colours of BT.709, smaller ones those of BT.601, as players assume."""
_CODECS: dict[str, dict[str, str]] = {
    "libx264": {"preset": "veryfast", "crf": "20", "bf": "0"},
    "libopenh264": {},
    "h264_videotoolbox": {"allow_sw": "1"},
    "mpeg4": {"bf": "0"},
}
"""Codecs by preference, and their options."""


@dataclass(frozen=True)
class VideoFormat:
    """What all pieces of a video have in common.

    Attributes:
        size: (height, width) of the frames in pixels.
        time_base: seconds of a timestamp's unit.
        rate: frames per second for the encoder; timestamps do not depend on it.
        aspect: width of a pixel by its height.
    """

    size: tuple[int, int]
    time_base: Fraction
    rate: Fraction
    aspect: Fraction = Fraction(1)


@functools.cache
def choose_codec() -> str:
    """The best codec that this build of PyAV has.

    Raises:
        ResourceError: PyAV is not installed, or has none of them.
    """
    av = import_av()
    for name, options in _CODECS.items():
        try:
            context = av.CodecContext.create(name, "w")
            context.width, context.height, context.pix_fmt = 64, 64, "yuv420p"
            context.time_base, context.framerate, context.options = Fraction(1, 25), Fraction(25), dict(options)
            context.open()
        except (av.error.FFmpegError, ValueError):
            continue
        return name
    raise ResourceError(
        f"PyAV {av.__version__} here has no encoder of {', '.join(_CODECS)}: install the wheel of PyAV (pip install "
        "--force-reinstall av), or use --no-draw"
    )


class PieceWriter:
    """Encodes the frames of a segment into a file; use `open_piece`."""

    def __init__(self, container: Any, stream: Any, video: VideoFormat) -> None:
        self._container, self._stream, self._video = container, stream, video
        self._pts: deque[int] = deque()
        self._count = 0
        self._duration = max(1, round(1 / (video.rate * video.time_base)))

    def add(self, pixels: Pixels, pts: int) -> None:
        """Encodes a frame (H, W, 3) uint8 RGB of any size; timestamps ascend."""
        av = import_av()
        height, width = self._video.size
        frame = av.VideoFrame.from_ndarray(_fitted(pixels, height, width), format="rgb24")
        colours = av.video.reformatter.Colorspace.ITU709 if height >= HD_HEIGHT else None
        frame = frame.reformat(format="yuv420p", **({} if colours is None else {"dst_colorspace": colours}))
        frame.pts, frame.time_base = self._count, 1 / self._stream.codec_context.framerate
        self._count += 1
        self._pts.append(pts)
        self._mux(self._stream.encode(frame))

    def finish(self) -> None:
        """Encodes what is left."""
        self._mux(self._stream.encode(None))

    def _mux(self, packets: Sequence[Any]) -> None:
        for packet in packets:
            packet.time_base = self._video.time_base
            packet.pts = packet.dts = self._pts.popleft()
            packet.duration = self._duration
            self._container.mux(packet)


@contextmanager
def open_piece(path: Path, video: VideoFormat) -> Iterator[PieceWriter]:
    """Writes a piece; it is whole when the block ends.

    Raises:
        ResourceError: the disk is full, the folder cannot be written, or the encoder failed.
    """
    av = import_av()
    with _errors(av, path):
        container = av.open(_address(path), "w", format=PIECE_FORMAT)
        try:
            stream = container.add_stream(choose_codec(), rate=video.rate, options=dict(_CODECS[choose_codec()]))
            context = stream.codec_context
            height, width = (side + side % 2 for side in video.size)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            context.sample_aspect_ratio = video.aspect
            context.time_base = 1 / video.rate
            matrix = 1 if height >= HD_HEIGHT else 6  # numbers of ISO 23001-8
            context.colorspace = context.color_primaries = context.color_trc = matrix
            if choose_codec() != "libx264":
                context.bit_rate = min(max(3 * width * height, 500_000), 40_000_000)
            stream.time_base = video.time_base
            writer = PieceWriter(container, stream, VideoFormat((height, width), *_rest(video)))
            yield writer
            writer.finish()
        finally:
            container.close()


def _rest(video: VideoFormat) -> tuple[Fraction, Fraction, Fraction]:
    return video.time_base, video.rate, video.aspect


def _fitted(pixels: Pixels, height: int, width: int) -> Pixels:
    """Pixels at the size of the video: scaled inside it where a stream has changed its size, edges repeated to even."""
    if pixels.shape[:2] == (height, width):
        return pixels
    fitted = pixels
    if not (0 <= height - pixels.shape[0] <= 1 and 0 <= width - pixels.shape[1] <= 1):
        scale = min(height / pixels.shape[0], width / pixels.shape[1])
        sides = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
        fitted = cv2.resize(pixels, sides, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR).astype(
            np.uint8
        )
    bottom, right = height - fitted.shape[0], width - fitted.shape[1]
    if bottom <= 1 and right <= 1:
        return np.pad(fitted, ((0, bottom), (0, right), (0, 0)), mode="edge")
    return np.pad(fitted, ((bottom // 2, -(-bottom // 2)), (right // 2, -(-right // 2)), (0, 0)))


@dataclass(frozen=True)
class Sound:
    """Sound that is copied into a joined video.

    Attributes:
        container: PyAV's, of the source.
        stream: the audio stream.
        start: of the drawn frames, seconds of the source.
        end: the same.
        shift: seconds that are subtracted from its times.
    """

    container: Any
    stream: Any
    start: Fraction
    end: Fraction
    shift: Fraction

    def packets(self) -> Iterator[tuple[Fraction, Any]]:
        """(time, packet) of the range, in order."""
        for packet in self.container.demux(self.stream):
            if packet.pts is None or packet.dts is None:
                continue
            time = packet.pts * packet.time_base
            if time > self.end:
                return
            if time >= self.start:
                shift = round(self.shift / packet.time_base)
                packet.pts -= shift
                packet.dts -= shift
                yield time - self.shift, packet


def join_pieces(pieces: Sequence[Path], path: Path, time_base: Fraction, sound: Sound | None = None) -> None:
    """Joins pieces into an MP4 file; nothing is encoded.

    Args:
        pieces: in order, at least one.
        path: the file, which is replaced.
        time_base: of the timestamps.
        sound: copied beside the pictures.

    Raises:
        ResourceError: the disk is full or a piece is damaged.
    """
    av = import_av()
    # The time before the first frame is in units of the whole file.
    options = {name: str(time_base.denominator) for name in ("video_track_timescale", "movie_timescale")}
    options["movflags"] = "faststart"
    with _errors(av, path), ExitStack() as stack:
        output = stack.enter_context(av.open(_address(path), "w", format="mp4", options=options))
        with av.open(_address(pieces[0]), format=PIECE_FORMAT) as first:
            stream = output.add_stream_from_template(first.streams.video[0])
            stream.time_base = time_base
            audio = None if sound is None else output.add_stream_from_template(sound.stream)
            pictures = ((time, packet, stream) for time, packet in _packets(av, pieces))
            sounds = () if sound is None else ((time, packet, audio) for time, packet in sound.packets())
            for _, packet, target in heapq.merge(pictures, sounds, key=lambda item: item[0]):
                packet.stream = target
                output.mux(packet)


def _packets(av: Any, pieces: Sequence[Path]) -> Iterator[tuple[Fraction, Any]]:
    for piece in pieces:
        with av.open(_address(piece), format=PIECE_FORMAT) as container:
            for packet in container.demux(video=0):
                if packet.pts is not None:
                    packet.dts = packet.pts
                    yield packet.pts * packet.time_base, packet


def can_hold(codec: str) -> bool:
    """Whether an MP4 file may have sound of a codec, by FFmpeg's name."""
    return codec in ("aac", "mp3", "mp3float", "ac3", "eac3", "opus", "libopus", "alac", "flac")


def _address(path: Path) -> str:
    """The path for FFmpeg, which would take the start of a name such as `concat:a` for a protocol."""
    return f"file:{path.absolute()}"


@contextmanager
def _errors(av: Any, path: Path) -> Iterator[None]:
    try:
        yield
    except av.error.FFmpegError as error:
        raise ResourceError(
            f"cannot write {path}: {reason(error)}. Free some space or choose another folder with --out, then run the "
            "same command again"
        ) from error
