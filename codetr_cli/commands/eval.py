"""`codetr eval`: a checkpoint and a data set in; box and mask AP with their protocol, detections and speed out."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from codetr_cli import console
from codetr_cli.commands._options import DataSetsOption, DeviceOption, JsonOption, QuietOption, SetOption
from codetr_cli.commands._outputs import ForceOption, HeadOption, InferencePrecisionOption, TtaOption, free_folder
from codetr_cli.commands._weights import fetched

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from codetr_cli.config.schema import DatasetName, Settings
    from codetr_cli.data.annotations import Annotations
    from codetr_cli.data.formats.resolve import DataPaths
    from codetr_cli.data.loading.loader import EvalLoader
    from codetr_cli.evaluation.evaluator import EvalResult
    from codetr_cli.evaluation.scoring import ClassScore
    from codetr_cli.inference.detections import DetectionTable
    from codetr_cli.inference.loading import LoadedModel

DETECTIONS_NAME = "detections.json"
EngineName = Literal["hotcoco", "pycocotools"]
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
"""What the table of classes shows, where a class has it, and the columns' titles."""


def eval(
    checkpoint: Annotated[
        str | None,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A .safetensors or published .pth file, its address, a run folder, or a preset that was downloaded.",
        ),
    ] = None,
    data: DataSetsOption = None,
    split: Annotated[
        Literal["val", "train", "test"], typer.Option("--split", help="Which images of the data set.")
    ] = "val",
    images: Annotated[
        str | None, typer.Option("--images", metavar="DIR", help="Folder of the images, with --ann, instead of --data.")
    ] = None,
    annotations: Annotated[
        str | None, typer.Option("--ann", metavar="FILE", help="COCO annotation file, instead of --data.")
    ] = None,
    detections: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="Score these COCO detections; no checkpoint and no images needed."),
    ] = None,
    device: DeviceOption = "auto",
    precision: InferencePrecisionOption = "auto",
    batch: Annotated[int | None, typer.Option("--batch", metavar="N", min=1, help="Images at once.")] = None,
    max_images: Annotated[
        int | None, typer.Option("--max-images", metavar="N", min=1, help="Evaluate on the first images only.")
    ] = None,
    per_class: Annotated[bool, typer.Option("--per-class", help="Show the AP of every class.")] = False,
    head: HeadOption = None,
    tta: TtaOption = False,
    boxes_only: Annotated[
        bool, typer.Option("--boxes-only", help="Leave masks out, e.g. where the annotations have none.")
    ] = False,
    engine: Annotated[
        EngineName | None,
        typer.Option("--engine", help="Who counts: hotcoco, in seconds, or pycocotools, the same numbers in minutes."),
    ] = None,
    protocol: Annotated[
        bool, typer.Option("--protocol/--no-protocol", help="Print how the numbers were made beside them.")
    ] = True,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Where detections.json goes. Without it: eval/SPLIT by the checkpoint."
        ),
    ] = None,
    force: ForceOption = False,
    overrides: SetOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Evaluate a checkpoint by the published protocol: box AP, mask AP where it draws masks, LVIS's rules on LVIS.

    COCO's AP counts 100 detections per image, as published. The data is --data, else CODETR_DATA, else data/coco.
    """
    from codetr_cli.errors import ConfigError

    console.set_mode(json=json_output, quiet=quiet)
    if (checkpoint is None) == (detections is None):
        raise ConfigError(
            "give a checkpoint to evaluate, or --from detections.json to score a file"
            + ("; not both" if checkpoint else ": codetr eval CHECKPOINT")
        )
    from codetr_cli.runtime.environment import choose_device

    if checkpoint is not None:
        from codetr_cli.inference.loading import find_checkpoint

        choose_device(device)  # a missing GPU or checkpoint is told before any data is read
        checkpoint = fetched(checkpoint)
        find_checkpoint(str(checkpoint))
    paths = _find_data(data, split, images, annotations, overrides or [], images_needed=detections is None)
    for note in paths.notes:
        console.info(note)
    for warning in paths.warnings:
        console.warn(warning)
    if detections is not None:
        shown = _Shown(per_class=per_class, protocol=protocol)
        dataset = _named_dataset(overrides or [])
        _score_file(detections, paths, max_images, dataset=dataset, engine=engine, masks=not boxes_only, shown=shown)
        return
    chosen = [f"test.head={head}"] if head else []
    _evaluate(
        str(checkpoint),
        paths,
        split=split if annotations is None else Path(annotations).stem,
        overrides=[*chosen, *(overrides or [])],
        device=device,
        precision=precision,
        batch=batch,
        max_images=max_images,
        masks=not boxes_only,
        tta=tta,
        engine=engine,
        shown=_Shown(per_class=per_class, protocol=protocol),
        out=out,
        force=force,
    )


@dataclass(frozen=True)
class _Shown:
    """What a person wants to see beside the tables."""

    per_class: bool
    protocol: bool


def _named_dataset(overrides: Sequence[str]) -> DatasetName | None:
    """The kind of data set that the command line names, if it does."""
    from codetr_cli.config.overrides import apply_overrides
    from codetr_cli.config.schema import Settings

    named = [override for override in overrides if override.strip().startswith("data.dataset")]
    return apply_overrides(Settings(name="eval"), named).data.dataset if named else None


def _find_data(
    data: Sequence[str] | None,
    split: Literal["val", "train", "test"],
    images: str | None,
    annotations: str | None,
    overrides: Sequence[str],
    *,
    images_needed: bool,
) -> DataPaths:
    """Where images and annotations are; what the checkpoint was trained on plays no part in it."""
    from codetr_cli.config.overrides import apply_overrides
    from codetr_cli.config.schema import Settings
    from codetr_cli.data.formats.resolve import DataPaths, find_data
    from codetr_cli.errors import ConfigError, DatasetError

    if images and not annotations:
        raise ConfigError(f"--images {images} needs the annotations of these images: give --ann FILE too")
    if annotations and images_needed and not images:
        raise ConfigError(f"--ann {annotations} needs the folder of its images: give --images DIR too")
    if annotations:
        paths = DataPaths(images_dir=Path(images or "."), annotations_path=Path(annotations))
        if not paths.annotations_path.is_file() or not paths.images_dir.is_dir():
            missing = paths.images_dir if paths.annotations_path.is_file() else paths.annotations_path
            raise DatasetError(f"no such {'folder' if missing == paths.images_dir else 'file'}: {missing}")
        return paths
    relevant = [override for override in overrides if override.strip().startswith("data.")]
    named = any(override.strip().startswith("data.dataset") for override in relevant)
    config = apply_overrides(Settings(name="eval"), relevant).data
    if data:
        config = config.model_copy(update={"root": data[0], "extra_roots": tuple(data[1:])})
    return find_data(config, None, split, any_dataset=not named)


def _evaluate(
    checkpoint: str,
    paths: DataPaths,
    *,
    split: str,
    overrides: Sequence[str],
    device: str,
    precision: str,
    batch: int | None,
    max_images: int | None,
    masks: bool,
    tta: bool,
    engine: EngineName | None,
    shown: _Shown,
    out: Path | None,
    force: bool,
) -> None:
    """Runs the network over the images and shows what came out."""
    from codetr_cli.data.annotations import read_annotations
    from codetr_cli.evaluation.evaluator import evaluate
    from codetr_cli.evaluation.request import EvalRequest
    from codetr_cli.inference.loading import Classes, check_image_size, load_detector
    from codetr_cli.runtime.environment import choose_device

    chosen_device = choose_device(device)
    ground_truth = read_annotations(paths.annotations_path, with_outlines=masks)
    classes = Classes(ground_truth.class_names, ground_truth.category_ids)
    loaded = load_detector(checkpoint, chosen_device, overrides, classes=classes)
    settings = loaded.settings
    check_image_size(settings, training=False)
    if masks and settings.model.mask.kind == "fcn" and settings.test.head != "roi":
        console.info("This network draws masks in its RoI head: --head roi scores them, too")
    request = EvalRequest.resolve(
        settings,
        ground_truth,
        paths.annotations_path,
        class_names=loaded.class_names,
        category_ids=loaded.category_ids,
        masks=masks,
        tta=tta,
        precision=precision,
        scorer=engine,
        split=split,
    )
    batch_size = batch or settings.test.batch_size
    loader = _loader(
        paths,
        settings,
        request.ground_truth,
        tta=tta,
        batch_size=batch_size,
        max_images=max_images or (settings.data.max_images if split == "train" else None),
        pin_memory=chosen_device.type == "cuda",
    )
    folder = free_folder(out or _default_folder(loaded, checkpoint, split), DETECTIONS_NAME, force=force)
    folder.mkdir(parents=True, exist_ok=True)  # now: a folder that cannot be written must not cost an evaluation
    with console.progress("evaluating", len(loader.dataset)) as advance:
        result = evaluate(loaded.model, loader, request, device=chosen_device, progress=advance)
    if result.skipped:
        from codetr_cli.data.bad_files import listed_bad

        console.warn(
            f"{len(result.skipped):,} of {len(loader.dataset):,} images cannot be read and are left out, so that the "
            f"numbers are of {result.images:,} images: {listed_bad(result.skipped)}. metrics.json names all"
        )
    _report(
        result,
        loaded,
        checkpoint,
        str(paths.annotations_path),
        folder,
        device=str(chosen_device),
        batch=batch_size,
        tta=tta,
        shown=shown,
    )


def _report(
    result: EvalResult,
    loaded: LoadedModel,
    checkpoint: str,
    where: str,
    folder: Path,
    *,
    device: str,
    batch: int,
    tta: bool,
    shown: _Shown,
) -> None:
    """Writes and shows an evaluation."""
    from codetr_cli.evaluation.protocol import find_published

    protocol = result.protocol
    assert protocol is not None
    published = find_published(
        loaded.settings,
        tta=tta,
        precision=protocol.precision,
        split=protocol.split,
        images=result.images,
        trained=loaded.path is not None,
    )
    facts = {
        **result.metrics,
        "checkpoint": str(loaded.path or checkpoint),
        "annotations": where,
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
    _write(folder, result.detections, facts)
    _show(result.metrics, result.per_class if shown.per_class else [], f"{protocol.split}, {result.images} images")
    if shown.protocol:
        console.result(f"Protocol: {protocol}.")
    if published is not None:
        console.result(published.sentence(result.metrics))
    console.result(_speed_text(result, device, batch))
    console.result(f"Detections: {folder / DETECTIONS_NAME}")
    console.result_json(facts)


def _loader(
    paths: DataPaths,
    settings: Settings,
    ground_truth: Annotations,
    *,
    tta: bool,
    batch_size: int,
    max_images: int | None,
    pin_memory: bool,
) -> EvalLoader:
    """The images of one split, at the size of the test, or as decoded for test-time augmentation."""
    from codetr_cli.data.coco import CocoDataset
    from codetr_cli.data.loading.loader import EvalLoader
    from codetr_cli.data.transforms import Keep, build_transforms

    dataset = CocoDataset(
        images_dir=paths.images_dir,
        annotations_path=paths.annotations_path,
        transform=Keep() if tta else build_transforms(settings.data, settings.test, train=False),
        training=False,
        max_pixels=settings.data.max_pixels,
        pad_divisor=settings.data.pad_divisor,
        max_images=max_images,
        skip_bad=settings.data.bad_files == "skip",
        annotations=ground_truth,
    )
    return EvalLoader(dataset, batch_size=batch_size, workers=settings.data.workers, pin_memory=pin_memory and not tta)


def _default_folder(loaded: LoadedModel, name: str, split: str) -> Path:
    """Beside the checkpoint. A run's checkpoint folders come and go, so results lie in the run folder itself."""
    from codetr_cli.files import cache_dir

    if loaded.path is None or cache_dir() in loaded.path.parents:
        return Path("eval") / (Path(name).stem if loaded.path is None else loaded.settings.name) / split
    folder = loaded.path.parent
    if folder.parent.name == "checkpoints":
        return folder.parent.parent / "eval" / folder.name / split
    return folder / "eval" / split


def _write(folder: Path, detections: DetectionTable, facts: Mapping[str, Any]) -> None:
    from codetr_cli.files import write_text

    write_text(folder / DETECTIONS_NAME, detections.to_json())
    write_text(folder / "metrics.json", json.dumps(facts, indent=2) + "\n")


def _score_file(
    detections: Path,
    paths: DataPaths,
    max_images: int | None,
    *,
    dataset: DatasetName | None,
    engine: EngineName | None,
    masks: bool,
    shown: _Shown,
) -> None:
    """Scores a file of detections, by the rules of the data set that the annotations are of."""
    from codetr_cli.data.annotations import check_kind, read_annotations
    from codetr_cli.evaluation.backends import choose_backend, scorer_version
    from codetr_cli.evaluation.protocol import metric_names
    from codetr_cli.evaluation.scoring import score_detections
    from codetr_cli.inference.detections import load_detections

    found = load_detections(detections)
    masks = masks and found.masks is not None
    ground_truth = read_annotations(paths.annotations_path, with_outlines=masks)
    if dataset is not None:
        check_kind(ground_truth, dataset, paths.annotations_path)
    scorer = choose_backend(engine, len(found))
    image_ids = ground_truth.image_ids[:max_images].tolist()
    scores = score_detections(ground_truth, found, image_ids, where=str(paths.annotations_path), scorer=scorer)
    metrics, convention = metric_names(lvis=ground_truth.is_lvis, masks=masks)
    protocol = (
        f"{len(found)} detections of {detections}; {paths.annotations_path.stem}, {scores.images} images; {metrics} "
        f"metrics by {scorer_version(scorer)}: {convention}"
    )
    _show(scores.metrics, scores.per_class if shown.per_class else [], f"{detections.name}, {scores.images} images")
    if shown.protocol:
        console.result(f"Protocol: {protocol}.")
    console.result_json(
        {
            **scores.metrics,
            "annotations": str(paths.annotations_path),
            "images": scores.images,
            "objects": scores.objects,
            "protocol": protocol,
            "per_class": [score.as_dict() for score in scores.per_class],
            "detections": str(detections),
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
        rows = [[_cell(name, table.get(name)) for name in columns] for table in tables]
        console.table("By class", [CLASS_COLUMNS[name] for name in columns], rows)


def _cell(name: str, value: Any) -> object:
    return _metric_text(value) if "AP" in name and value is not None else value


def _metric_text(value: float) -> str:
    """Three digits as COCO tables have them; a dash where there was nothing to find."""
    return "-" if value < 0 else f"{value:.3f}"


def _speed_text(result: EvalResult, device: str, batch: int) -> str:
    speed = result.speed
    return (
        f"Speed: {speed.images_per_second:.2f} images/s on {device}, batch {batch}; per image {speed.data_ms:.1f} ms "
        f"waiting for data, {speed.model_ms:.1f} ms network, {speed.postprocess_ms:.1f} ms post-processing; "
        f"scoring {console.seconds_text(result.scoring_seconds)}."
    )
