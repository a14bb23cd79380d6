"""`codetr predict`: detects objects in images; writes drawn images and COCO JSON, prints a table."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codetr_cli import console
from codetr_cli.commands import _options as opt
from codetr_cli.commands._outputs import free_folder
from codetr_cli.commands._weights import resolve_weights
from codetr_cli.errors import ConfigError, DatasetError, listed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from codetr_cli.inference.detector import Detector, Prediction
    from codetr_cli.inference.inputs import InputImage

EXAMPLES = (
    "codetr predict photo.jpg",
    "codetr predict images/ --checkpoint co_dino_r50.safetensors --score 0.5",
    "codetr predict 'images/*.jpg' --checkpoint runs/co_dino_r50/1 --out drawn",
)
PREDICTIONS_NAME = "predictions.json"
DRAWN_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MAX_ROWS = 40


def predict(
    sources: Annotated[
        list[str], typer.Argument(metavar="SRC", help="Images, folders, or quoted patterns such as 'a/*.jpg'.")
    ],
    checkpoint: opt.CheckpointOption = None,
    score: opt.ScoreOption = 0.3,
    max_dets: opt.MaxDetsOption = None,
    nms: opt.NmsOption = None,
    head: opt.HeadOption = None,
    tta: opt.TtaOption = False,
    out: opt.PredictOutOption = Path("predictions"),
    no_draw: opt.NoDrawOption = False,
    force: opt.ForceOption = False,
    json_output: opt.JsonOption = False,
    quiet: opt.QuietOption = False,
    device: opt.DeviceOption = "auto",
    precision: opt.InferencePrecisionOption = "auto",
    overrides: opt.SetOption = None,
) -> None:
    """Detect objects in images and draw them.

    Without --checkpoint the newest run in runs/ is used: its best checkpoint, or else its last.
    """
    console.set_mode(json=json_output, quiet=quiet)

    from codetr_cli.inference.detector import Detector
    from codetr_cli.inference.inputs import find_images

    images = find_images(sources)
    chosen = [f"test.head={head}"] if head else []
    weights = resolve_weights(checkpoint) or _newest()
    detector = Detector.load(weights, device, precision, overrides=[*chosen, *(overrides or [])], tta=tta)
    folder = free_folder(out, PREDICTIONS_NAME, force=force)
    folder.mkdir(parents=True, exist_ok=True)
    results = Results(folder)
    try:
        with console.progress("predicting", len(images)) as advance:
            for image in images:
                _predict_one(detector, image, results, score=score, max_dets=max_dets, nms=nms, draw=not no_draw)
                advance()
    finally:  # an interruption keeps the detections so far
        results.write()
    _show(results, detector)
    console.result_json(results.summary(str(detector.loaded.path or checkpoint)))
    if results.failed:
        console.error(
            f"{len(results.failed)} of {len(images)} images cannot be read: {listed(list(results.failed), 5)}. Replace "
            f"or remove them; the results of the others are in {results.folder}"
        )
        raise typer.Exit(DatasetError.exit_code)


def _newest() -> Path:
    from codetr_cli.inference.loading import newest_checkpoint

    found = newest_checkpoint(Path("runs"))
    if found is None:
        raise ConfigError(
            "which checkpoint? runs/ holds none: give one with --checkpoint FILE, train one with `codetr train`, or "
            "download a published one with `codetr download`"
        )
    console.info(f"Using {found}")
    return found


@dataclass
class Results:
    """Detections so far, and the folder in which they are written."""

    folder: Path
    records: list[dict[str, Any]] = field(default_factory=list)
    images: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def add(self, image: InputImage, prediction: Prediction, seconds: float, drawn: Path | None) -> None:
        """Adds the detections of one image."""
        names = dict(zip(prediction.category_ids.tolist(), prediction.class_names, strict=True))
        self.records += [
            {**record, "file_name": image.name, "category_name": names[record["category_id"]]}
            for record in prediction.to_coco(image.image_id)
        ]
        height, width = prediction.image_size
        self.images.append(
            {
                "file": str(image.path),
                "file_name": image.name,
                "image_id": image.image_id,
                "height": height,
                "width": width,
                "objects": dict(Counter(prediction.class_names).most_common()),
                "seconds": round(seconds, 4),
                "drawn": None if drawn is None else str(drawn),
            }
        )

    def write(self) -> None:
        """Writes predictions.json."""
        from codetr_cli.files import write_text

        write_text(self.folder / PREDICTIONS_NAME, json.dumps(self.records, ensure_ascii=False))

    def summary(self, checkpoint: str) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "checkpoint": checkpoint,
            "out": str(self.folder),
            "predictions": str(self.folder / PREDICTIONS_NAME),
            "images": self.images,
            "detections": self.records,
            "failed": [{"file": name, "error": error} for name, error in self.failed.items()],
        }


def _predict_one(
    detector: Detector,
    image: InputImage,
    results: Results,
    *,
    score: float,
    max_dets: int | None,
    nms: opt.Nms | None,
    draw: bool,
) -> None:
    """Runs on one image; a file that cannot be read is recorded and skipped."""
    from codetr_cli.data.images import read_image

    started = time.perf_counter()
    try:
        pixels = read_image(image.path, max_pixels=detector.loaded.settings.data.max_pixels)
    except DatasetError as error:
        results.failed[str(image.path)] = str(error)
        console.warn(str(error))
        return
    prediction = detector.predict(pixels, score=score, max_dets=max_dets, nms=nms)
    seconds = time.perf_counter() - started
    drawn = None
    if draw:
        name = Path(image.name)
        suffix = name.suffix if name.suffix.lower() in DRAWN_SUFFIXES else ".png"
        drawn = results.folder / name.with_suffix(suffix)
        drawn.parent.mkdir(parents=True, exist_ok=True)
        prediction.draw(pixels).save(drawn, quality=92)
    results.add(image, prediction, seconds, drawn)


def _show(results: Results, detector: Detector) -> None:
    rows: list[Sequence[object]] = []
    for image in results.images[:MAX_ROWS]:
        objects = ", ".join(f"{name} {count}" for name, count in image["objects"].items()) or "nothing"
        rows.append([image["file_name"], objects, round(image["seconds"] * 1000, 1)])
    if rows:
        console.table(f"Detections (on {detector.device})", ["image", "objects", "time [ms]"], rows)
    if len(results.images) > MAX_ROWS:
        console.result(f"... and {len(results.images) - MAX_ROWS} more images.")
    count = len(results.records)
    console.result(f"{count} detections in {len(results.images)} images: {results.folder / PREDICTIONS_NAME}")
