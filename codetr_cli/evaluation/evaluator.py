"""Runs a detector over a data set and scores it: box and mask AP as published, detections, and the speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from codetr_cli.annotations.cache import source_of
from codetr_cli.data.bad_files import BAD_FILES_KEY, BadFile, check_share
from codetr_cli.data.batch import Batch
from codetr_cli.data.targets import Target
from codetr_cli.evaluation.backends import choose_backend, scorer_version
from codetr_cli.evaluation.protocol import Protocol, describe_protocol
from codetr_cli.evaluation.request import EvalRequest
from codetr_cli.evaluation.results import Collector, LocalCollector, RankResults, merge_results
from codetr_cli.evaluation.scoring import CROWDED_MAX_DETS, Scores, score_detections
from codetr_cli.inference.cuda_graph import with_cuda_graphs
from codetr_cli.inference.detections import DetectionTable
from codetr_cli.inference.exported.network import ExportedNetwork
from codetr_cli.inference.pipeline import TimedPostProcess, inference
from codetr_cli.inference.rle import encode_masks
from codetr_cli.inference.tta import detect_images
from codetr_cli.models.codetr import CoDETR
from codetr_cli.models.postprocess import Detections


@dataclass(frozen=True)
class Speed:
    """Where the time of an evaluation went. Milliseconds are per image of this process, the first batch included.

    Attributes:
        images: processed by this process.
        seconds: wall time from the request for the first batch to the last detection.
        images_per_second: `images / seconds`.
        data_ms: waiting for the loader.
        model_ms: transfer, normalization and network.
        postprocess_ms: from outputs to detections; 0 for auxiliary heads and CUDA graphs, where it counts as model.
    """

    images: int = 0
    seconds: float = 0.0
    images_per_second: float = 0.0
    data_ms: float = 0.0
    model_ms: float = 0.0
    postprocess_ms: float = 0.0


@dataclass(frozen=True)
class EvalResult(Scores):
    """Metrics and detections of an evaluation; no metrics in processes that only gathered their results.

    Attributes:
        detections: with original category ids.
        speed: of this process.
        protocol: how the metrics were made; None if there are none.
        scoring_seconds: time from detections to metrics.
        skipped: files that could not be read; their images are not scored.
        image_ids: of the scored images.
    """

    detections: DetectionTable = field(default_factory=DetectionTable.empty)
    speed: Speed = Speed()
    protocol: Protocol | None = None
    scoring_seconds: float = 0.0
    skipped: list[BadFile] = field(default_factory=list)
    image_ids: list[int] = field(default_factory=list)


def evaluate(
    model: CoDETR | ExportedNetwork,
    loader: Iterable[Batch],
    request: EvalRequest,
    *,
    device: torch.device,
    progress: Callable[[int], object] | None = None,
    collector: Collector | None = None,
) -> EvalResult:
    """Detects the objects of every image of the loader and scores them.

    Args:
        model: on `device`; its training mode is restored afterwards.
        loader: batches of uint8 images, as decoded for test-time augmentation; each process of a distributed run
            passes its own images.
        request: the ground truth to score against, and how; only the loader's images count.
        device: where the model is.
        progress: called with the number of images after each batch.
        collector: receives the results of each batch and gathers those of all processes, without any in processes that
            do not score: they get a result without metrics. None: this is the only process.

    Raises:
        DatasetError: too many of the images cannot be read.
    """
    collector = collector or LocalCollector()
    speed = run_detector(model, loader, request, collector, device=device, progress=progress)
    gathered = collector.gather()
    if not gathered:
        return EvalResult(speed=speed)
    merged = merge_results(gathered, request.ground_truth.image_ids.tolist())
    path = request.annotations_path
    check_share(merged.skipped, len(merged.image_ids) + len(merged.skipped), source_of(path).name)
    scorer = choose_backend(request.scorer, len(merged.detections))
    started = time.perf_counter()
    scores = score_detections(
        request.ground_truth,
        merged.detections,
        merged.image_ids,
        where=str(path),
        scorer=scorer,
        max_dets=CROWDED_MAX_DETS if request.has_tiles else (),
    )
    return EvalResult(
        **vars(scores),
        detections=merged.detections,
        speed=speed,
        protocol=describe_protocol(
            request, scorer=scorer_version(scorer), images=scores.images, skipped=len(merged.skipped)
        ),
        scoring_seconds=time.perf_counter() - started,
        skipped=merged.skipped,
        image_ids=merged.image_ids,
    )


def run_detector(
    model: CoDETR | ExportedNetwork,
    loader: Iterable[Batch],
    request: EvalRequest,
    collector: Collector,
    *,
    device: torch.device,
    progress: Callable[[int], object] | None = None,
) -> Speed:
    """Detects the objects of every image of the loader, for a collector; arguments as for `evaluate`."""
    network = with_cuda_graphs(model, request.settings.test, device)
    timed = TimedPostProcess.around(request.postprocess)
    category_ids = np.array(request.category_ids, np.int64)
    images = 0
    started = time.perf_counter()
    data_seconds, batch_started = 0.0, started
    with inference(model, device, request.precision):
        for batch in loader:
            data_seconds += time.perf_counter() - batch_started
            detections = detect_images(
                network, timed, batch, request.augmentation, device=device, config=request.settings.data
            )
            results = _results_of_batch(batch, detections, category_ids, masks=request.masks)
            images += len(results.image_ids)
            collector.add(results)
            if progress is not None:
                progress(len(batch.targets))
            batch_started = time.perf_counter()
    seconds = time.perf_counter() - started
    postprocess_seconds = sum(timed.seconds)
    per_image = 1000 / max(images, 1)
    return Speed(
        images=images,
        seconds=seconds,
        images_per_second=images / max(seconds, 1e-9),
        data_ms=data_seconds * per_image,
        model_ms=(seconds - data_seconds - postprocess_seconds) * per_image,
        postprocess_ms=postprocess_seconds * per_image,
    )


def _results_of_batch(
    batch: Batch, detections: list[Detections], category_ids: NDArray[np.int64], *, masks: bool
) -> RankResults:
    image_ids: list[int] = []
    tables: list[DetectionTable] = []
    skipped: list[BadFile] = []
    for target, of_image in zip(batch.targets, detections, strict=True):
        if BAD_FILES_KEY in target:
            skipped += [BadFile(*bad) for bad in target[BAD_FILES_KEY]]
            continue
        image_ids.append(int(target["image_id"]))
        tables.append(_detection_table(of_image, target, category_ids, masks=masks))
    return RankResults(image_ids, DetectionTable.join(tables), skipped)


def _detection_table(
    detections: Detections, target: Target, category_ids: NDArray[np.int64], *, masks: bool
) -> DetectionTable:
    """The detections of one image. Masks are run-length encoded at once: as pixels they would exhaust the RAM."""
    rle = encode_masks(detections, tuple(target["orig_size"])) if masks else None
    detections = detections.cpu()
    return DetectionTable.of_image(
        int(target["image_id"]),
        detections.boxes.numpy(),
        detections.scores.numpy(),
        category_ids[detections.labels.numpy()],
        rle,
        detections.mask_scores.numpy() if rle is not None and detections.mask_scores is not None else None,
    )
