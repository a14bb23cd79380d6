"""What a video gave: its files, numbers, and what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codetr_cli.errors import counted


@dataclass(frozen=True, kw_only=True)
class VideoOutcome:
    """Results of one video.

    Attributes:
        source: as given, without a password.
        lines: the JSON Lines file.
        video: the drawn video; None: not drawn.
        codec: of the drawn video.
        frames: number of chosen frames.
        first_time: of the first of them, in seconds.
        last_time: of the last one.
        detections: number of them.
        objects: number of detections by class.
        tracks: number of ids; None: not tracked.
        failed: chosen frames that could not be read.
        problems: see `frames.Problems`.
        notes: sentences about the results.
    """

    source: str
    lines: Path
    video: Path | None
    codec: str | None
    frames: int
    first_time: float
    last_time: float
    detections: int
    objects: dict[str, int]
    tracks: int | None
    failed: int
    problems: dict[str, Any]
    notes: list[str]

    @property
    def is_whole(self) -> bool:
        """Whether every frame of the video could be read."""
        return not (self.failed or self.problems.get("bad_count") or self.problems.get("early_end"))

    def summary(self) -> dict[str, Any]:
        """What `--json` prints of it."""
        facts = {name: value for name, value in vars(self).items() if name != "problems"}
        return {**facts, "lines": str(self.lines), "video": self.video and str(self.video), **self.problems}

    def sentences(self) -> list[str]:
        """What the user should know about the video and its results."""
        problems, found = self.problems, list(self.notes)
        if bad := problems.get("bad_count"):
            first = "; ".join(f"before frame {number}: {why}" for number, why in problems["bad"][:3])
            found.append(f"{counted(bad, 'frame')} of {self.source} cannot be read ({first})")
        if self.failed:
            found.append(
                f"{counted(self.failed, 'frame')} of {self.source} cannot be read, see `error` in {self.lines}"
            )
        if problems.get("early_end"):
            found.append(problems["early_end"])
        if damaged := problems.get("damaged"):
            found.append(f"{counted(damaged, 'frame', 'are')} damaged, and used as the decoder repaired them")
        if untimed := problems.get("untimed"):
            found.append(
                f"{counted(untimed, 'frame', 'have')} no timestamp: times are from the frame rate or the clock"
            )
        if dropped := problems.get("dropped"):
            found.append(f"{counted(dropped, 'frame')} dropped, because the stream was faster than the detection")
        return found
