"""What the page of `codetr demo` computes: detections of one file, and the files to download.

The network runs once for an image and its tiles. It gives every detection before NMS; score, NMS, classes and number
are applied to those, so that a slider answers at once, with the result that the detector itself would give.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from codetr_cli.distributed.part_files import PartFiles
from codetr_cli.errors import counted
from codetr_cli.files import WEIGHTS_NAME
from codetr_cli.images.decoder import BrokenImageError, read_image
from codetr_cli.images.regions import ArrayRegions
from codetr_cli.inference.detector import Detector
from codetr_cli.inference.draw_options import DrawOptions
from codetr_cli.inference.options import DetectOptions, Nms, TileOptions
from codetr_cli.inference.prediction import Prediction
from codetr_cli.inference.tiling import build_tiling
from codetr_cli.models.postprocess import PostProcess
from codetr_cli.ops.nms import batched_nms, batched_soft_nms
from codetr_cli.prediction.inputs import VIDEO_SUFFIXES
from codetr_cli.prediction.picture_files import encode_picture, fitted
from codetr_cli.prediction.shards import DETECTION_KEYS
from codetr_cli.prediction.video.inputs import VideoInput
from codetr_cli.prediction.video.job import VideoJob
from codetr_cli.prediction.video.outcome import VideoOutcome
from codetr_cli.prediction.video.recording import VideoRun
from codetr_cli.prediction.video.segments import check_manifest
from codetr_cli.runtime.devices import use_device
from codetr_cli.runtime.signals import StopRequest

NO_TILES = "off"
LOWEST_MASK_SCORE = 0.05
"""Of networks with masks: a mask for each of hundreds of weak detections would take seconds."""
MAX_SHOWN_SIDE = 2000
"""Pixels of the longer side of the picture in the page."""
PICTURE_QUALITY = 92
MAX_STEM = 80
"""Characters of the name of a download that are of the name of the file."""
MAX_NAMED_CLASSES = 6

TableRow = list[Any]


@dataclass(frozen=True, kw_only=True)
class PageOptions:
    """What the user of the page has chosen.

    Attributes:
        score: minimum score, in [0, 1].
        max_dets: most detections of an image.
        classes: names of those to keep; empty: all.
        nms: within each class.
        nms_iou: its IoU threshold, in [0, 1].
        tiles: "off", "auto", or their size as in 1024x768.
        stride: of the frames of a video; 1: all.
    """

    score: float
    max_dets: int
    classes: Sequence[str] = ()
    nms: Nms
    nms_iou: float
    tiles: str = NO_TILES
    stride: int = 1

    @property
    def tile_options(self) -> TileOptions | None:
        """The tiles; None: the image is seen as a whole.

        Raises:
            ConfigError: a text that is no size.
        """
        text = self.tiles.strip().lower()
        return None if text in ("", NO_TILES) else TileOptions.parse(text)


@dataclass(frozen=True)
class SeenImage:
    """An image and all that the network sees in it.

    Attributes:
        path: of the file.
        raw: the detections before NMS, from the lowest score on.
        is_tiled: whether it was cut into tiles.
        seconds: that the detection took.
    """

    path: Path
    raw: Prediction
    is_tiled: bool
    seconds: float


@dataclass(frozen=True)
class PageImage:
    """What the page shows of an image, and offers for download.

    Attributes:
        summary: a sentence.
        rows: of the table: number, class, score, x1, y1, x2 and y2 of each detection.
        shown: the drawn picture at the size of a screen.
        drawn: the drawn picture at its own size.
        native: the JSON object of `codetr predict --format jsonl`.
        coco: COCO's list of results.
    """

    summary: str
    rows: list[TableRow]
    shown: Path
    drawn: Path
    native: Path
    coco: Path


@dataclass(frozen=True)
class PageVideo:
    """What the page shows of a video, and offers for download.

    Attributes:
        summary: sentences.
        rows: of the table: class and number of detections.
        drawn: the drawn video.
        lines: the JSON Lines file of `codetr predict`.
    """

    summary: str
    rows: list[TableRow]
    drawn: Path
    lines: Path


def is_video(path: Path) -> bool:
    """Whether a file is taken for a video, by the ending of its name."""
    return path.suffix.lower() in VIDEO_SUFFIXES


class PageDetector:
    """A detector as the page uses it.

    Args:
        detector: loaded once, for all users of the page.

    Attributes:
        detector: as given.
        class_names: of the network.
        lowest_score: that the page can show.
        defaults: what is chosen at first.
        most_dets: most detections of an image that the page can show.
        chooses_nms: whether the page can choose the NMS: the auxiliary heads keep their own.
    """

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        self.class_names = list(detector.class_names)
        settings, postprocess = detector.loaded.settings, detector.loaded.postprocess
        self.lowest_score = LOWEST_MASK_SCORE if settings.learns_masks else 0.0
        self.chooses_nms = postprocess.head == "decoder"
        self._num_queries = settings.model.num_queries
        self.most_dets = max(self._num_queries, postprocess.max_detections)
        nms: Any = postprocess.nms
        self.defaults = PageOptions(
            score=0.3, max_dets=postprocess.max_detections, nms=nms, nms_iou=postprocess.nms_iou
        )

    @property
    def title(self) -> str:
        """What the checkpoint is, and its file unless that has the name of every run's."""
        loaded, count = self.detector.loaded, len(self.class_names)
        file = [loaded.path.name] if loaded.path is not None and loaded.path.name != WEIGHTS_NAME else []
        return " · ".join([loaded.settings.name, *file, f"{count:,} {'class' if count == 1 else 'classes'}"])

    # ---------------------------------------------------------------------------------------------------------- images

    def see(self, path: Path, options: PageOptions) -> SeenImage:
        """Runs the network on an image file.

        Args:
            path: of any format that codetr reads.
            options: `tiles` counts.

        Raises:
            DatasetError: the file is missing, damaged, not an image or has too many pixels.
            ConfigError: tiles of no size, or too many of them.
            ResourceError: the device has not enough memory.
        """
        use_device(self.detector.device)  # of this thread
        tiles = options.tile_options
        pixels = self._pixels(path)
        started = time.monotonic()
        is_tiled = tiles is not None and bool(
            build_tiling(self.detector.loaded.settings, tiles).tiles(pixels.shape[:2])
        )
        raw = self.detector.predict(
            pixels,
            score=self.lowest_score,
            nms="none" if self.chooses_nms else None,
            # As many as enter NMS. Each tile has so many of its own.
            max_dets=None if is_tiled else self.most_dets,
            tiles=tiles if is_tiled else None,
        )
        return SeenImage(path, raw, is_tiled, time.monotonic() - started)

    def chosen(self, seen: SeenImage, options: PageOptions) -> Prediction:
        """The detections of an image that the options keep; the network does not run again."""
        found = seen.raw
        if self.chooses_nms:
            how = self.detector.loaded.postprocess
            limit = max(options.max_dets, how.max_detections)
            how = replace(how, nms=options.nms, nms_iou=options.nms_iou, max_detections=limit)
            found = suppressed(found, how, num_queries=self._num_queries, is_tiled=seen.is_tiled)
        found = found[found.scores >= options.score]
        if options.classes:
            names = set(options.classes)
            found = found[[row for row, name in enumerate(found.class_names) if name in names]]
        return found[: options.max_dets]

    def write_image(self, seen: SeenImage, options: PageOptions, folder: Path) -> PageImage:
        """Draws what the options keep and writes the files of it into a new folder.

        Raises:
            DatasetError: the image file is not there any more.
        """
        found = self.chosen(seen, options)
        pixels = self._pixels(seen.path)
        size = fitted(found.image_size, MAX_SHOWN_SIDE)
        stem = seen.path.stem[:MAX_STEM] or "image"
        folder.mkdir(parents=True)
        drawn = folder / f"{stem}_detections.jpg"
        picture = encode_picture(found.drawn_on(pixels, DrawOptions()), ".jpg", PICTURE_QUALITY)
        drawn.write_bytes(picture)
        shown = drawn
        if size != found.image_size:
            reduced = ArrayRegions(pixels).reduced(*size)
            shown = folder / f"{stem}_page.jpg"
            shown.write_bytes(
                encode_picture(found.resized(size).drawn_on(reduced, DrawOptions()), ".jpg", PICTURE_QUALITY)
            )
        records = found.to_coco(0)
        native, coco = folder / f"{stem}.json", folder / f"{stem}_coco.json"
        _write_json(native, _native(seen.path.name, found, records))
        _write_json(coco, records)
        return PageImage(_sentence(found, seen, str(self.detector.device)), _rows(found), shown, drawn, native, coco)

    def _pixels(self, path: Path) -> Any:
        try:
            return read_image(path, max_pixels=self.detector.loaded.settings.data.max_pixels)
        except BrokenImageError as error:
            advice = error.advise("`codetr demo --set data.max_pixels={}`", path.name)
            raise BrokenImageError(advice, path, error.reason) from error

    # ---------------------------------------------------------------------------------------------------------- videos

    def predict_video(
        self,
        path: Path,
        options: PageOptions,
        folder: Path,
        *,
        stop: StopRequest,
        progress: Callable[[int, int | None], object],
    ) -> PageVideo:
        """Runs the network on the frames of a video and draws it.

        Args:
            path: of the file.
            options: all of them count.
            folder: of the results, created if needed.
            stop: whether the user of the page wants it to stop.
            progress: called with the number of frames done, and of all frames if it is known.

        Raises:
            StoppedError: as requested.
            DatasetError: the file is damaged or not a video.
            ConfigError: tiles of no size, or too many of them.
            ResourceError: PyAV is not installed, or the device has not enough memory.
        """
        use_device(self.detector.device)
        job = VideoJob(
            videos=[VideoInput(str(path), "file", f"{path.stem[:MAX_STEM]}_detections", (path,))],
            weights=str(self.detector.loaded.path or self.detector.loaded.settings.name),
            options=self._video_options(options),
            stride=options.stride,
            out=folder,
            force=True,
        )
        job.check()
        request = job.digest(self.detector.device.type)
        parts = PartFiles(folder, job.inputs, check_manifest)
        parts.open(request, lambda: job.choose_folder(request))
        notes: list[str] = []

        def show(name: str, total: int | None, done: int) -> Callable[[int], object]:
            count = done

            def advance(number: int) -> None:
                nonlocal count
                count += number
                progress(count, total)

            return advance

        try:
            run = VideoRun(
                job, 0, detector=self._with_iou(options), parts=parts, request=request, stop=stop, warn=notes.append
            )
            outcome = run.run(show)
        finally:
            parts.close(remove=True)
        assert outcome.video is not None
        rows = [[name, count] for name, count in outcome.objects.items()]
        return PageVideo(_video_sentences(outcome, path, notes), rows, outcome.video, outcome.lines)

    def _video_options(self, options: PageOptions) -> DetectOptions:
        others = set(options.classes) and set(self.class_names) - set(options.classes)
        return DetectOptions(
            score=options.score,
            class_scores=dict.fromkeys(others, 2.0),  # more than any score
            max_dets=options.max_dets,
            nms=options.nms if self.chooses_nms else None,
            tiles=options.tile_options,
        )

    def _with_iou(self, options: PageOptions) -> Detector:
        """The detector with the chosen threshold of NMS."""
        loaded = self.detector.loaded
        if not self.chooses_nms or options.nms_iou == loaded.postprocess.nms_iou:
            return self.detector
        loaded = replace(loaded, postprocess=replace(loaded.postprocess, nms_iou=options.nms_iou))
        return Detector(loaded, device=self.detector.device, precision=self.detector.precision)


def suppressed(raw: Prediction, postprocess: PostProcess, *, num_queries: int, is_tiled: bool) -> Prediction:
    """The detections after NMS, best score first.

    Args:
        raw: all detections before NMS, best score first.
        postprocess: which NMS, and how many detections enter and leave it.
        num_queries: of the network.
        is_tiled: of an image in tiles, whose views have chosen their candidates, and which has no such limit.
    """
    limit = postprocess.max_detections
    if not is_tiled:
        raw = raw[: limit if postprocess.nms == "none" or postprocess.candidates == "max_detections" else num_queries]
    if postprocess.nms == "none":
        return raw
    boxes, scores, labels = map(torch.from_numpy, (raw.boxes, raw.scores, raw.labels))
    if is_tiled:
        boxes, scores, limit = boxes.double(), scores.double(), len(raw)  # as `inference.tile_merging`
    if postprocess.nms == "hard":
        return raw[batched_nms(boxes, scores, labels, postprocess.nms_iou)[:limit]]
    keep, decayed = batched_soft_nms(
        boxes,
        scores,
        labels,
        iou_threshold=postprocess.nms_iou,
        min_score=postprocess.nms_min_score,
        max_detections=limit,
    )
    kept, new_scores = raw[keep], decayed.float().numpy()
    mask_scores = None if kept.mask_scores is None else kept.mask_scores * new_scores / kept.scores
    return replace(kept, scores=new_scores, mask_scores=mask_scores)


def _native(name: str, found: Prediction, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    height, width = found.image_size
    named = [{**record, "category_name": each} for record, each in zip(records, found.class_names, strict=True)]
    detections = [{key: record[key] for key in DETECTION_KEYS if key in record} for record in named]
    return {"file_name": name, "height": height, "width": width, "detections": detections}


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8", errors="backslashreplace")


def _rows(found: Prediction) -> list[TableRow]:
    return [
        [number, each.class_name, round(each.score, 3), *(round(value, 1) for value in each.box)]
        for number, each in enumerate(found, start=1)
    ]


def _sentence(found: Prediction, seen: SeenImage, device: str) -> str:
    height, width = found.image_size
    tiles = ", in tiles" if seen.is_tiled else ""
    seen_in = f"{width} x {height} pixels{tiles}, {seen.seconds:.2f} s on {device}"
    return f"{_objects(Counter(found.class_names))} · {seen_in}"


def _objects(counts: Counter[str]) -> str:
    named = [f"{name} {count}" for name, count in counts.most_common(MAX_NAMED_CLASSES)]
    more = [f"{len(counts) - MAX_NAMED_CLASSES} more classes"] if len(counts) > MAX_NAMED_CLASSES else []
    return f"{counted(counts.total(), 'detection')}" + (f": {', '.join([*named, *more])}" if named else "")


def _video_sentences(outcome: VideoOutcome, path: Path, notes: Sequence[str]) -> str:
    first = f"{_objects(Counter(outcome.objects))} · {counted(outcome.frames, 'frame')} of {path.name}"
    found = [*notes, *(f"{sentence}." for sentence in outcome.sentences())]
    return " ".join([first + ("." if found else ""), *(text.replace(str(path), path.name) for text in found)])
