"""An evaluation from its options to the files in its output folder, in one process or several."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from codetr_cli.annotations.objects import Annotations, read_annotations
from codetr_cli.data.bad_files import listed_bad
from codetr_cli.data.coco import CocoDataset
from codetr_cli.data.loading.loader import EvalLoader, batches_of
from codetr_cli.data.transforms import Keep, build_transforms
from codetr_cli.distributed import process_group
from codetr_cli.distributed.part_files import PartFiles, output_folder, request_digest, unpacking
from codetr_cli.distributed.shared_work import SharedWork, agree_on_weights, stop_request
from codetr_cli.distributed.worker_errors import EVALUATION
from codetr_cli.errors import ResourceError
from codetr_cli.evaluation.backends import Scorer
from codetr_cli.evaluation.evaluator import EvalResult, evaluate
from codetr_cli.evaluation.protocol import Published, find_published
from codetr_cli.evaluation.request import EvalRequest
from codetr_cli.evaluation.result_folder import (
    DETECTIONS_NAME,
    METRICS_NAME,
    RESULT_NAMES,
    SPEED_NAME,
    check_place,
    default_folder,
)
from codetr_cli.evaluation.results import RankResults, check_packed, pack_results, unpack_results
from codetr_cli.evaluation.scoring import ClassScore
from codetr_cli.formats.resolve import DataPaths
from codetr_cli.inference.exported.network import ExportedNetwork, check_views, precision_of, runtime_facts
from codetr_cli.inference.loading import Classes, LoadedModel, check_image_size, find_checkpoint, load_detector
from codetr_cli.inference.options import TileOptions
from codetr_cli.result_files import free_folder, write_results
from codetr_cli.weights.checkpoint import content_id

logger = logging.getLogger(__name__)


Shown = Callable[[int, int], AbstractContextManager[Callable[[int], object]]]
"""Shows progress: from the number of images, and how many of them were done before, to a function that counts more."""


@dataclass(frozen=True, kw_only=True)
class EvalJob:
    """What to evaluate, and how; the attributes are those of `codetr eval`.

    Attributes:
        checkpoint: as `inference.loading.load_detector` takes it.
        paths: of images and annotations.
        split: name of the images, for the protocol and the output folder.
        overrides: settings as `key=value`.
        precision: "auto" (fp32), "fp32", "bf16" or "fp16".
        batch: images per batch; None: the settings'.
        max_images: evaluate only the first ones.
        masks: whether masks are scored, if the network predicts them.
        tta: test-time augmentation.
        tiles: how large images are cut, and `batch` is of tiles then; None: every image is seen as a whole.
        scorer: the scoring backend; None: the fastest.
        out: the output folder; None: a default one.
        force: replace own results in the output folder; otherwise the next free one is used.
    """

    checkpoint: str
    paths: DataPaths
    split: str
    overrides: Sequence[str] = ()
    precision: str = "auto"
    batch: int | None = None
    max_images: int | None = None
    masks: bool = True
    tta: bool = False
    tiles: TileOptions | None = None
    scorer: Scorer | None = None
    out: Path | None = None
    force: bool = False


@dataclass(frozen=True)
class EvalOutcome:
    """Result of an evaluation.

    Attributes:
        summary: what `--json` prints.
        metrics: by name.
        per_class: in the order of the category ids.
        images: number of scored images.
        published: the published result by the same protocol, if there is one.
        warning: which images could not be read; empty if there are none.
        unwritten: why the files could not be written, a sentence; empty if they are.
        unreported: why the report could not be written; empty if it is, or none was requested.
    """

    summary: dict[str, Any]
    metrics: dict[str, float]
    per_class: list[ClassScore]
    images: int
    published: Published | None
    warning: str
    unwritten: str = ""
    unreported: str = ""


def run_evaluation(
    job: EvalJob,
    *,
    device: torch.device,
    show: Shown,
    report: Callable[[EvalOutcome], object],
    finish: Callable[[EvalOutcome, EvalResult, EvalRequest], EvalOutcome] | None = None,
) -> EvalOutcome | None:
    """Evaluates in this process, which may be one of several, and writes the results.

    The results of each batch are kept in part files of the output folder: a process that died and the same command
    started again continue with the other batches. No file depends on the number of processes, except `speed.json`.

    Args:
        job: what to evaluate.
        device: of the whole evaluation; each of several processes uses its own GPU.
        show: shows the progress of all processes; called in the process of rank 0.
        report: prints the numbers, before any file is written; called in the process of rank 0.
        finish: makes more of the outcome, its detections and scores, and the request, once the files are written;
            called in the process of rank 0, after the others have ended. None: nothing is made.

    Returns:
        the outcome in the process of rank 0; None in the others.

    Raises:
        StoppedError: a signal came; the results so far are kept.
        CodetrError: any error that the user can fix.
    """
    evaluated = _evaluate(job, process_group.local_device(device), show, report)
    if evaluated is None:
        return None
    outcome, result, request = evaluated
    return outcome if finish is None or outcome.unwritten else finish(outcome, result, request)


def _evaluate(
    job: EvalJob, device: torch.device, show: Shown, report: Callable[[EvalOutcome], object]
) -> tuple[EvalOutcome, EvalResult, EvalRequest] | None:
    """As `run_evaluation`, with the detections and scores, and the request."""
    with process_group.joined(device, work=EVALUATION) as store, ExitStack() as stack:
        shown = stack.enter_context(ExitStack())
        stop = stack.enter_context(stop_request(shown.close))
        ground_truth = read_annotations(job.paths.annotations_path, with_outlines=job.masks)
        classes = Classes(ground_truth.class_names, ground_truth.category_ids)
        before = _weights(job)
        loaded = load_detector(job.checkpoint, device, job.overrides, classes=classes)
        agree_on_weights(before, _weights(job))
        check_image_size(loaded.settings, training=False)
        request = _resolve(job, loaded, ground_truth)
        dataset = _dataset(job, loaded, request.ground_truth)
        batch_size = 1 if job.tiles else job.batch or loaded.settings.test.batch_size
        batches = batches_of(len(dataset), batch_size)
        digest = _digest(job, loaded, device, batch_size)
        parts = PartFiles(
            _wanted_folder(job, loaded),
            lambda number: [dataset.image_path(index) for index in batches[number]],
            lambda part: check_packed(
                part.content,
                [dataset.image_ids[index] for unit in part.units for index in batches[unit]],
                request.category_ids,
            ),
        )
        sizes = [len(batch) for batch in batches]
        work = SharedWork(parts, sizes, pack_results, work=EVALUATION, stop=stop, store=store)
        stack.callback(work.close, complete=False)
        done = work.start(digest, lambda: _output_folder(job, loaded, digest))
        loader = EvalLoader(
            dataset,
            batch_size=batch_size,
            workers=loaded.settings.data.workers,
            rank=process_group.rank(),
            world_size=process_group.world_size(),
            pin_memory=device.type == "cuda" and not job.tta and not job.tiles,
            done=done,
        )
        if process_group.is_main():
            work.progress = shown.enter_context(show(len(dataset), work.images_before))
        collector = _PartCollector(work, loader.batch_numbers)
        result = evaluate(loaded.model, loader, request, device=device, collector=collector)
        shown.close()
        if not process_group.is_main():
            return None
        speed = _speed(result, work, device, batch_size)
        outcome = _outcome(job, result, loaded, parts.folder, speed, images=len(dataset))
        report(outcome)
        try:
            _write(outcome, result, parts, request=digest, force=job.force)
        except ResourceError as error:
            kept = "The results of all images are kept: the same command writes the files without evaluating again."
            outcome = replace(outcome, unwritten=f"{error} {kept}")
        work.close(complete=True, keep=bool(outcome.unwritten))
        return outcome, result, request


class _PartCollector:
    """Gathers the results of all processes through part files.

    Args:
        work: the batches.
        batch_numbers: of this process, in the order of their results.
    """

    def __init__(self, work: SharedWork, batch_numbers: Sequence[int]) -> None:
        self._work = work
        self._numbers = iter(batch_numbers)

    def add(self, results: RankResults) -> None:
        self._work.add(next(self._numbers), results, failed=bool(results.skipped))

    def gather(self) -> list[RankResults]:
        found = self._work.finish()
        with unpacking(self._work.parts):
            return [unpack_results(part.content) for part in found]


def _resolve(job: EvalJob, loaded: LoadedModel, ground_truth: Annotations) -> EvalRequest:
    settings = loaded.settings
    if job.masks and settings.model.mask.kind == "fcn" and settings.test.head != "roi":
        logger.info("This network predicts masks in its RoI head: --head roi scores them, too.")
    if job.tta:
        check_views(loaded.model, settings)
    return EvalRequest.resolve(
        settings,
        ground_truth,
        job.paths.annotations_path,
        class_names=loaded.class_names,
        category_ids=loaded.category_ids,
        masks=job.masks,
        tta=job.tta,
        tiles=job.tiles,
        batch=job.batch or loaded.settings.test.batch_size,
        precision=precision_of(loaded.model, job.precision),
        runtime=str(loaded.model.engine.info) if isinstance(loaded.model, ExportedNetwork) else None,
        scorer=job.scorer,
        split=job.split,
    )


def _dataset(job: EvalJob, loaded: LoadedModel, ground_truth: Annotations) -> CocoDataset:
    """The images of one split, at the test size, or as decoded for test-time augmentation and for tiles."""
    settings = loaded.settings
    return CocoDataset(
        images_dir=job.paths.images_dir,
        annotations_path=job.paths.annotations_path,
        transform=Keep() if job.tta or job.tiles else build_transforms(settings.data, settings.test, train=False),
        training=False,
        max_pixels=settings.data.max_pixels,
        pad_divisor=settings.data.pad_divisor,
        max_images=job.max_images or (settings.data.max_images if job.split == "train" else None),
        skip_bad=settings.data.bad_files == "skip",
        annotations=ground_truth,
        names=job.paths.names,
    )


def _weights(job: EvalJob) -> str:
    return request_digest(weights=find_checkpoint(job.checkpoint) or job.checkpoint)


def _digest(job: EvalJob, loaded: LoadedModel, device: torch.device, batch_size: int) -> str:
    """A name of everything that the detections depend on; the number of processes is not part of it."""
    return request_digest(
        weights=loaded.path,
        settings=loaded.settings.model_dump(mode="json", exclude={"data": {"workers"}, "train": True}),
        images=str(job.paths.images_dir.absolute()),
        annotations=job.paths.annotations_path,
        max_images=job.max_images,
        batch=batch_size,
        precision=job.precision,
        masks=job.masks,
        tta=job.tta,
        **({"tiles": asdict(job.tiles), "tile_batch": job.batch} if job.tiles else {}),
        device=device.type,
    )


def _wanted_folder(job: EvalJob, loaded: LoadedModel) -> Path:
    name = Path(job.checkpoint).stem if loaded.path is None else loaded.settings.name
    return job.out or default_folder(loaded.path, name, job.split)


def _output_folder(job: EvalJob, loaded: LoadedModel, digest: str) -> Path:
    """The folder of the results, created now: one that cannot be written must not cost an evaluation."""
    folder = output_folder(_wanted_folder(job, loaded), *RESULT_NAMES, request=digest, force=job.force)
    if job.out is None:
        check_place(folder, loaded.path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def submitted_folder(job: EvalJob) -> Path:
    """The output folder of an evaluation that runs later, in a SLURM job."""
    folder = job.out or default_folder(find_checkpoint(job.checkpoint), Path(job.checkpoint).stem, job.split)
    folder = free_folder(folder, *RESULT_NAMES, force=job.force)
    if job.out is None:
        check_place(folder, find_checkpoint(job.checkpoint))
    return folder


def _speed(result: EvalResult, work: SharedWork, device: torch.device, batch_size: int) -> dict[str, Any]:
    """Throughput of all processes; milliseconds per image are those of the process of rank 0."""
    return {
        **asdict(result.speed),
        "images": work.images,
        "seconds": work.seconds,
        "images_per_second": work.images / max(work.seconds, 1e-9),
        "scoring_seconds": result.scoring_seconds,
        "device": device.type if process_group.world_size() > 1 else str(device),
        "batch": batch_size,
        "processes": process_group.world_size(),
    }


def _outcome(
    job: EvalJob, result: EvalResult, loaded: LoadedModel, folder: Path, speed: dict[str, Any], *, images: int
) -> EvalOutcome:
    """What an evaluation of so many images has found; the files are written to a folder."""
    protocol = result.protocol
    assert protocol is not None
    published = find_published(
        loaded.settings,
        tta=job.tta,
        tiles=job.tiles,
        precision=protocol.precision,
        split=protocol.split,
        images=result.images,
        trained=loaded.path is not None,
    )
    summary = {
        **result.metrics,
        "checkpoint": str(loaded.path or job.checkpoint),
        "weights": loaded.path and content_id(loaded.path),
        "annotations": str(job.paths.annotations_path),
        "images": result.images,
        "left_out": [bad._asdict() for bad in result.skipped],
        "objects": result.objects,
        "protocol": str(protocol),
        "protocol_parts": protocol.as_dict(),
        "published": published and published.as_dict(),
        "per_class": [score.as_dict() for score in result.per_class],
        "detections": str(folder / DETECTIONS_NAME),
        "speed": speed,
        **runtime_facts(loaded.model),
    }
    warning = ""
    if result.skipped:
        warning = (
            f"{len(result.skipped):,} of {images:,} images cannot be read and are skipped; the metrics are of the "
            f"other {result.images:,} images: {listed_bad(result.skipped)}. {METRICS_NAME} lists all"
        )
    return EvalOutcome(
        summary=summary,
        metrics=result.metrics,
        per_class=result.per_class,
        images=result.images,
        published=published,
        warning=warning,
    )


def _write(outcome: EvalOutcome, result: EvalResult, parts: PartFiles, *, request: str, force: bool) -> None:
    """Writes the files of an evaluation.

    Raises:
        ConfigError: a file that codetr did not make has come into their place.
        ResourceError: no space left, or the folder cannot be written.
    """
    folder = parts.folder
    # The detections are beside the metrics, wherever the folder is moved; the speed is not the same twice.
    metrics = {name: value for name, value in outcome.summary.items() if name != "speed"}
    metrics["detections"] = DETECTIONS_NAME
    # Of one evaluation, or of the one before: numbers beside the detections of another would be taken for theirs.
    with write_results(folder / METRICS_NAME, by="eval", force=force, request=request) as temporary:
        for name, text in (
            (DETECTIONS_NAME, result.detections.to_json()),
            (SPEED_NAME, json.dumps(outcome.summary["speed"], indent=2) + "\n"),
            (METRICS_NAME, json.dumps(metrics, indent=2) + "\n"),
        ):
            temporary.with_name(name).write_text(text, encoding="utf-8", errors="backslashreplace")
