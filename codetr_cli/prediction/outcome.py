"""What a prediction has found, in numbers: counted while the results pass by, since they are too many to keep."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from codetr_cli.distributed.shared_work import SharedWork
from codetr_cli.prediction.comparison import ComparisonTotals
from codetr_cli.prediction.results import ImageResult
from codetr_cli.prediction.targets import OutputTarget
from codetr_cli.result_files import write_result

SUMMARY_NAME = "summary.json"
LISTED_IMAGES = 10_000
"""Of a prediction of more images, `--json` names the files instead of holding the results."""
LISTED_FAILURES = 1_000


@dataclass
class Tally:
    """Counts results.

    Attributes:
        total: images of the whole prediction.
        images: what `--json` says of each image that was read; of a large prediction only the first ones.
        failed: the first images that cannot be read: (file, reason). Several can have one file: members of an archive
            with one name, or addresses that differ in what is hidden of them.
        done: images that were read.
        failures: images that were not.
        detections: their number.
        objects: detections by the name of their class.
        reviews: images that are to be reviewed.
        comparisons: of detections with annotations.
    """

    total: int
    images: list[dict[str, Any]] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    done: int = 0
    failures: int = 0
    detections: int = 0
    objects: Counter[str] = field(default_factory=Counter)
    reviews: int = 0
    comparisons: ComparisonTotals = field(default_factory=ComparisonTotals)

    def counting(self, results: Iterable[ImageResult]) -> Iterator[ImageResult]:
        """The results as they are, counted from zero."""
        kept = LISTED_IMAGES if self.total <= LISTED_IMAGES else LISTED_IMAGES // 100
        self.images, self.failed, self.objects = [], [], Counter()
        self.done = self.failures = self.detections = self.reviews = 0
        self.comparisons = ComparisonTotals()
        for result in results:
            if result.image is not None:
                self.done += 1
                self.detections += len(result.records)
                self.objects.update(result.image["objects"])
                self.comparisons.add(result.image)
                self.reviews += "review" in result.image
                if len(self.images) < kept:
                    self.images.append(result.image)
            elif result.error is not None:
                self.failures += 1
                if len(self.failed) < LISTED_FAILURES:
                    self.failed.append((result.file, result.error))
            yield result


@dataclass(frozen=True, kw_only=True)
class PredictOutcome:
    """Results of all images.

    Attributes:
        folder: of the files.
        checkpoint: the file of the weights.
        device: where the network ran.
        tally: counts, and the first images.
        files: with the results, except drawn images; empty if they could not be written.
        summary: counts and rates, as in `summary.json`.
        unwritten: why they could not be written, a sentence; empty if they are.
        notes: what formats cannot hold, phrases.
    """

    folder: Path
    checkpoint: str
    device: str
    tally: Tally
    files: list[Path]
    summary: dict[str, Any]
    unwritten: str
    notes: list[str] = field(default_factory=list)

    @property
    def is_large(self) -> bool:
        """Whether there are too many images to list each."""
        return self.tally.total > LISTED_IMAGES


def rates(work: SharedWork) -> dict[str, Any]:
    """How fast the images were done, by all processes and by each; those of an earlier start are not counted."""
    return {
        "done_before": work.images_before,
        "seconds": round(work.seconds, 3),
        "images_per_second": _rate(work.images, work.seconds),
        "processes": [
            {**asdict(each), "seconds": round(each.seconds, 3), "images_per_second": _rate(each.images, each.seconds)}
            for each in work.rates
        ],
    }


def _rate(images: int, seconds: float) -> float:
    return round(images / max(seconds, 1e-9), 3) if images else 0.0


def summarize(tally: Tally, work: SharedWork, files: Sequence[str], **facts: Any) -> dict[str, Any]:
    """The content of `summary.json`.

    Args:
        tally: of all results.
        work: that is done.
        files: names of the result files.
        facts: more values.
    """
    return {
        **facts,
        "images": tally.done,
        "failed": tally.failures,
        "detections": tally.detections,
        "objects": dict(sorted(tally.objects.items(), key=lambda item: (-item[1], item[0]))),
        "files": list(files),
        **({"against": tally.comparisons.summary()} if tally.comparisons.is_used else {}),
        **rates(work),
    }


def write_summary(summary: dict[str, Any], target: OutputTarget) -> None:
    """Writes `summary.json`, the last file of a prediction.

    Raises:
        ConfigError: a file that codetr did not make has come into its place.
        ResourceError: no space left, or the folder cannot be written.
    """
    with write_result(
        target.folder / SUMMARY_NAME,
        by="predict",
        force=target.force,
        request=target.request,
        scratch=target.scratch,
    ) as temporary:
        temporary.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8", errors="backslashreplace")
