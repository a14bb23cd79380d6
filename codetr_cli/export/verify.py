"""Proof that an exported file detects what its checkpoint does, or what differs.

Both see the same images, of three shapes, alone and in batches, each with its own preprocessing. The file may differ by
the limits of `tolerances.py`. Where more differs, `near_ties` asks whether the checkpoint's own detections are as
unstable, and `diagnosis` what the cause is.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from codetr_cli.errors import CheckpointError, CodetrError, counted
from codetr_cli.export.accuracy import VerifyData, average_precision
from codetr_cli.export.agreement import compare
from codetr_cli.export.diagnosis import explain
from codetr_cli.export.job import describe, export_settings
from codetr_cli.export.metadata_differences import metadata_differences, options_of
from codetr_cli.export.near_ties import is_near_tie
from codetr_cli.export.onnx_sampling import sampling_faults
from codetr_cli.export.seen import Reading, Seen, detect_timed, prepare
from codetr_cli.export.tolerances import TOLERANCES, Tolerance
from codetr_cli.export.verify_images import VerifyImage, data_images, synthetic_images
from codetr_cli.inference.detector import Detector
from codetr_cli.inference.exported.engine import is_exported
from codetr_cli.inference.exported.metadata import VERSION, ExportMetadata, Precision
from codetr_cli.inference.exported.network import ExportedNetwork
from codetr_cli.inference.loading import LoadedModel, load_detector
from codetr_cli.models.build import build_postprocess
from codetr_cli.runtime.timing import in_turn

BATCH = 3
"""Images of a batch, if the file allows any number."""
MIXED = "all shapes"
Verdict = Literal["equal", "different", "nothing compared"]
Step = Callable[[str], object]


@dataclass(frozen=True)
class CaseResult:
    """The images of one shape, and of one number at once.

    Attributes:
        shape: "landscape", "upright", "square" or `MIXED`.
        input_size: (height, width) of the network's input; the largest, if there are several.
        batch: images at once.
        images: number of images.
        detections: compared, matched or not.
        score_max: largest difference of the scores of matched detections; so are the others.
        score_mean: mean absolute difference.
        box_max: in pixels of the network's input.
        box_mean: mean over sides of the absolute difference.
        mask_iou: mean; None: no masks.
        missing: detections of the checkpoint alone.
        extra: detections of the file alone.
        outliers: matched detections that differ by more than the tolerance.
        near_ties: images whose detections are as unstable in the checkpoint itself; their differences are allowed.
        passed: whether this is within the tolerance.
    """

    shape: str
    input_size: tuple[int, int]
    batch: int
    images: int
    detections: int
    score_max: float
    score_mean: float
    box_max: float
    box_mean: float
    mask_iou: float | None
    missing: int
    extra: int
    outliers: int
    near_ties: int
    passed: bool


@dataclass(frozen=True)
class AccuracyPair:
    """AP in points (100 is perfect) of both on the same images."""

    images: int
    checkpoint: float
    file: float
    limit: float

    @property
    def difference(self) -> float:
        """Of the file minus the checkpoint."""
        return self.file - self.checkpoint

    @property
    def passed(self) -> bool:
        """Whether the file is as good, within the limit."""
        return abs(self.difference) <= self.limit


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What a verification has found.

    Attributes:
        verdict: "equal" within the tolerance, "different", or "nothing compared": neither detects anything.
        findings: what differs, sentences; empty if equal.
        checkpoint: as given.
        file: the exported file.
        engine: what ran where, see `EngineInfo`.
        precision: that the file is judged by.
        tolerance: its limits.
        cases: the comparisons.
        latency_ms: median milliseconds per image, alone, measured in turn: "checkpoint" and "file".
        accuracy: with annotated images.
        images: name, shape and (height, width) of each.
        versions: of the libraries.
    """

    verdict: Verdict
    findings: list[str]
    checkpoint: str
    file: str
    engine: dict[str, Any]
    precision: Precision
    tolerance: Tolerance
    cases: list[CaseResult]
    latency_ms: dict[str, float]
    accuracy: AccuracyPair | None
    images: list[dict[str, Any]]
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether the file may stand for the checkpoint."""
        return self.verdict == "equal"

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        if self.verdict == "nothing compared":
            return (
                "Nothing was compared: neither the checkpoint nor the file detects anything in "
                f"{counted(len(self.images), 'image')}. Verify with images that have objects: --data DIR."
            )
        if self.verdict == "different":
            return f"The file does not detect what the checkpoint does. {' '.join(self.findings)}"
        detections = sum(case.detections for case in self.cases)
        unmatched = sum(case.missing + case.extra for case in self.cases)
        near = sum(case.near_ties for case in self.cases)
        ties = f" {counted(near, 'comparison')} with near ties: the checkpoint is as unstable itself." if near else ""
        return (
            f"Equal for {self.precision}: {counted(detections, 'detection')} in {counted(len(self.images), 'image')} "
            f"compared, {counted(unmatched, 'detection')} without counterpart.{ties}"
        )

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        accuracy = self.accuracy and {**asdict(self.accuracy), "difference": self.accuracy.difference}
        return {**asdict(self), "passed": self.passed, "sentence": self.sentence, "accuracy": accuracy}


def verify(
    checkpoint: str | Path,
    file: Path,
    *,
    device: torch.device,
    overrides: Sequence[str] = (),
    file_settings: Sequence[str] = (),
    data: VerifyData | None = None,
    step: Step = lambda _: None,
) -> VerifyReport:
    """Compares an exported file with the checkpoint that it was made from.

    Args:
        checkpoint: as `load_detector` takes it.
        file: the exported file.
        device: of both.
        overrides: settings of the export as `key=value`.
        file_settings: of the file alone: what OpenVINO runs on.
        data: images to compare on, and AP of both; None: synthetic images, no AP.
        step: is called when a slow step starts.

    Raises:
        CheckpointError: one of them cannot be read.
        ConfigError: a setting that cannot be exported.
        ResourceError: a package is not installed, or the device is not available.
    """
    if is_exported(checkpoint):
        raise CheckpointError(f"{checkpoint} is an exported file itself: verify against the checkpoint")
    if not is_exported(file):
        raise CheckpointError(f"{file} is a checkpoint, not an exported file")
    step("loading both networks")
    loaded = load_detector(checkpoint, device, [*overrides, "test.cuda_graph=false"])
    exported = load_detector(file, device, file_settings)
    assert isinstance(exported.model, ExportedNetwork)
    metadata = exported.model.engine.metadata
    options = options_of(metadata)
    differences = metadata_differences(describe(loaded, options), metadata)
    if file.suffix == ".onnx":
        differences += sampling_faults(file)
    settings = export_settings(loaded.settings, options)
    loaded = replace(loaded, settings=settings, postprocess=build_postprocess(settings.test))
    images = _images(metadata, data, loaded.settings.data.max_pixels)
    reference, other = Detector(loaded, device=device), Detector(exported, device=device)
    report = verify_detectors(reference, other, images, findings=differences, step=step)
    accuracy = _accuracy(loaded, exported, data, report.tolerance, device, step) if data is not None else None
    if accuracy is not None and not accuracy.passed:
        finding = (
            f"AP is {accuracy.file:.2f} with the file and {accuracy.checkpoint:.2f} with the checkpoint on "
            f"{counted(accuracy.images, 'image')}; {accuracy.limit:g} points are allowed."
        )
        report = replace(report, verdict="different", findings=[*report.findings, finding])
    return replace(report, checkpoint=str(checkpoint), file=str(file), accuracy=accuracy)


def verify_detectors(
    reference: Detector,
    other: Detector,
    images: Sequence[VerifyImage],
    *,
    findings: Sequence[str] = (),
    step: Step = lambda _: None,
) -> VerifyReport:
    """Compares the detections of two detectors, of which the other has an exported file.

    Args:
        reference: of the checkpoint, with the size rule of the file.
        other: of the file.
        images: of several shapes.
        findings: what differs already.
        step: is called when a slow step starts.
    """
    network = other.loaded.model
    assert isinstance(network, ExportedNetwork)
    metadata, info = network.engine.metadata, network.engine.info
    precision = _judged_precision(metadata, info.precision)
    tolerance = TOLERANCES[precision]
    batch = BATCH if metadata.input.batch in (None, 1) else metadata.input.batch
    assert batch is not None
    step(f"comparing {counted(len(images), 'image')}, alone and in batches of {batch}")
    seen: list[Seen] = []
    latency: dict[str, float] = {}
    failure = ""
    try:
        latency, seen = _compare_all(reference, other, images, batch, tolerance)
    except CodetrError as error:
        failure = f"The file cannot run on the input that it says it takes: {error}"
    except Exception as error:  # those of the libraries have no common class
        failure = f"The file cannot run on the input that it says it takes: {(str(error).splitlines() or [''])[0]}"
    cases = [_case(group, tolerance, reference, step) for group in _groups(seen)]
    nothing = not sum(case.detections for case in cases)
    found = [*findings, *([failure] if failure else [])]
    if any(not case.passed for case in cases):
        step("looking for the cause")
        passed = {(case.shape, case.batch) for case in cases if case.passed}
        found += explain(seen, passed, reference, tolerance, network.engine, is_explained=bool(findings))
    verdict: Verdict = "different" if found else "nothing compared" if nothing else "equal"
    return VerifyReport(
        verdict=verdict,
        findings=found,
        checkpoint="",
        file="",
        engine=asdict(info),
        precision=precision,
        tolerance=tolerance,
        cases=cases,
        latency_ms=latency,
        accuracy=None,
        images=[{"name": i.name, "shape": i.shape, "size": list(i.pixels.shape[:2])} for i in images],
        versions={"codetr": VERSION, "torch": torch.__version__, "runtime": info.library},
    )


def _judged_precision(metadata: ExportMetadata, really: str) -> Precision:
    """That of the file, or a lower one that the library has chosen."""
    ran: list[Precision] = [name for name in TOLERANCES if name == really]
    return max([metadata.precision, *ran], key=list(TOLERANCES).index)


def _images(metadata: ExportMetadata, data: VerifyData | None, max_pixels: int) -> list[VerifyImage]:
    rule = metadata.input
    if data is not None:
        found = data_images(data.paths, data.ground_truth.file_names, max_pixels=max_pixels)
        if found:
            return found
    return synthetic_images(rule.canvas or min(rule.long_side, max(rule.height or 0, rule.width or 0) or 2**14))


def _compare_all(
    reference: Detector, other: Detector, images: Sequence[VerifyImage], batch: int, tolerance: Tolerance
) -> tuple[dict[str, float], list[Seen]]:
    """The median latencies, and every image alone and in a batch of several shapes."""
    readings = [Reading(image, prepare(reference, image), prepare(other, image)) for image in images]
    for detector, first in ((reference, readings[0].reference), (other, readings[0].other)):
        detect_timed(detector, [first])  # a first call prepares
    seen: list[Seen] = []
    milliseconds: dict[str, list[float]] = {"checkpoint": [], "file": []}
    for size in (1, batch):
        for part in _batches(readings, size):
            runs = in_turn(
                {
                    "checkpoint": partial(detect_timed, reference, [one.reference for one in part]),
                    "file": partial(detect_timed, other, [one.other for one in part]),
                },
                rounds=1,
            )
            ((ours, our_seconds),), ((theirs, their_seconds),) = runs["checkpoint"], runs["file"]
            if size == 1:
                milliseconds["checkpoint"].append(1000 * our_seconds)
                milliseconds["file"].append(1000 * their_seconds)
            group = [one.reference for one in part]
            seen += [
                Seen(
                    reading=one,
                    shape=one.image.shape if size == 1 else MIXED,
                    batch=size,
                    row=row,
                    group=group,
                    agreement=compare(ours[row], theirs[row], tolerance, scale=one.scale),
                )
                for row, one in enumerate(part)
            ]
    return {name: statistics.median(values) for name, values in milliseconds.items()}, seen


def _batches(readings: list[Reading], size: int) -> Iterable[list[Reading]]:
    """Batches of this size; those of several images have several shapes, and the last one is full, too."""
    if size == 1:
        return [[one] for one in readings]
    shapes = sorted({one.image.shape for one in readings})
    by_shape = [[one for one in readings if one.image.shape == shape] for shape in shapes]
    mixed = [row[index] for index in range(max(map(len, by_shape))) for row in by_shape if index < len(row)]
    filled = [mixed[number % len(mixed)] for number in range(-(-len(mixed) // size) * size)]
    return [filled[first : first + size] for first in range(0, len(filled), size)]


def _groups(seen: Sequence[Seen]) -> list[list[Seen]]:
    keys = dict.fromkeys((one.shape, one.batch) for one in seen)
    return [[one for one in seen if (one.shape, one.batch) == key] for key in keys]


def _case(group: list[Seen], tolerance: Tolerance, reference: Detector, step: Step) -> CaseResult:
    agreements = [one.agreement for one in group]
    compared = sum(one.compared for one in agreements)
    wrong, near = sum(one.wrong for one in agreements), 0
    allowed = tolerance.share * compared
    if wrong > allowed:
        step(f"looking for near ties: {group[0].shape}, batch {group[0].batch}")
        for one in group:
            if one.agreement.wrong and is_near_tie(one, reference, tolerance):
                near, wrong = near + 1, wrong - one.agreement.wrong
    scores = [abs(value) for one in agreements for value in one.score_differences.tolist()]
    boxes = [abs(value) for one in agreements for value in one.box_differences.ravel().tolist()]
    masks = [value for one in agreements for value in one.mask_ious.tolist()]
    mask_iou = statistics.fmean(masks) if masks else None
    return CaseResult(
        shape=group[0].shape,
        input_size=max(one.input_size for one in group),
        batch=group[0].batch,
        images=len(group),
        detections=compared,
        score_max=max(scores, default=0.0),
        score_mean=statistics.fmean(scores) if scores else 0.0,
        box_max=max(boxes, default=0.0),
        box_mean=statistics.fmean(boxes) if boxes else 0.0,
        mask_iou=mask_iou,
        missing=sum(len(one.missing) for one in agreements),
        extra=sum(len(one.extra) for one in agreements),
        outliers=sum(one.outliers for one in agreements),
        near_ties=near,
        passed=wrong <= allowed and (mask_iou is None or near > 0 or mask_iou >= tolerance.mask_iou),
    )


def _accuracy(
    loaded: LoadedModel, exported: LoadedModel, data: VerifyData, tolerance: Tolerance, device: torch.device, step: Step
) -> AccuracyPair:
    step(f"AP of the checkpoint on {data.split}")
    ours = average_precision(loaded, data, device)
    step(f"AP of the file on {data.split}")
    theirs = average_precision(exported, data, device)
    return AccuracyPair(ours.images, 100 * ours.metrics["AP"], 100 * theirs.metrics["AP"], tolerance.ap)
