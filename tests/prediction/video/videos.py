"""Videos for tests: small synthetic files with known frames and timestamps, and a detector that knows their objects."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from codetr_cli.inference.options import DetectOptions
from codetr_cli.inference.prediction import Prediction
from codetr_cli.models.postprocess import Detections
from codetr_cli.prediction.video import job as job_module
from codetr_cli.prediction.video import run
from codetr_cli.prediction.video.inputs import split_inputs
from codetr_cli.prediction.video.job import VideoJob
from codetr_cli.prediction.video.run import VideosOutcome

av = pytest.importorskip("av", reason="the extra [video] is not installed")

TIME_BASE = Fraction(1, 12_800)
SIZE = (48, 64)


def variable_pts(count: int, seed: int = 0) -> list[int]:
    """Timestamps of a variable frame rate: 20 to 60 frames a second."""
    steps = np.random.default_rng(seed).integers(210, 640, count - 1)
    return [0, *np.cumsum(steps).tolist()]


def grey(number: int, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """A frame that has its number as its brightness, modulo 50."""
    return np.full((*size, 3), 3 + 5 * (number % 50), np.uint8)


def number_of(pixels: NDArray[np.uint8]) -> int:
    """The number of a `grey` frame after coding, modulo 50."""
    return round((float(pixels.mean()) - 3) / 5)


def write_video(
    path: Path,
    pts: Sequence[int],
    *,
    picture: Callable[[int], NDArray[np.uint8]] = grey,
    codec: str = "libx264",
    time_base: Fraction = TIME_BASE,
    rotation: int = 0,
    sound: str = "",
    options: dict[str, str] | None = None,
) -> Path:
    """Writes a video with one frame a timestamp, and optionally a second of silence."""
    timescale = {"video_track_timescale": str(time_base.denominator)} if path.suffix in (".mp4", ".mov") else {}
    with av.open(str(path), "w", options=timescale) as container:
        stream = container.add_stream(codec, rate=30, options=options or {})
        height, width = picture(0).shape[:2]
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = time_base
        stream.time_base = time_base
        if rotation:
            stream.set_display_rotation(rotation)
        audio = container.add_stream(sound, rate=48_000) if sound else None
        for number, at in enumerate(pts):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts, frame.time_base = at, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if audio is not None:
            _write_silence(container, audio)
    return path


def _write_silence(container: Any, audio: Any) -> None:
    kind = "s16" if audio.codec_context.name.startswith("pcm") else "fltp"
    for block in range(47):
        samples = np.zeros((1, 1024), np.int16 if kind == "s16" else np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format=kind, layout="mono")
        frame.rate, frame.pts = 48_000, 1024 * block
        container.mux(audio.encode(frame))
    container.mux(audio.encode(None))


def read_video(path: Path) -> tuple[list[Fraction], list[int], Any]:
    """Times and numbers of `grey` frames of a video, and its (codec, size, number of audio streams)."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [
            (frame.pts * frame.time_base, number_of(frame.to_ndarray(format="rgb24")))
            for frame in container.decode(stream)
        ]
        facts = (stream.codec_context.name, (stream.height, stream.width), len(container.streams.audio))
    return [time for time, _ in frames], [number for _, number in frames], facts


Scene = Callable[[int], list[tuple[tuple[float, float, float, float], float, int]]]
"""From the number of a `grey` frame to its objects: (x1, y1, x2, y2), score and label."""


@dataclass
class _Prepared:
    number: int
    orig_size: tuple[int, int]
    image: NDArray[np.uint8]
    target: dict[str, Any]


class SceneDetector:
    """Stands for `Detector`: finds the objects of a scene in `grey` frames.

    Attributes:
        fail_at: called with the number of each frame before its detection.
        seen: numbers of the frames that were detected.
    """

    class_names = ("disc", "bar", "ring")
    category_ids = (2, 3, 7)
    device = torch.device("cpu")
    batch_size = SimpleNamespace(of=lambda options: 1, measured=lambda options: nullcontext(), halve=lambda size: None)

    def __init__(self, scene: Scene, *, max_pixels: int = 1_000_000) -> None:
        self._scene = scene
        data = SimpleNamespace(max_pixels=max_pixels)
        settings = SimpleNamespace(data=data)
        self.loaded = SimpleNamespace(settings=settings, path=Path("x"), class_names=self.class_names, model=None)
        self.before: Callable[[int], object] = lambda number: None
        self.seen: list[int] = []

    def prepare(self, pixels: NDArray[np.uint8], options: DetectOptions | None = None) -> _Prepared:
        size = (pixels.shape[0], pixels.shape[1])
        return _Prepared(number_of(pixels), size, pixels, {"orig_size": size})

    def log_tiles(self, options: DetectOptions) -> None:
        """It has no tiles of its own."""

    def shape_of(self, image: _Prepared) -> None:
        """Each image is a batch of its own."""

    def detect(self, images: Sequence[_Prepared], options: DetectOptions) -> list[Detections]:
        found = []
        for image in images:
            self.before(image.number)
            self.seen.append(image.number)
            rows = self._scene(image.number)
            boxes = torch.tensor([row[0] for row in rows], dtype=torch.float32).reshape(-1, 4)
            scores, labels = torch.tensor([row[1] for row in rows]), torch.tensor([row[2] for row in rows]).long()
            found.append(Detections(boxes, scores, labels))
        return found

    def to_prediction(self, detections: Detections, size: tuple[int, int], options: DetectOptions) -> Prediction:
        labels = detections.labels.numpy()
        return Prediction(
            boxes=detections.boxes.numpy(),
            scores=detections.scores.float().numpy(),
            labels=labels,
            category_ids=np.array(self.category_ids, np.int64)[labels],
            class_names=[self.class_names[label] for label in labels],
            image_size=size,
        )


def one_disc(number: int) -> list[tuple[tuple[float, float, float, float], float, int]]:
    """A disc that moves to the right."""
    return [((float(number), 8.0, number + 12.0, 24.0), 0.9, 0)]


def predict(
    monkeypatch: pytest.MonkeyPatch,
    detector: SceneDetector,
    texts: Sequence[object],
    out: Path,
    *,
    warn: Callable[[str], object] = lambda text: None,
    **options: Any,
) -> VideosOutcome:
    """Runs a job with a detector of a scene, without a checkpoint."""
    monkeypatch.setattr(job_module, "find_checkpoint", lambda weights: None)
    monkeypatch.setattr(run, "load_detector", lambda *arguments: detector.loaded)
    monkeypatch.setattr(run, "Detector", lambda *arguments, **more: detector)
    videos, others = split_inputs([str(text) for text in texts])
    assert others == []
    job = VideoJob(videos=videos, weights="x", out=out, **options)
    return run.run_videos(job, device=torch.device("cpu"), show=_no_progress, warn=warn)


@contextmanager
def _no_progress(name: str, total: int | None, done: int) -> Iterator[Callable[[int], object]]:
    yield lambda count: None


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The lines of a results file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
