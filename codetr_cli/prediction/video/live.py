"""The frames of cameras and endless streams: the newest ones; what comes while the network is busy is dropped."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction

from codetr_cli.errors import CodetrError, DatasetError, ResourceError
from codetr_cli.prediction.video.container import StreamInfo, open_video
from codetr_cli.prediction.video.frames import Problems, VideoFrame, decoded, video_frame
from codetr_cli.prediction.video.inputs import VideoInput

WAITING = 4
"""Decoded frames that wait for their detection, at most."""
POLL_S = 0.1
ATTEMPTS = 6
"""To connect again, one after the other without a frame, before the stream is given up."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 15.0


class LiveFrames:
    """The frames of a camera or of a stream without an end, received in a thread of their own.

    Timestamps are those of the stream, from 0 for the first frame. After a lost connection they continue by the clock.

    Args:
        video: the camera or URL.
        info: of its header.
        max_pixels: of a frame.
        stopped: whether to end; asked several times a second.
        warn: shows a sentence about a connection.
        number: of the first frame: those before were received by an earlier start of the command.
        pts: its timestamp.
        time_base: of the timestamps; None: that of the stream.
        problems: of that earlier start.
        pause_s: before the first attempt to connect again; it doubles. None: `FIRST_PAUSE_S`.
    """

    def __init__(
        self,
        video: VideoInput,
        info: StreamInfo,
        *,
        max_pixels: int,
        stopped: Callable[[], bool],
        warn: Callable[[str], object],
        number: int = 0,
        pts: int = 0,
        time_base: Fraction | None = None,
        problems: Problems | None = None,
        pause_s: float | None = None,
    ) -> None:
        self._video, self._max_pixels = video, max_pixels
        self._pause_s = FIRST_PAUSE_S if pause_s is None else pause_s
        self._stopped, self._warn = stopped, warn
        self._number, self._pts = number, pts
        self.problems = problems or Problems()
        self._waiting: deque[VideoFrame] = deque()
        self._changed = threading.Condition()
        self._ended = self._closed = False
        self._error: CodetrError | None = None
        self._arrived: float | None = None  # when the last frame came
        self.info = info if time_base is None else replace(info, time_base=time_base)

    def frames(self) -> Iterator[VideoFrame]:
        """The frames as they come, until the stream is lost for good or a stop is requested.

        Raises:
            CodetrError: it is lost before its first frame. Later it is one of the problems: the frames stay.
        """
        thread = threading.Thread(target=self._receive, name="live-frames", daemon=True)
        thread.start()
        try:
            while not self._stopped():
                with self._changed:
                    if not self._waiting and not self._ended:
                        self._changed.wait(POLL_S)
                    frame = self._waiting.popleft() if self._waiting else None
                if frame is not None:
                    yield frame
                elif self._ended:
                    if self._error is not None:
                        raise self._error
                    return
        finally:
            self._closed = True

    def _receive(self) -> None:
        """Connects, and again when the connection is lost."""
        failures, pause = 0, self._pause_s
        while not self._closed:
            before = self._number
            try:
                self._receive_once()
                lost = "the stream ended"
            except CodetrError as error:
                if isinstance(error, DatasetError) and not self._number:
                    self._end(error)
                    return
                lost = str(error).rstrip(".")  # also a page of a server that starts again
            except Exception as error:  # of a decoder, in a thread that nobody waits for
                lost = f"{type(error).__name__}: {error}"
            if self._number > before:
                failures, pause = 0, self._pause_s
            failures += 1
            if self._closed or self._stopped():
                break
            if failures > ATTEMPTS:
                given_up = f"{self._video.label} was given up after {ATTEMPTS} attempts: {lost}"
                if self._number:
                    self.problems.early_end = given_up
                self._end(None if self._number else ResourceError(given_up))
                return
            self._warn(f"{self._video.label}: {lost}. Connecting again in {pause:g} s (attempt {failures}).")
            self.problems.reconnects += 1
            self._sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)
        self._end(None)

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not (self._closed or self._stopped()):
            time.sleep(min(POLL_S, seconds))

    def _end(self, error: CodetrError | None) -> None:
        with self._changed:
            self._error, self._ended = error, True
            self._changed.notify_all()

    def _receive_once(self) -> None:
        """Receives the frames of one connection."""
        base, first, opened = self._pts, None, time.monotonic()
        with open_video(self._video, max_pixels=self._max_pixels) as (container, stream, info):
            if self._arrived is not None:  # the time without a connection is part of the timestamps
                base += max(1, round((time.monotonic() - self._arrived) / float(self.info.time_base)))
            for frame in decoded(container, stream, self._video, lambda why: self.problems.add_bad(self._number, why)):
                if self._closed or self._stopped():
                    return
                self.problems.damaged += bool(frame.is_corrupt)
                pts = self._timestamp(frame.pts, info, opened)
                first = pts if first is None else first
                self._pts = max(self._pts if self._arrived is None else self._pts + 1, base + pts - first)
                self._put(
                    video_frame(self._number, self._pts, self.info.time_base, frame, self._video, self._max_pixels)
                )
                self._number += 1
                self._arrived = time.monotonic()

    def _timestamp(self, pts: int | None, info: StreamInfo, opened: float) -> int:
        """A timestamp in the time base of the first connection; by the clock where the stream has none."""
        if pts is None:
            self.problems.untimed += 1
            return round(Fraction(time.monotonic() - opened) / self.info.time_base)
        return round(pts * info.time_base / self.info.time_base)

    def _put(self, frame: VideoFrame) -> None:
        with self._changed:
            if len(self._waiting) >= WAITING:
                self._waiting.popleft()
                self.problems.dropped += 1
            self._waiting.append(frame)
            self._changed.notify_all()
