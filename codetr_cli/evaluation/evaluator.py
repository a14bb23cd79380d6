"""Runs a detector over a data set and scores it: box and mask AP as published, detections, and the speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from codetr_cli.config.schema import Settings
from codetr_cli.data.annotations import Annotations, check_kind, read_annotations
from codetr_cli.data.bad_files import BAD_FILES_KEY, BadFile, check_share
from codetr_cli.data.batch import Batch
from codetr_cli.data.formats.cache import source_of
from codetr_cli.data.targets import Target
from codetr_cli.errors import CheckpointError, listed
from codetr_cli.evaluation.backends import Engine, choose_engine, engine_version
from codetr_cli.evaluation.protocol import Protocol, counting, describe_protocol, expects_masks
from codetr_cli.evaluation.scoring import ClassScore, check_outlines, score_detections
from codetr_cli.inference.detections import DetectionTable
from codetr_cli.inference.pipeline import TimedPostProcess, detect, inference
from codetr_cli.inference.rle import encode_masks
from codetr_cli.inference.tta import Augmentation
from codetr_cli.models.codetr import CoDETR
from codetr_cli.models.postprocess import Detections, PostProcess
from codetr_cli.runtime.precision import resolve_precision
from codetr_cli.weights.classes import same_numbered_classes

MANY_DETECTIONS = 30_000
"""Scoring more than these takes pycocotools more than a few seconds."""


@dataclass(frozen=True)
class Speed:
    """Where the time of an evaluation went. Milliseconds are per image of this process, the first batch included.

    Attributes:
        images: looked at by this process.
        seconds: wall time from the first batch asked for to the last detection.
        images_per_second: `images / seconds`.
        data_ms: waiting for the loader.
        model_ms: copy, normalisation and network.
        postprocess_ms: from outputs to detections; 0 for auxiliary heads, whose NMS counts as model.
    """

    images: int = 0
    seconds: float = 0.0
    images_per_second: float = 0.0
    data_ms: float = 0.0
    model_ms: float = 0.0
    postprocess_ms: float = 0.0


@dataclass(frozen=True)
class Share:
    """What one process found: the images it looked at and the detections in them."""

    image_ids: list[int]
    detections: DetectionTable
    left_out: list[BadFile] = field(default_factory=list)
    """Files that could not be read, where the settings say to go on without them."""


@dataclass(frozen=True)
class EvalResult:
    """An evaluation's numbers and detections.

    Attributes:
        metrics: AP, AP50, ... in [0, 1], and mask_AP, ... where there are masks; -1 where the annotations have no such
            object. Empty in processes that only handed in their share.
        per_class: AP of each class in the order of the category ids.
        detections: with original category ids.
        speed: of this process.
        protocol: how the numbers were made; None where there are none.
        images: images scored.
        objects: annotations scored, crowds included.
        scoring_seconds: time from detections to numbers.
        left_out: files that could not be read; their images are not among the scored ones.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    per_class: list[ClassScore] = field(default_factory=list)
    detections: DetectionTable = field(default_factory=DetectionTable.empty)
    speed: Speed = Speed()
    protocol: Protocol | None = None
    images: int = 0
    objects: int = 0
    scoring_seconds: float = 0.0
    left_out: list[BadFile] = field(default_factory=list)


def evaluate(
    model: CoDETR,
    postprocess: PostProcess,
    loader: Iterable[Batch],
    *,
    settings: Settings,
    class_names: Sequence[str],
    category_ids: Sequence[int],
    annotations_path: Path,
    device: torch.device,
    precision: str = "auto",
    engine: Engine | None = None,
    augmentation: Augmentation | None = None,
    masks: bool = True,
    split: str = "val",
    truth: Annotations | None = None,
    progress: Callable[[int], object] | None = None,
    note: Callable[[str], object] | None = None,
    gather: Callable[[Share], list[Share]] = lambda share: [share],
) -> EvalResult:
    """Detects the objects of every image of the loader and scores them.

    Args:
        model: on `device`; its training mode is restored afterwards.
        postprocess: as built from the settings.
        loader: batches of uint8 images; each process of a distributed run brings its own share.
        settings: mean and std of the input, which data set's rules count, and what the protocol says of the test.
        class_names: label i is `class_names[i]`; must be the annotations' classes.
        category_ids: the original category id of each label.
        annotations_path: annotation file to score against; only the loader's images count.
        device: where the model is.
        precision: "auto" (fp32), "fp32", "bf16" or "fp16".
        engine: who matches detections to objects; None: hotcoco, or pycocotools where that cannot be imported.
        augmentation: views for test-time augmentation; the loader gives images as decoded then.
        masks: score masks too where the network draws them.
        split: which images these are, for the protocol.
        truth: what `annotations_path` holds, if it was read before, with outlines where masks are scored.
        progress: called with the number of images after each batch.
        note: called with a sentence when there is something to know of the scoring.
        gather: turns this process's share into the shares of all processes. It returns an empty list in processes that
            are not to score; those get a result without metrics. An image that several shares hold counts once.

    Raises:
        CheckpointError: the classes are not those of the annotations.
        DatasetError: the annotations are of another data set, lack the outlines that mask AP needs, or are of images of
            which too many cannot be read.
    """
    masks = masks and expects_masks(settings, postprocess)
    truth = truth or read_annotations(annotations_path, with_outlines=masks)
    check_truth(truth, settings, annotations_path, masks=masks)
    ids = match_classes(class_names, category_ids, truth.class_names, truth.category_ids, str(annotations_path))
    share, speed = run_detector(
        model,
        postprocess,
        loader,
        settings=settings,
        category_ids=ids,
        device=device,
        precision=precision,
        augmentation=augmentation,
        masks=masks,
        progress=progress,
    )
    shares = gather(share)
    if not shares:
        return EvalResult(speed=speed)
    merged = merge_shares(shares)
    wanted = len(merged.image_ids) + len(merged.left_out)
    check_share(merged.left_out, wanted, source_of(annotations_path).name)
    chosen = announce_engine(engine, len(merged.detections), note)
    started = time.perf_counter()
    scores = score_detections(truth, merged.detections, merged.image_ids, where=str(annotations_path), engine=chosen)
    metrics, convention = counting(lvis=truth.is_lvis, masks=masks)
    return EvalResult(
        metrics=scores.metrics,
        per_class=scores.per_class,
        detections=merged.detections,
        speed=speed,
        protocol=describe_protocol(
            settings,
            postprocess,
            augmentation=augmentation,
            precision=resolve_precision(precision),
            split=split,
            images=scores.images,
            left_out=len(merged.left_out),
            metrics=metrics,
            engine=engine_version(chosen),
            convention=convention,
        ),
        images=scores.images,
        objects=scores.objects,
        scoring_seconds=time.perf_counter() - started,
        left_out=merged.left_out,
    )


def check_truth(truth: Annotations, settings: Settings, path: Path, *, masks: bool) -> None:
    """Makes sure that annotations can be scored against as the settings say.

    Raises:
        DatasetError: they are of another data set, or lack the outlines that mask AP needs.
    """
    check_kind(truth, settings.data.dataset, path)
    if masks:
        check_outlines(truth, str(path))


def announce_engine(wanted: Engine | None, detections: int, note: Callable[[str], object] | None) -> Engine:
    """The engine to score with; says what a person should know of it."""
    engine, reason = choose_engine(wanted)
    if note is not None and reason is not None:
        note(reason)
    if note is not None and engine == "pycocotools" and detections > MANY_DETECTIONS:
        note(f"Scoring {detections:,} detections with pycocotools; this takes a while")
    return engine


def run_detector(
    model: CoDETR,
    postprocess: PostProcess,
    loader: Iterable[Batch],
    *,
    settings: Settings,
    category_ids: Sequence[int],
    device: torch.device,
    precision: str = "auto",
    augmentation: Augmentation | None = None,
    masks: bool = True,
    progress: Callable[[int], object] | None = None,
) -> tuple[Share, Speed]:
    """Detections of every image of the loader; arguments as in `evaluate`."""
    timed = TimedPostProcess.around(postprocess)
    mean, std = settings.data.mean, settings.data.std
    ids = np.array(category_ids, np.int64)
    image_ids: list[int] = []
    tables: list[DetectionTable] = []
    left_out: list[BadFile] = []
    started = time.perf_counter()
    data_seconds, batch_started = 0.0, started
    with inference(model, device, precision):
        for batch in loader:
            data_seconds += time.perf_counter() - batch_started
            if augmentation is None:
                found = detect(model, timed, batch.to(device), mean=mean, std=std)
            else:
                found = augmentation.detect(model, timed, batch, device=device, mean=mean, std=std)
            for target, detections in zip(batch.targets, found, strict=True):
                if BAD_FILES_KEY in target:
                    left_out += [BadFile(*bad) for bad in target[BAD_FILES_KEY]]
                    continue
                image_ids.append(int(target["image_id"]))
                tables.append(_table_of(detections, target, ids, masks=masks))
            if progress is not None:
                progress(len(batch.targets))
            batch_started = time.perf_counter()
    seconds = time.perf_counter() - started
    share = Share(image_ids, DetectionTable.join(tables), left_out)
    return share, _speed(len(image_ids), seconds, data_seconds, sum(timed.seconds))


def _table_of(found: Detections, target: Target, ids: NDArray[np.int64], *, masks: bool) -> DetectionTable:
    """The detections of one image; masks become run lengths at once, or they would fill the memory."""
    drawn = encode_masks(found, tuple(target["orig_size"])) if masks and found.masks is not None else None
    found = found.cpu()
    return DetectionTable.of_image(
        int(target["image_id"]),
        found.boxes.numpy(),
        found.scores.numpy(),
        ids[found.labels.numpy()],
        drawn,
        found.mask_scores.numpy() if drawn is not None and found.mask_scores is not None else None,
    )


def _speed(images: int, seconds: float, data_seconds: float, postprocess_seconds: float) -> Speed:
    per_image = 1000 / max(images, 1)
    return Speed(
        images=images,
        seconds=seconds,
        images_per_second=images / max(seconds, 1e-9),
        data_ms=data_seconds * per_image,
        model_ms=(seconds - data_seconds - postprocess_seconds) * per_image,
        postprocess_ms=postprocess_seconds * per_image,
    )


def merge_shares(shares: Sequence[Share]) -> Share:
    """One share of all; images that samplers repeated to fill a round are taken from the first share that has them."""
    seen: set[int] = set()
    tables: list[DetectionTable] = []
    for share in shares:
        new = set(share.image_ids) - seen
        tables.append(share.detections if len(new) == len(share.image_ids) else share.detections.of_images(new))
        seen |= new
    left_out = sorted({bad for share in shares for bad in share.left_out})
    return Share(sorted(seen), DetectionTable.join(tables), left_out)


def match_classes(
    class_names: Sequence[str],
    category_ids: Sequence[int],
    data_names: Sequence[str],
    data_ids: Sequence[int],
    where: str,
) -> list[int]:
    """The annotations' category id of each label of the model, matched by name.

    Equal names with other ids or in another order are the same classes: ids come from the annotations then. A model
    whose names nobody told has the annotations' classes when it has their ids.

    Args:
        class_names: of the model, by label.
        category_ids: of the model, by label.
        data_names: of the annotations, in the order of `data_ids`.
        data_ids: category ids of the annotations.
        where: the annotation file, for the message.

    Raises:
        CheckpointError: the sets of names differ; lists what each side has alone.
    """
    if list(class_names) == list(data_names) and list(category_ids) == list(data_ids):
        return list(data_ids)  # also right when several categories share a name
    if same_numbered_classes(class_names, category_ids, data_ids):
        return list(data_ids)
    by_name = dict(zip(data_names, data_ids, strict=True))
    if len(by_name) == len(data_names) == len(class_names) and set(by_name) == set(class_names):
        return [by_name[name] for name in class_names]
    only_model = [name for name in class_names if name not in by_name]
    only_data = [name for name in data_names if name not in set(class_names)]
    raise CheckpointError(
        f"the model knows {len(class_names)} classes and {where} has {len(data_names)}, and they are not the same. "
        f"Only in the model: {listed(only_model, 12) or 'none'}. "
        f"Only in the annotations: {listed(only_data, 12) or 'none'}. Evaluate on annotations "
        "with the model's classes, or fine-tune with `codetr train`: it reads the classes from the data."
    )
