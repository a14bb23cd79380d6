"""Opens videos with PyAV, such that a file cannot open anything else.

FFmpeg recognizes a format by content: a playlist that is named `a.mp4` would open the files and addresses that it
names. Files are therefore read through a Python file, in formats that hold all their data, without any protocol;
streams may use the protocols of the network only.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from codetr_cli.errors import CodetrError, DatasetError, ResourceError
from codetr_cli.prediction.video.inputs import VideoInput
from codetr_cli.reading import open_file

SELF_CONTAINED = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,nut,mxf,h264,hevc,m4v,ivf,dv,obu"
)
"""Formats of files, by the names of FFmpeg's demuxers."""
OF_STREAMS = f"{SELF_CONTAINED},hls,rtsp,rtp,sdp,aac,mp3,ac3,eac3,webvtt"
NETWORK = "http,https,tcp,tls,crypto,httpproxy,rtsp,rtp,srtp,udp"
TIMEOUT_S = (15.0, 15.0)
"""Of a stream: to open it, and without any data."""


@dataclass(frozen=True, kw_only=True)
class StreamInfo:
    """What the header of a video says.

    Attributes:
        size: (height, width) in pixels as stored, before the rotation.
        time_base: seconds of a timestamp's unit.
        rate: frames per second, on average; may be a guess.
        start: time of the first frame in seconds, None if unknown.
        seconds: duration, None if unknown or endless.
        aspect: width of a pixel by its height.
        codec: name of the codec.
        live: whether it is a camera or a stream without an end, which does not wait for its reader.
        of_several: number of video streams that it is the best of.
    """

    size: tuple[int, int]
    time_base: Fraction
    rate: Fraction
    start: Fraction | None
    seconds: Fraction | None
    aspect: Fraction
    codec: str
    live: bool
    of_several: int = 1


def import_av() -> Any:
    """The package PyAV.

    Raises:
        ResourceError: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise ResourceError(
            f'videos need the package PyAV ({error}): pip install "codetr-cli[video]" (or pip install av)'
        ) from error
    return av


@contextmanager
def open_video(video: VideoInput, *, max_pixels: int) -> Iterator[tuple[Any, Any, StreamInfo]]:
    """Opens a file, URL or camera: PyAV's container, its video stream, and what its header says.

    Args:
        video: not an image sequence.
        max_pixels: videos with more in a frame are refused, and so are frames of another size later.

    Raises:
        DatasetError: it is not a video, has no video stream, or is too large.
        ResourceError: PyAV is not installed, or the address or camera cannot be reached.
    """
    av = import_av()
    with _opened(av, video) as container:
        stream = _video_stream(av, container, video)
        context = stream.codec_context
        pixels = context.width * context.height
        if pixels > max_pixels:
            raise DatasetError(
                f"{video.label} has frames of {context.width} x {context.height} pixels: use a smaller video, or allow "
                f"them with --set data.max_pixels={pixels}"
            )
        if context.width <= 0 or context.height <= 0:
            raise DatasetError(f"{video.label} has a video stream without pixels: it is damaged, or has no frames")
        context.options = {"max_pixels": str(max_pixels)}  # also of frames that change their size
        stream.thread_type = "SLICE" if video.kind == "camera" else "AUTO"
        yield container, stream, _info(av, container, stream, video)


def _video_stream(av: Any, container: Any, video: VideoInput) -> Any:
    """The stream of a video that players would show."""
    streams = _video_streams(av, container)
    if not streams:
        raise DatasetError(f"{video.label} has no video stream")
    best = container.streams.best("video")
    stream = best if best in streams else streams[0]
    if stream.codec_context is None:
        raise DatasetError(f"{video.label} has a video stream of a codec that PyAV {av.__version__} lacks")
    for other in streams:
        if other is not stream:
            other.discard = av.stream.Discard.all  # a playlist has one for each speed of the network
    return stream


def _video_streams(av: Any, container: Any) -> list[Any]:
    pictures = av.stream.Disposition.attached_pic  # of a cover
    return [stream for stream in container.streams.video if not stream.disposition & pictures]


@contextmanager
def _opened(av: Any, video: VideoInput) -> Iterator[Any]:
    """The container of a video, closed at the end."""
    with _errors(av, video):
        if video.kind == "file":
            file = _open_file(video)
            options = {"format_whitelist": SELF_CONTAINED, "protocol_whitelist": "none"}
            opener: Callable[[], Any] = lambda: av.open(file, options=options, metadata_errors="replace")  # noqa: E731
        elif video.kind == "camera":
            file = None
            opener = lambda: _open_camera(av, video)  # noqa: E731
        else:
            file = None
            opener = lambda: _open_url(av, video)  # noqa: E731
        try:
            container = opener()
        except BaseException:
            if file is not None:
                file.close()
            raise
    try:
        yield container
    finally:
        container.close()
        if file is not None:
            file.close()


def _open_file(video: VideoInput) -> Any:
    try:
        return open_file(video.files[0])
    except OSError as error:
        raise DatasetError(f"cannot read the video {video.label}: {error.strerror}. Check the file") from error


def _open_url(av: Any, video: VideoInput) -> Any:
    scheme = video.text.partition("://")[0].lower()
    options = {"format_whitelist": OF_STREAMS, "protocol_whitelist": NETWORK}
    if scheme.startswith("rtsp"):
        options |= {"rtsp_transport": "tcp"}  # no frames with missing packets
    else:
        options |= {"reconnect": "1", "reconnect_streamed": "1", "reconnect_delay_max": "5"}
    return av.open(video.text, options=options, timeout=TIMEOUT_S, metadata_errors="replace")


def _open_camera(av: Any, video: VideoInput) -> Any:
    number = video.text.partition(":")[2]
    if sys.platform == "linux":
        return av.open(f"/dev/video{int(number)}", format="v4l2", timeout=TIMEOUT_S)
    if sys.platform == "darwin":
        return av.open(number, format="avfoundation", options={"framerate": "30"}, timeout=TIMEOUT_S)
    raise ResourceError("cameras are read on Linux and macOS; elsewhere give the address of a stream")


@contextmanager
def _errors(av: Any, video: VideoInput) -> Iterator[None]:
    """Turns PyAV's errors into ours; their own text has the address with its password."""
    try:
        yield
    except CodetrError:
        raise
    except (av.error.InvalidDataError, av.error.ArgumentError, av.error.DecoderNotFoundError) as error:
        raise DatasetError(
            f"{video.label} is not a video that codetr reads, or is damaged ({reason(error)})"
        ) from error
    except (av.error.FFmpegError, OSError) as error:
        if video.kind == "file":
            raise DatasetError(f"cannot read the video {video.label}: {reason(error)}") from error
        what = (
            "the camera, and that no other program uses it" if video.kind == "camera" else "the address and the network"
        )
        raise ResourceError(f"cannot open {video.label}: {reason(error)}. Check {what}") from error


def reason(error: BaseException) -> str:
    """Why PyAV could not do something, without the name of a file or address."""
    if type(error).__name__ == "ExitError":
        return f"no data came for {TIMEOUT_S[1]:g} s"
    text = getattr(error, "strerror", None) or type(error).__name__
    return text[:1].lower() + text[1:200]


def _info(av: Any, container: Any, stream: Any, video: VideoInput) -> StreamInfo:
    context = stream.codec_context
    time_base = stream.time_base or Fraction(1, 90_000)
    seconds = None
    if stream.duration is not None and stream.duration > 0:
        seconds = stream.duration * time_base
    elif container.duration is not None and container.duration > 0 and len(container.streams) == 1:
        seconds = Fraction(container.duration, 1_000_000)
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    return StreamInfo(
        size=(context.height, context.width),
        time_base=Fraction(time_base),
        rate=Fraction(rate) if 0 < rate <= 1000 else Fraction(25),
        start=None if stream.start_time is None else stream.start_time * time_base,
        seconds=seconds,
        aspect=Fraction(stream.sample_aspect_ratio or context.sample_aspect_ratio or 1) or Fraction(1),
        codec=context.name,
        live=video.kind == "camera" or (video.kind == "url" and _is_endless(container)),
        of_several=len(_video_streams(av, container)),
    )


def _is_endless(container: Any) -> bool:
    """Whether a stream has no end: a file may have no duration in its header, but has a size."""
    if container.duration is not None and container.duration > 0:
        return False
    names = container.format.name.split(",")
    return bool({"hls", "rtsp", "rtp", "sdp"} & set(names)) or container.size <= 0
