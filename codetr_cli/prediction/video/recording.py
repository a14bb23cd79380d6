"""One video: its frames through the detector, and what becomes of them."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codetr_cli.distributed.part_files import PartFiles
from codetr_cli.errors import DatasetError, ResourceError, StoppedError, counted
from codetr_cli.inference.detector import Detector
from codetr_cli.inference.prediction import Prediction
from codetr_cli.inference.stream import detect_stream
from codetr_cli.prediction.shards import DETECTION_KEYS
from codetr_cli.prediction.video.encoder import VideoFormat, choose_codec
from codetr_cli.prediction.video.frames import (
    FileFrames,
    FrameSource,
    Problems,
    SequenceFrames,
    VideoFrame,
    chosen,
    readable_size,
)
from codetr_cli.prediction.video.job import VideoJob
from codetr_cli.prediction.video.joining import join_with_sound
from codetr_cli.prediction.video.live import LiveFrames
from codetr_cli.prediction.video.outcome import VideoOutcome
from codetr_cli.prediction.video.segments import LINES, PIECE, SegmentStore, SegmentWriter
from codetr_cli.prediction.video.tracking import Tracker
from codetr_cli.result_files import write_result
from codetr_cli.runtime.signals import StopRequest

Pixels = NDArray[np.uint8]
SEGMENT_FRAMES, SEGMENT_S = 300, 10.0
"""A segment ends after so many frames or seconds of work."""
LOWEST_RATE = Fraction(1, 1001)
"""Of the encoder, in frames per second; timestamps do not depend on it."""
JUMP_S = 1
"""A timestamp so much before the one before it begins another recording."""
MAX_LEAD_S = 10
"""A drawn video that would begin later begins at 0."""


@dataclass(frozen=True)
class FrameResult:
    """What the detector gives of a frame.

    Attributes:
        frame: of the video.
        size: (height, width) in pixels; None: it could not be read.
        detections: plain values, as in the lines.
        pixels: (H, W, 3) uint8 RGB for the drawn video; None: nothing is drawn.
        prediction: to be drawn on the pixels once the ids are known; None: they are drawn.
        error: why the frame could not be read; empty if it could.
    """

    frame: VideoFrame
    size: tuple[int, int] | None = None
    detections: list[dict[str, Any]] | None = None
    pixels: Pixels | None = None
    prediction: Prediction | None = None
    error: str = ""


class VideoRun:
    """Predicts one video of a job.

    Args:
        job: what to predict.
        index: number of the video in it.
        detector: finds the objects.
        parts: open.
        request: name of the request.
        stop: whether a signal requested a stop.
        warn: shows a sentence.
    """

    def __init__(
        self,
        job: VideoJob,
        index: int,
        *,
        detector: Detector,
        parts: PartFiles,
        request: str,
        stop: StopRequest,
        warn: Callable[[str], object],
    ) -> None:
        self._job, self._video, self._detector = job, job.videos[index], detector
        self._parts, self._request, self._stop, self._warn = parts, request, stop, warn
        self._store = SegmentStore(parts, index)
        self._writer: SegmentWriter | None = None
        self._tracker: Tracker | None = None
        self._began = 0.0
        self._problems: Callable[[], dict[str, Any]] = dict
        self._batch = self._frames_of_a_batch()
        self._stored_size = (0, 0)
        self.is_live = False

    def run(self, show: Callable[[str, int | None, int], Callable[[int], object]]) -> VideoOutcome:
        """Predicts the video, from where an earlier start of the command ended.

        Args:
            show: from the name of the video, its number of frames, None if unknown, and how many were done before, to a
                function that counts more.

        Raises:
            StoppedError: a signal came; what was done is kept. A live stream ends there without an error.
            DatasetError: it cannot be read, or has no frame in the range.
        """
        self._store.recover()
        self.totals = self._store.totals.model_copy(deep=True)
        if not self.totals.finished or not all(path.exists() for path in self._results()):
            if self.totals.finished:
                self._store.recover(restart=True)
                self.totals = self._store.totals.model_copy(deep=True)
            self._detect(show)
            self._join()
        return self._outcome()

    # ------------------------------------------------------------------------------------------------------- detection

    def _detect(self, show: Callable[[str, int | None, int], Callable[[int], object]]) -> None:
        source = self._source_to_continue()
        self._problems = lambda: source.problems.as_dict()
        info = source.info
        self.is_live, self._stored_size = info.live, info.size
        self._drop_another_video(str(info))
        totals = self.totals
        if totals.frames == 0:
            totals.header = str(info)
            totals.time_base = [info.time_base.numerator, info.time_base.denominator]
            totals.rate = [info.rate.numerator, info.rate.denominator]
            totals.aspect = [info.aspect.numerator, info.aspect.denominator]
        self._start_tracker()
        if self._video.missing:
            numbers = counted(self._video.missing, "number", "have")
            self._warn(f"{numbers} no image in {self._video.label}: times are as if there were no gap.")
        if info.of_several > 1:
            pixels = " x ".join(str(side) for side in reversed(info.size))
            self._warn(
                f"{self._video.label} has {info.of_several} video streams: that of {pixels} pixels is predicted."
            )
        advance = show(self._video.name, self._expected(source), totals.frames)
        results = detect_stream(
            self._detector,
            self._frames(source),
            self._job.options,
            read=lambda frame: frame.decode(),
            finish=self._finish,
            failed=lambda frame, error: FrameResult(frame, error=str(error)),
            weigh=lambda frame: 3 * info.size[0] * info.size[1],
        )
        try:
            with closing(results):
                for result in results:
                    self._add(result)
                    advance(1)
                    if self._stop.number is not None and not self.is_live:
                        self._end_early()
            if self._stop.number is not None and not self.is_live:
                self._end_early()
            totals.problems = self._problems()
            self._complete_segment()
        finally:
            if self._writer is not None:
                self._writer.abort()
        if not totals.frames:
            self._no_frames()

    def _drop_another_video(self, header: str) -> None:
        """Starts again if an address has another video than before; the parts know this of files."""
        if self.totals.frames and not self.is_live and header != self.totals.header:
            self._warn(f"{self._video.label} has changed: it is predicted from its beginning again.")
            self._store.recover(restart=True)
            self.totals = self._store.totals.model_copy(deep=True)

    def _source_to_continue(self) -> FrameSource:
        """The source; what was done of it before is not given up with it."""
        try:
            return self._source()
        except DatasetError as error:
            if not self.totals.frames:
                raise
            done = counted(self.totals.frames, "frame", "are")
            raise ResourceError(
                f"{error}. {done} done and kept in {self._parts.folder}: the same command continues with the others"
            ) from error

    def _source(self) -> FrameSource:
        limit, video, totals = self._detector.loaded.settings.data.max_pixels, self._video, self.totals
        if video.kind == "sequence":
            return SequenceFrames(video, rate=self._job.rate, max_pixels=limit)
        source = FileFrames(video, max_pixels=limit)
        if not source.info.live:
            return source
        more = {
            "number": totals.last_number + 1,
            "pts": totals.last_pts + 1,
            "time_base": Fraction(*totals.time_base),
            "problems": Problems(**totals.problems),
        }
        return LiveFrames(
            video,
            source.info,
            max_pixels=limit,
            stopped=lambda: self._stop.number is not None,
            warn=self._warn,
            **(more if totals.frames else {}),  # type: ignore[arg-type]
        )

    def _frames(self, source: FrameSource) -> Iterator[VideoFrame]:
        """The chosen frames that are not done yet."""
        job, first = self._job, Fraction(0) if source.info.live else None
        done = self.totals.last_number
        frames = chosen(self._until_stopped(source), stride=job.stride, start=job.start, end=job.end, first=first)
        return (frame for frame in frames if frame.number > done)

    def _until_stopped(self, source: FrameSource) -> Iterator[VideoFrame]:
        """All frames; those before the first one to detect can take minutes, which a stop does not wait for."""
        for frame in source.frames():
            if self._stop.number is not None and not source.info.live:
                return
            yield frame

    def _expected(self, source: FrameSource) -> int | None:
        """The number of chosen frames by the header; it may be wrong."""
        info = source.info
        end = info.seconds if self._job.end is None else min(self._job.end, info.seconds or self._job.end)
        if end is None:
            return None
        seconds = max(Fraction(0), end - (self._job.start or 0))
        return max(1, math.ceil(seconds * info.rate / self._job.stride))

    def _frames_of_a_batch(self) -> int:
        """A segment ends with a batch, so that a restart has the same batches; an automatic size changes anyway."""
        return self._job.options.images_at_once(self._detector.device.type) or 1

    def _finish(self, frame: VideoFrame, pixels: Pixels, prediction: Prediction, seconds: float) -> FrameResult:
        """The result of a frame; any thread may call it."""
        names = dict(zip(prediction.category_ids.tolist(), prediction.class_names, strict=True))
        records = [{**record, "category_name": names[record["category_id"]]} for record in prediction.to_coco(0)]
        detections = [{key: record[key] for key in DETECTION_KEYS if key in record} for record in records]
        if not self._job.draw:
            return FrameResult(frame, prediction.image_size, detections)
        if self._job.track:
            return FrameResult(frame, prediction.image_size, detections, pixels, prediction)
        return FrameResult(frame, prediction.image_size, detections, prediction.drawn_on(pixels, self._job.drawing))

    # --------------------------------------------------------------------------------------------------------- results

    def _add(self, result: FrameResult) -> None:
        totals, frame = self.totals, result.frame
        if self._writer is None:
            self._writer, self._began = self._store.start(), time.monotonic()
        detections = result.detections or []
        ids = self._tracker.update(detections, frame.time) if self._tracker is not None else []
        for detection, number in zip(detections, ids, strict=False):
            detection["track_id"] = number
        height, width = result.size or (None, None)
        line: dict[str, Any] = {
            "frame": frame.number,
            "pts": frame.pts,
            "time": float(frame.time),
            "height": height,
            "width": width,
        }
        if frame.file is not None:
            line["file"] = str(frame.file)
        line |= {"detections": detections, "error": result.error or None}
        self._writer.add(json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
        totals.first_pts = totals.first_pts if totals.frames else frame.pts
        if self._job.draw:
            self._draw(self._writer, result, ids)
        totals.frames += 1
        totals.failed += bool(result.error)
        totals.last_number, totals.last_pts = frame.number, frame.pts
        totals.detections += len(detections)
        totals.objects = dict(Counter(totals.objects) + Counter(each["category_name"] for each in detections))
        totals.tracks = self._tracker.count if self._tracker is not None else 0
        full = self._writer.frames >= SEGMENT_FRAMES or time.monotonic() - self._began >= SEGMENT_S
        if full and totals.frames % self._batch == 0:
            self._complete_segment()

    def _draw(self, writer: SegmentWriter, result: FrameResult, ids: list[int | None]) -> None:
        totals, pixels, prediction = self.totals, result.pixels, result.prediction
        if pixels is not None and prediction is not None:
            names = [
                name if number is None else f"{name} #{number}"
                for name, number in zip(prediction.class_names, ids, strict=True)
            ]
            pixels = replace(prediction, class_names=names).drawn_on(pixels, self._job.drawing)
        if pixels is None:  # a frame that cannot be read is black
            pixels = np.zeros((*(totals.size or self._blank_size()), 3), np.uint8)
        if totals.size is None:
            totals.size = list(pixels.shape[:2])
            if result.frame.is_turned:
                totals.aspect.reverse()
        base, pts = Fraction(*totals.time_base), result.frame.pts
        if not totals.frames:
            late = pts * base > MAX_LEAD_S or pts < 0
            totals.shift = pts if late or self._job.start is not None or self.is_live else 0
            totals.drawn_pts = pts - totals.shift
        else:
            back = totals.drawn_pts - (pts - totals.shift)
            if back * base >= JUMP_S:  # joined files: what follows keeps its distances
                totals.jumps += 1
                totals.shift -= back + max(1, round(self._job.stride / (Fraction(*totals.rate) * base)))
            totals.moved += back >= 0
            totals.drawn_pts = max(pts - totals.shift, totals.drawn_pts + 1)
        size = (totals.size[0], totals.size[1])
        rate = max(Fraction(*totals.rate).limit_denominator(1001), LOWEST_RATE)
        format_ = VideoFormat(size, base, rate, Fraction(*totals.aspect))
        writer.draw(pixels, totals.drawn_pts, format_)

    def _blank_size(self) -> tuple[int, int]:
        return readable_size(self._video, self._stored_size, max_pixels=self._detector.loaded.settings.data.max_pixels)

    def _complete_segment(self) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            self.totals.problems = self._problems()
            try:
                self._store.complete(writer, self.totals)
            except BaseException:
                writer.abort()
                raise

    def _end_early(self) -> None:
        """Ends at the request of a signal, with what was done kept."""
        if self.totals.frames % self._batch == 0:
            self._complete_segment()
        done = self._store.totals.frames
        raise StoppedError(
            f"stopped: {counted(done, 'frame', 'are')} done of {self._video.label} and kept in {self._parts.folder}. "
            "The same command continues with the others.",
            self._stop.number or 15,
        )

    def _start_tracker(self) -> None:
        """A tracker in the state that the lines so far give it."""
        if not self._job.track:
            return
        totals = self.totals
        self._tracker = Tracker(self._job.stride / Fraction(*totals.rate))
        base = Fraction(*totals.time_base)
        for text in self._store.lines():
            line = json.loads(text)
            self._tracker.update(line["detections"], line["pts"] * base)

    def _no_frames(self) -> None:
        if self._stop.number is not None:
            raise StoppedError(f"stopped before the first frame of {self._video.label}", self._stop.number)
        if self._job.start is not None or self._job.end is not None:
            raise DatasetError(f"{self._video.label} has no frame between --start and --end: check its duration")
        raise DatasetError(f"{self._video.label} has no frame that can be read: it is damaged")

    # ----------------------------------------------------------------------------------------------------------- files

    def _results(self) -> list[Path]:
        folder, name = self._parts.folder, self._video.name
        return [folder / f"{name}.jsonl", *([folder / f"{name}.mp4"] if self._job.draw else [])]

    def _join(self) -> None:
        """Writes the files of the video from its segments."""
        how: dict[str, Any] = {"by": "predict", "force": self._job.force, "request": self._request}
        how["scratch"] = self._parts.path
        notes: list[str] = []
        if self._job.draw:
            with write_result(self._results()[1], **how) as temporary:
                notes += join_with_sound(
                    self._store.paths(PIECE),
                    temporary,
                    self._video,
                    self.totals,
                    stride=self._job.stride,
                    max_pixels=self._detector.loaded.settings.data.max_pixels,
                )
        with write_result(self._results()[0], **how) as temporary, temporary.open("wb") as target:
            for path in self._store.paths(LINES):
                with path.open("rb") as source:
                    shutil.copyfileobj(source, target)
        self.totals.problems["notes"] = notes
        self._store.finish(self.totals)

    def _outcome(self) -> VideoOutcome:
        totals, base = self.totals, Fraction(*self.totals.time_base)
        problems = dict(totals.problems)
        notes = problems.pop("notes", [])
        if totals.moved:
            moved = counted(totals.moved, "frame", "have")
            notes.append(f"{moved} a timestamp that is not after the one before: the drawn video has later ones")
        return VideoOutcome(
            source=self._video.label,
            lines=self._results()[0],
            video=self._results()[1] if self._job.draw else None,
            codec=choose_codec() if self._job.draw else None,
            frames=totals.frames,
            first_time=float(totals.first_pts * base),
            last_time=float(totals.last_pts * base),
            detections=totals.detections,
            objects=dict(Counter(totals.objects).most_common()),
            tracks=totals.tracks if self._job.track else None,
            failed=totals.failed,
            problems=problems,
            notes=notes,
        )
