"""`codetr eval`: evaluates a checkpoint on a dataset: box and mask AP with their protocol, detections and speed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from codetr_cli import console
from codetr_cli.commands import _options as opt
from codetr_cli.commands._outputs import free_folder
from codetr_cli.commands._weights import resolve_weights
from codetr_cli.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from codetr_cli.config.schema import DataConfig, Settings
    from codetr_cli.data.annotations import Annotations
    from codetr_cli.data.formats.resolve import DataPaths
    from codetr_cli.data.loading.loader import EvalLoader
    from codetr_cli.evaluation.evaluator import EvalResult
    from codetr_cli.evaluation.scoring import ClassScore
    from codetr_cli.inference.loading import LoadedModel

EXAMPLES = (
    "codetr eval runs/co_dino_r50/1",
    "codetr eval co_dino_r50.safetensors --data /path/to/coco --per-class",
    "codetr eval --detections eval/val/detections.json --data /path/to/coco",
)
DETECTIONS_NAME = "detections.json"
CLASS_COLUMNS = {
    "name": "class",
    "category_id": "category id",
    "frequency": "frequency",
    "objects": "objects",
    "AP": "AP",
    "AP50": "AP50",
    "mask_AP": "mask AP",
    "mask_AP50": "mask AP50",
}
"""Columns of the table of classes -> their titles; a column that no class has a value for is not shown."""


def eval(
    context: typer.Context,
    checkpoint: opt.CheckpointArgument = None,
    checkpoint_option: opt.SameCheckpointOption = None,
    data: opt.DataSetsOption = None,
    split: opt.SplitOption = "val",
    images: opt.ImagesOption = None,
    annotations: opt.AnnotationsOption = None,
    detections: opt.DetectionsOption = None,
    head: opt.HeadOption = None,
    tta: opt.TtaOption = False,
    boxes_only: opt.BoxesOnlyOption = False,
    scorer: opt.ScorerOption = None,
    protocol: opt.ProtocolOption = True,
    per_class: opt.PerClassOption = False,
    device: opt.DeviceOption = "auto",
    precision: opt.InferencePrecisionOption = "auto",
    batch: opt.BatchOption = None,
    out: opt.EvalOutOption = None,
    force: opt.ForceOption = False,
    json_output: opt.JsonOption = False,
    quiet: opt.QuietOption = False,
    max_images: opt.MaxImagesOption = None,
    overrides: opt.SetOption = None,
) -> None:
    """Evaluate a checkpoint, or score a file of detections.

    Reports box AP, and mask AP if the network predicts masks, by the published protocol: COCO's rules with 100
    detections per image, or LVIS's rules on LVIS.
    """
    console.set_mode(json=json_output, quiet=quiet)
    checkpoint = opt.argument_or_option(context, "checkpoint", "checkpoint_option")
    if (checkpoint is None) == (detections is None):
        raise ConfigError(
            "give a checkpoint to evaluate, or --detections detections.json to score a file"
            + ("; not both" if checkpoint else ": codetr eval CHECKPOINT")
        )
    options = _EvalOptions(
        split=split if annotations is None else Path(annotations).stem,
        overrides=[*([f"test.head={head}"] if head else []), *(overrides or [])],
        device=device,
        precision=precision,
        batch=batch,
        max_images=max_images,
        masks=not boxes_only,
        tta=tta,
        scorer=scorer,
        protocol=protocol,
        per_class=per_class,
        out=out,
        force=force,
    )
    if checkpoint is not None:
        checkpoint = _check_early(checkpoint, device)
    paths = _find_data(data, split, images, annotations, overrides or [], images_needed=detections is None)
    for note in paths.notes:
        console.info(note)
    for warning in paths.warnings:
        console.warn(warning)
    if checkpoint is not None:
        _evaluate(checkpoint, paths, options)
    elif detections is not None:
        _score_file(detections, paths, options)


@dataclass(frozen=True)
class _EvalOptions:
    """What the options ask for."""

    split: str
    overrides: Sequence[str]
    device: str
    precision: str
    batch: int | None
    max_images: int | None
    masks: bool
    tta: bool
    scorer: opt.ScorerName | None
    protocol: bool
    per_class: bool
    out: Path | None
    force: bool


def _check_early(checkpoint: str, device: str) -> str:
    """The checkpoint's file; a missing GPU or checkpoint is reported before any data is read."""
    from codetr_cli.inference.loading import find_checkpoint
    from codetr_cli.runtime.devices import choose_device

    choose_device(device)
    checkpoint = resolve_weights(checkpoint) or checkpoint
    find_checkpoint(checkpoint)
    return checkpoint


def _data_config(overrides: Sequence[str]) -> tuple[DataConfig, bool]:
    """The data settings of the command line, and whether they name the kind of dataset."""
    from codetr_cli.config.overrides import apply_overrides, user_set
    from codetr_cli.config.schema import Settings

    relevant = [override for override in overrides if override.strip().startswith("data.")]
    settings = apply_overrides(Settings(name="eval"), relevant)
    return settings.data, "data.dataset" in user_set(settings)


def _find_data(
    data: Sequence[str] | None,
    split: opt.Split,
    images: str | None,
    annotations: str | None,
    overrides: Sequence[str],
    *,
    images_needed: bool,
) -> DataPaths:
    """Where images and annotations are, independent of the data that the checkpoint was trained on."""
    from codetr_cli.data.formats.resolve import DataPaths, find_data
    from codetr_cli.errors import DatasetError

    if images and not annotations:
        raise ConfigError(f"--images {images} needs the annotations of these images: give --ann FILE too")
    if annotations and images_needed and not images:
        raise ConfigError(f"--ann {annotations} needs the folder of its images: give --images DIR too")
    if annotations:
        paths = DataPaths(images_dir=Path(images or "."), annotations_path=Path(annotations))
        if not paths.annotations_path.is_file():
            raise DatasetError(f"no such file: {paths.annotations_path}")
        if not paths.images_dir.is_dir():
            raise DatasetError(f"no such folder: {paths.images_dir}")
        return paths
    config, named = _data_config(overrides)
    if data:
        config = config.model_copy(update={"root": data[0], "extra_roots": tuple(data[1:])})
    return find_data(config, None, split, any_dataset=not named)


def _evaluate(checkpoint: str, paths: DataPaths, options: _EvalOptions) -> None:
    """Runs the network on the images and reports the results."""
    from codetr_cli.data.annotations import read_annotations
    from codetr_cli.data.bad_files import listed_bad
    from codetr_cli.evaluation.evaluator import evaluate
    from codetr_cli.evaluation.request import EvalRequest
    from codetr_cli.inference.loading import Classes, check_image_size, load_detector
    from codetr_cli.runtime.devices import choose_device

    device = choose_device(options.device)
    ground_truth = read_annotations(paths.annotations_path, with_outlines=options.masks)
    classes = Classes(ground_truth.class_names, ground_truth.category_ids)
    loaded = load_detector(checkpoint, device, options.overrides, classes=classes)
    settings = loaded.settings
    check_image_size(settings, training=False)
    if options.masks and settings.model.mask.kind == "fcn" and settings.test.head != "roi":
        console.info("This network predicts masks in its RoI head: --head roi scores them, too.")
    request = EvalRequest.resolve(
        settings,
        ground_truth,
        paths.annotations_path,
        class_names=loaded.class_names,
        category_ids=loaded.category_ids,
        masks=options.masks,
        tta=options.tta,
        precision=options.precision,
        scorer=options.scorer,
        split=options.split,
    )
    loader = _loader(paths, settings, request.ground_truth, options, pin_memory=device.type == "cuda")
    folder = free_folder(
        options.out or _default_folder(loaded, checkpoint, options.split), DETECTIONS_NAME, force=options.force
    )
    folder.mkdir(parents=True, exist_ok=True)  # now: a folder that cannot be written must not cost an evaluation
    with console.progress("evaluating", len(loader.dataset)) as advance:
        result = evaluate(loaded.model, loader, request, device=device, progress=advance)
    if result.skipped:
        console.warn(
            f"{len(result.skipped):,} of {len(loader.dataset):,} images cannot be read and are skipped; the metrics "
            f"are of the other {result.images:,} images: {listed_bad(result.skipped)}. metrics.json lists all"
        )
    checkpoint = str(loaded.path or checkpoint)
    _report(result, loaded, checkpoint, paths.annotations_path, folder, device=str(device), options=options)


def _report(
    result: EvalResult,
    loaded: LoadedModel,
    checkpoint: str,
    annotations: Path,
    folder: Path,
    *,
    device: str,
    options: _EvalOptions,
) -> None:
    """Writes and prints the results of an evaluation."""
    from codetr_cli.evaluation.protocol import find_published
    from codetr_cli.files import write_text

    protocol = result.protocol
    assert protocol is not None
    published = find_published(
        loaded.settings,
        tta=options.tta,
        precision=protocol.precision,
        split=protocol.split,
        images=result.images,
        trained=loaded.path is not None,
    )
    batch = options.batch or loaded.settings.test.batch_size
    summary = {
        **result.metrics,
        "checkpoint": checkpoint,
        "annotations": str(annotations),
        "images": result.images,
        "left_out": [bad._asdict() for bad in result.skipped],
        "objects": result.objects,
        "protocol": str(protocol),
        "protocol_parts": protocol.as_dict(),
        "published": published and published.as_dict(),
        "speed": {
            **asdict(result.speed),
            "scoring_seconds": result.scoring_seconds,
            "device": device,
            "batch": batch,
        },
        "per_class": [score.as_dict() for score in result.per_class],
        "detections": str(folder / DETECTIONS_NAME),
    }
    write_text(folder / DETECTIONS_NAME, result.detections.to_json())
    write_text(folder / "metrics.json", json.dumps(summary, indent=2) + "\n")
    _show(result.metrics, result.per_class if options.per_class else [], f"{protocol.split}, {result.images} images")
    if options.protocol:
        console.result(f"Protocol: {protocol}.")
    if published is not None:
        console.result(published.sentence(result.metrics))
    speed = result.speed
    console.result(
        f"Speed: {speed.images_per_second:.2f} images/s on {device}, batch {batch}; per image {speed.data_ms:.1f} ms "
        f"waiting for data, {speed.model_ms:.1f} ms network, {speed.postprocess_ms:.1f} ms post-processing; "
        f"scoring {console.seconds_text(result.scoring_seconds)}."
    )
    console.result(f"Detections: {folder / DETECTIONS_NAME}")
    console.result_json(summary)


def _loader(
    paths: DataPaths, settings: Settings, ground_truth: Annotations, options: _EvalOptions, *, pin_memory: bool
) -> EvalLoader:
    """The images of one split, at the test size, or as decoded for test-time augmentation."""
    from codetr_cli.data.coco import CocoDataset
    from codetr_cli.data.loading.loader import EvalLoader
    from codetr_cli.data.transforms import Keep, build_transforms

    dataset = CocoDataset(
        images_dir=paths.images_dir,
        annotations_path=paths.annotations_path,
        transform=Keep() if options.tta else build_transforms(settings.data, settings.test, train=False),
        training=False,
        max_pixels=settings.data.max_pixels,
        pad_divisor=settings.data.pad_divisor,
        max_images=options.max_images or (settings.data.max_images if options.split == "train" else None),
        skip_bad=settings.data.bad_files == "skip",
        annotations=ground_truth,
    )
    return EvalLoader(
        dataset,
        batch_size=options.batch or settings.test.batch_size,
        workers=settings.data.workers,
        pin_memory=pin_memory and not options.tta,
    )


def _default_folder(loaded: LoadedModel, name: str, split: str) -> Path:
    """Beside the checkpoint; for a run in the run folder itself, since its checkpoint folders are replaced."""
    from codetr_cli.files import cache_dir

    if loaded.path is None or cache_dir() in loaded.path.parents:
        return Path("eval") / (Path(name).stem if loaded.path is None else loaded.settings.name) / split
    folder = loaded.path.parent
    if folder.parent.name == "checkpoints":
        return folder.parent.parent / "eval" / folder.name / split
    return folder / "eval" / split


def _score_file(file: Path, paths: DataPaths, options: _EvalOptions) -> None:
    """Scores a file of detections by the rules of the dataset that the annotations belong to."""
    from codetr_cli.data.annotations import check_kind, read_annotations
    from codetr_cli.evaluation.backends import choose_backend, scorer_version
    from codetr_cli.evaluation.protocol import metric_names
    from codetr_cli.evaluation.scoring import score_detections
    from codetr_cli.inference.detections import load_detections

    config, named = _data_config(options.overrides)
    detections = load_detections(file)
    masks = options.masks and detections.masks is not None
    ground_truth = read_annotations(paths.annotations_path, with_outlines=masks)
    if named:
        check_kind(ground_truth, config.dataset, paths.annotations_path)
    scorer = choose_backend(options.scorer, len(detections))
    image_ids = ground_truth.image_ids[: options.max_images].tolist()
    scores = score_detections(ground_truth, detections, image_ids, where=str(paths.annotations_path), scorer=scorer)
    metrics, convention = metric_names(lvis=ground_truth.is_lvis, masks=masks)
    protocol = (
        f"{len(detections)} detections of {file}; {paths.annotations_path.stem}, {scores.images} images; {metrics} "
        f"metrics by {scorer_version(scorer)}: {convention}"
    )
    _show(scores.metrics, scores.per_class if options.per_class else [], f"{file.name}, {scores.images} images")
    if options.protocol:
        console.result(f"Protocol: {protocol}.")
    console.result_json(
        {
            **scores.metrics,
            "annotations": str(paths.annotations_path),
            "images": scores.images,
            "objects": scores.objects,
            "protocol": protocol,
            "per_class": [score.as_dict() for score in scores.per_class],
            "detections": str(file),
        }
    )


def _show(metrics: Mapping[str, float], per_class: Sequence[ClassScore], what: str) -> None:
    for subject, prefix in (("Box", ""), ("Mask", "mask_")):
        for kind, start in (("precision", "AP"), ("recall", "AR")):
            names = [name.removeprefix(prefix) for name in metrics if name.startswith(prefix + start)]
            if names:
                values = [_metric_text(metrics[prefix + name]) for name in names]
                console.table(f"{subject} {kind} ({what})", names, [values])
    if per_class:
        tables = [score.as_dict() for score in per_class]
        columns = [name for name in CLASS_COLUMNS if any(name in table for table in tables)]
        rows = [
            [_metric_text(table[name]) if "AP" in name and name in table else table.get(name) for name in columns]
            for table in tables
        ]
        console.table("Per class", [CLASS_COLUMNS[name] for name in columns], rows)


def _metric_text(value: float) -> str:
    """Three digits as in COCO's tables; a dash where there are no objects."""
    return "-" if value < 0 else f"{value:.3f}"
