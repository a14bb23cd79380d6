"""Runs a detector over a data set and scores it: box AP as published, detections as COCO JSON, and the speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from codetr_cli.config import Settings, TestConfig
from codetr_cli.data.annotations import read_annotations
from codetr_cli.data.batch import Batch
from codetr_cli.engine.inference import TimedPostProcess, detect, inference, resolve_precision
from codetr_cli.engine.scoring import CONVENTION, ClassScore, coco_records, score_detections
from codetr_cli.errors import CheckpointError
from codetr_cli.models.codetr import CoDETR
from codetr_cli.models.postprocess import PostProcess

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
    """What one process found: the images it looked at and the detections in COCO's result format."""

    image_ids: list[int]
    detections: list[dict[str, Any]]


@dataclass(frozen=True)
class EvalResult:
    """An evaluation's numbers and detections.

    Attributes:
        metrics: AP, AP50, ... AR1000, ... in [0, 1]; -1 where the annotations have no such object. Empty in processes
            that only handed in their share.
        per_class: AP of each class in the order of the category ids.
        detections: COCO's result format, with original category ids.
        speed: of this process.
        protocol: how the numbers were made, one line.
        images: images scored.
        objects: annotations scored, crowds included.
        scoring_seconds: time of pycocotools.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    per_class: list[ClassScore] = field(default_factory=list)
    detections: list[dict[str, Any]] = field(default_factory=list)
    speed: Speed = Speed()
    protocol: str = ""
    images: int = 0
    objects: int = 0
    scoring_seconds: float = 0.0


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
    progress: Callable[[int], object] | None = None,
    note: Callable[[str], object] | None = None,
    gather: Callable[[Share], list[Share]] = lambda share: [share],
) -> EvalResult:
    """Detects the objects of every image of the loader and scores them.

    Args:
        model: on `device`; its training mode is restored afterwards.
        postprocess: as built from the settings.
        loader: batches of uint8 images; each process of a distributed run brings its own share.
        settings: mean and std of the input, and what the protocol line says of the test settings.
        class_names: label i is `class_names[i]`; must be the annotations' classes.
        category_ids: the original category id of each label.
        annotations_path: COCO annotation file to score against; only the loader's images count.
        device: where the model is.
        precision: "auto" (fp32), "fp32", "bf16" or "fp16".
        progress: called with the number of images after each batch.
        note: called with a sentence when scoring begins and will take long.
        gather: turns this process's share into the shares of all processes. It returns an empty list in processes that
            are not to score; those get a result without metrics. An image that several shares hold counts once.

    Raises:
        CheckpointError: the classes are not those of the annotations.
    """
    truth = read_annotations(annotations_path)
    ids = match_classes(class_names, category_ids, truth.class_names, truth.category_ids, str(annotations_path))
    share, speed = run_detector(
        model,
        postprocess,
        loader,
        settings=settings,
        category_ids=ids,
        device=device,
        precision=precision,
        progress=progress,
    )
    shares = gather(share)
    if not shares:
        return EvalResult(speed=speed)
    merged = merge_shares(shares)
    if note is not None and len(merged.detections) > MANY_DETECTIONS:
        note(f"Scoring {len(merged.detections):,} detections with pycocotools; this takes a while")
    started = time.perf_counter()
    scores = score_detections(truth, merged.detections, merged.image_ids, where=str(annotations_path))
    return EvalResult(
        metrics=scores.metrics,
        per_class=scores.per_class,
        detections=merged.detections,
        speed=speed,
        protocol=describe_protocol(settings.test, postprocess, resolve_precision(precision)),
        images=scores.images,
        objects=scores.objects,
        scoring_seconds=time.perf_counter() - started,
    )


def run_detector(
    model: CoDETR,
    postprocess: PostProcess,
    loader: Iterable[Batch],
    *,
    settings: Settings,
    category_ids: Sequence[int],
    device: torch.device,
    precision: str = "auto",
    progress: Callable[[int], object] | None = None,
) -> tuple[Share, Speed]:
    """Detections of every image of the loader; arguments as in `evaluate`."""
    timed = TimedPostProcess.around(postprocess)
    image_ids: list[int] = []
    records: list[dict[str, Any]] = []
    started = time.perf_counter()
    data_seconds, batch_started = 0.0, started
    with inference(model, device, precision):
        for batch in loader:
            data_seconds += time.perf_counter() - batch_started
            found = detect(model, timed, batch.to(device), mean=settings.data.mean, std=settings.data.std)
            for target, detections in zip(batch.targets, (item.cpu() for item in found), strict=True):
                image_id = int(target["image_id"])
                labels = detections.labels.tolist()
                image_ids.append(image_id)
                records += coco_records(
                    detections.boxes.numpy(), detections.scores.numpy(), [category_ids[i] for i in labels], image_id
                )
            if progress is not None:
                progress(len(batch.targets))
            batch_started = time.perf_counter()
    seconds = time.perf_counter() - started
    return Share(image_ids, records), _speed(len(image_ids), seconds, data_seconds, sum(timed.seconds))


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
    detections: list[dict[str, Any]] = []
    for share in shares:
        new = set(share.image_ids) - seen
        repeated = len(new) < len(share.image_ids)
        detections += [r for r in share.detections if r["image_id"] in new] if repeated else share.detections
        seen |= new
    return Share(sorted(seen), detections)


def match_classes(
    class_names: Sequence[str],
    category_ids: Sequence[int],
    data_names: Sequence[str],
    data_ids: Sequence[int],
    where: str,
) -> list[int]:
    """The annotations' category id of each label of the model, matched by name.

    Equal names with other ids or in another order are the same classes: ids come from the annotations then.

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
    by_name = dict(zip(data_names, data_ids, strict=True))
    if len(by_name) == len(data_names) == len(class_names) and set(by_name) == set(class_names):
        return [by_name[name] for name in class_names]
    only_model = [name for name in class_names if name not in by_name]
    only_data = [name for name in data_names if name not in set(class_names)]
    raise CheckpointError(
        f"the model knows {len(class_names)} classes and {where} has {len(data_names)}, and they are not the same. "
        f"Only in the model: {_listed(only_model)}. Only in the annotations: {_listed(only_data)}. Evaluate on "
        "annotations with the model's classes, or fine-tune with `codetr train`: it reads the classes from the data."
    )


def _listed(names: Sequence[str], limit: int = 12) -> str:
    if not names:
        return "none"
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def describe_protocol(test: TestConfig, postprocess: PostProcess, precision: str) -> str:
    """How detections were made and counted, in one line that belongs beside every number."""
    suppression = {
        "none": "no NMS",
        "hard": f"NMS at IoU {postprocess.nms_iou:g}",
        "soft": f"soft-NMS at IoU {postprocess.nms_iou:g} over {postprocess.candidates}",
    }[postprocess.nms]
    detections = (
        f"{suppression}, up to {postprocess.max_detections} detections per image"
        if postprocess.head == "decoder"
        else f"detections of the {postprocess.head} head with its own NMS"
    )
    return (
        f"single scale {test.short_side}x{test.long_side}, {detections}, {precision}; "
        f"COCO box metrics by pycocotools: {CONVENTION}"
    )
