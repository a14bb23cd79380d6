"""What to predict of videos, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path

from codetr_cli.distributed.part_files import output_folder, request_digest
from codetr_cli.errors import DatasetError
from codetr_cli.inference.draw_options import DrawOptions
from codetr_cli.inference.loading import find_checkpoint
from codetr_cli.inference.options import DetectOptions
from codetr_cli.prediction.video.container import import_av
from codetr_cli.prediction.video.encoder import choose_codec
from codetr_cli.prediction.video.inputs import VideoInput
from codetr_cli.prediction.video.segments import UNITS
from codetr_cli.prediction.video.tracking import import_tracker


@dataclass(frozen=True, kw_only=True)
class VideoJob:
    """What to predict, and how; the attributes are those of `codetr predict`.

    Attributes:
        videos: one after the other.
        weights: as `inference.loading.load_detector` takes them.
        overrides: settings as `key=value`.
        precision: "auto" (fp32), "fp32", "tf32", "bf16" or "fp16".
        tta: test-time augmentation.
        options: how frames are detected.
        draw: whether a video with the detections is drawn.
        drawing: how; formats of image files have no meaning.
        stride: of the frames; 1: all.
        start: seconds after the first frame.
        end: seconds after the first frame, excluded.
        track: whether objects get ids.
        rate: frames per second of image sequences.
        out: the output folder.
        force: replace own results in the output folder; otherwise the next free one is used.
    """

    videos: Sequence[VideoInput]
    weights: str
    overrides: Sequence[str] = ()
    precision: str = "auto"
    tta: bool = False
    options: DetectOptions = field(default_factory=DetectOptions)
    draw: bool = True
    drawing: DrawOptions = field(default_factory=DrawOptions)
    stride: int = 1
    start: Fraction | None = None
    end: Fraction | None = None
    track: bool = False
    rate: Fraction = Fraction(25)
    out: Path
    force: bool = False

    def check(self) -> None:
        """Ensures that the packages are installed that this job needs.

        Raises:
            ResourceError: one is not.
        """
        import_av()
        if self.track:
            import_tracker()
        if self.draw:
            choose_codec()

    def digest(self, device_type: str) -> str:
        """A name of everything that the results depend on, except the content of video files."""
        options = {name: value for name, value in asdict(self.options).items() if name != "workers"}
        return request_digest(
            kind="video",
            weights=find_checkpoint(self.weights) or self.weights,
            videos=[(_place(video), video.kind, video.name) for video in self.videos],
            images=request_digest(
                **{str(n): _states(video) for n, video in enumerate(self.videos) if video.kind == "sequence"}
            ),
            device=device_type,
            overrides=[text for text in self.overrides if not text.startswith("data.workers=")],
            options=options,
            encoder=(choose_codec(), import_av().__version__, asdict(self.drawing)) if self.draw else None,
            **{name: str(getattr(self, name)) for name in ("start", "end", "rate")},
            **{name: getattr(self, name) for name in ("tta", "draw", "precision", "stride", "track")},
        )

    def result_names(self) -> list[str]:
        """Names in the output folder that the results have."""
        suffixes = (".jsonl", ".mp4") if self.draw else (".jsonl",)
        return [f"{video.name}{suffix}" for video in self.videos for suffix in suffixes]

    def choose_folder(self, digest: str) -> Path:
        """The output folder: that of the same command before, or a free one."""
        folder = output_folder(self.out, *self.result_names(), request=digest, force=self.force)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def inputs(self, unit: int) -> list[Path]:
        """The files that a segment depends on."""
        video = self.videos[unit // UNITS] if unit // UNITS < len(self.videos) else None
        return list(video.files) if video is not None and video.kind == "file" else []


def _place(video: VideoInput) -> str:
    return video.text if video.kind in ("url", "camera") else str(Path(video.text).absolute())


def _states(video: VideoInput) -> list[tuple[str, int, int]]:
    states = []
    for path in video.files:
        try:
            found = path.stat()
        except OSError as error:
            raise DatasetError(f"cannot read {path}: {error.strerror}. Check the files of the sequence") from error
        states.append((path.name, found.st_size, found.st_mtime_ns))
    return states
