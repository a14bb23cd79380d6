"""Predicts videos, one after the other, in one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from codetr_cli.distributed.part_files import PartFiles
from codetr_cli.distributed.shared_work import stop_request
from codetr_cli.errors import CheckpointError, DatasetError
from codetr_cli.inference.detector import Detector
from codetr_cli.inference.exported.network import runtime_facts
from codetr_cli.inference.loading import load_detector
from codetr_cli.prediction.video.job import VideoJob
from codetr_cli.prediction.video.outcome import VideoOutcome
from codetr_cli.prediction.video.recording import VideoRun
from codetr_cli.prediction.video.segments import check_manifest
from codetr_cli.runtime.devices import use_device

Show = Callable[[str, int | None, int], AbstractContextManager[Callable[[int], object]]]
"""Shows progress: from the name of a video, its number of frames and how many were done before."""


@dataclass(frozen=True)
class VideosOutcome:
    """Results of all videos.

    Attributes:
        folder: of the files.
        checkpoint: the file of the weights.
        device: where the network ran.
        videos: of each video that could be read.
        failed: videos that cannot be read: as given -> reason.
        stopped: number of the signal that ended a live stream; None: the command ended by itself.
        runtime: `runtime_facts` of the network.
    """

    folder: Path
    checkpoint: str
    device: str
    videos: list[VideoOutcome]
    failed: dict[str, str]
    stopped: int | None = None
    runtime: Mapping[str, Any] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "checkpoint": self.checkpoint,
            "out": str(self.folder),
            **self.runtime,
            "videos": [video.summary() for video in self.videos],
            "failed": [{"video": name, "error": error} for name, error in self.failed.items()],
        }


def run_videos(job: VideoJob, *, device: torch.device, show: Show, warn: Callable[[str], object]) -> VideosOutcome:
    """Predicts videos one after the other in this process, and writes the results of each.

    Args:
        job: what to predict.
        device: where the network runs.
        show: shows the progress of a video.
        warn: shows a sentence about a video or stream.

    Raises:
        StoppedError: a signal came; the results so far are kept, and the same command continues.
        CodetrError: any error that the user can fix.
    """
    job.check()
    with ExitStack() as stack:
        shown = stack.enter_context(ExitStack())
        stop = stack.enter_context(stop_request(shown.close))
        digest = job.digest(device.type)
        device = use_device(device)
        loaded = load_detector(job.weights, device, list(job.overrides))
        if job.digest(device.type) != digest:
            raise CheckpointError("the checkpoint was replaced while it was being loaded: run the same command again")
        job.options.check_classes(loaded.class_names)
        detector = Detector(loaded, device=device, precision=job.precision, tta=job.tta)
        detector.log_tiles(job.options)
        parts = PartFiles(job.out, job.inputs, check_manifest)
        parts.open(digest, lambda: job.choose_folder(digest))
        stack.callback(lambda: parts.close(remove=False))
        outcomes: list[VideoOutcome] = []
        failed: dict[str, str] = {}
        remaining = list(enumerate(job.videos))
        while remaining:
            index, video = remaining.pop(0)
            run = VideoRun(job, index, detector=detector, parts=parts, request=digest, stop=stop, warn=warn)
            try:
                outcomes.append(run.run(lambda *what: shown.enter_context(show(*what))))
            except DatasetError as error:
                warn(str(error))
                failed[video.label] = str(error)
            shown.close()
            if run.is_live and stop.number is not None:
                break
        parts.close(remove=not remaining)
        return VideosOutcome(
            folder=parts.folder,
            checkpoint=str(loaded.path or job.weights),
            device=str(device),
            videos=outcomes,
            failed=failed,
            stopped=stop.number if run.is_live else None,
            runtime=runtime_facts(loaded.model),
        )
