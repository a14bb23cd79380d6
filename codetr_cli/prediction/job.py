"""A prediction from its options to the files in its output folder, in one process or several."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, suppress
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import torch

from codetr_cli.data.loading.loader import divide
from codetr_cli.distributed import part_files, process_group, slurm
from codetr_cli.distributed.part_files import PartFiles, output_folder, request_digest, unpacking
from codetr_cli.distributed.part_frames import Part
from codetr_cli.distributed.shared_work import SharedWork, agree_on_weights, stop_request
from codetr_cli.distributed.worker_errors import PREDICTION
from codetr_cli.errors import ConfigError, ResourceError
from codetr_cli.inference.detector import Detector
from codetr_cli.inference.exported.network import runtime_facts
from codetr_cli.inference.loading import find_checkpoint, load_detector
from codetr_cli.inference.options import DetectOptions
from codetr_cli.prediction.drawings import misplaced
from codetr_cli.prediction.labels.interface import (
    DatasetOptions,
    LabelOptions,
    LabelSelection,
    dataset_folder,
    describe_model,
)
from codetr_cli.prediction.outcome import LISTED_IMAGES, SUMMARY_NAME, PredictOutcome, Tally, summarize, write_summary
from codetr_cli.prediction.outputs import (
    CROPS,
    FAILURES_NAME,
    PARTIAL,
    REVIEW,
    OutputTarget,
    check_class_names,
    remove_crops,
    result_files,
    result_names,
    taken,
    write_outputs,
)
from codetr_cli.prediction.pictures import PictureOptions, Pictures
from codetr_cli.prediction.predictor import Predictor
from codetr_cli.prediction.results import ImageResult, check_packed, merge_results, pack_results
from codetr_cli.prediction.sources.input_list import InputImage, digest_of
from codetr_cli.prediction.targets import SHARD_SIZE
from codetr_cli.runtime.devices import choose_device, use_device

MAX_WARNINGS = 20
"""Of images that cannot be read, in each process."""

Show = Callable[[int, int], AbstractContextManager[Callable[[int], object]]]
"""Shows progress: from the number of images, and how many of them were done before, to a function that counts more."""


@dataclass(frozen=True, kw_only=True)
class PredictJob:
    """What to predict, and how; the attributes are those of `codetr predict`.

    Attributes:
        images: in the order of the results.
        weights: as `inference.loading.load_detector` takes them.
        overrides: settings as `key=value`.
        precision: "auto" (fp32), "fp32", "tf32", "bf16" or "fp16".
        tta: test-time augmentation.
        options: how images are detected.
        pictures: which pictures are made.
        formats: of the results, keys of `outputs.WRITERS`.
        labels: which detections are labels, and in which form.
        dataset: makes a data set of the labels, as whose folder `out` is refused instead of numbered where it is taken;
            the only format is then `outputs.DATASET`.
        shard_size: images in a file of the formats that divide their results.
        out: the output folder.
        force: replace own results in the output folder; otherwise the next free one is used.
    """

    images: Sequence[InputImage]
    weights: str
    overrides: Sequence[str] = ()
    precision: str = "auto"
    tta: bool = False
    options: DetectOptions = field(default_factory=DetectOptions)
    pictures: PictureOptions = field(default_factory=PictureOptions)
    formats: tuple[str, ...] = ("coco",)
    labels: LabelOptions = field(default_factory=LabelOptions)
    dataset: DatasetOptions | None = None
    shard_size: int = SHARD_SIZE
    out: Path
    force: bool = False

    def digest(self, device_type: str) -> str:
        """A name of everything that the results depend on, except the images' content."""
        options = {name: value for name, value in asdict(self.options).items() if name not in ("workers", "exact")}
        options["batch"] = self.options.images_at_once(device_type)
        return request_digest(
            weights=find_checkpoint(self.weights) or self.weights,
            images=digest_of(self.images),
            device=device_type,
            overrides=[text for text in self.overrides if not text.startswith("data.workers=")],
            options=options,
            labels=asdict(self.labels),
            dataset=asdict(self.dataset) if self.dataset else None,
            **{name: getattr(self, name) for name in ("tta", "precision", "formats", "shard_size")},
            pictures=self.pictures.request(),
        )

    @property
    def written(self) -> tuple[str, ...]:
        """The formats, and what is written beside them."""
        has_list = self.labels.review is not None and self.dataset is None
        return (*self.formats, REVIEW) if has_list else self.formats

    def result_names(self) -> list[str]:
        """Names in the output folder that the results have."""
        names = result_names(self.written, len(self.images), self.shard_size)
        return [*names, *self.pictures.result_names(), FAILURES_NAME, SUMMARY_NAME]

    def drawn_names(self, folder: Path, digest: str) -> list[Path]:
        """Names of the drawn images in an output folder, by the number of the image; empty if none are drawn."""
        reserved = (*self.result_names(), CROPS, part_files.FOLDER, slurm.FOLDER)
        return self.pictures.drawn_names(self.images, reserved, folder, request=digest, force=self.force)

    def choose_folder(self, digest: str) -> Path:
        """The output folder: that of the same command before, or a free one.

        Raises:
            ConfigError: links in it lead elsewhere, or there are files in the place of results.
        """
        if self.dataset is not None:
            return dataset_folder(self.out, digest, force=self.force)

        def problem(folder: Path) -> str | None:
            return misplaced(folder, self.drawn_names(folder, digest)) or taken(
                folder, self.formats, self.labels, request=digest, force=self.force
            )

        folder = output_folder(
            self.out,
            *result_files(self.result_names()),
            request=digest,
            force=self.force,
            taken=lambda path: problem(path) is not None,
        )
        if (sentence := problem(folder)) is not None:
            raise ConfigError(sentence)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def parts(self, folder: Path) -> PartFiles:
        """The results so far."""
        return PartFiles(
            folder,
            lambda number: self.images[number].local_files,
            lambda part: check_packed(part.content, part.units, self.images),
        )


def run_prediction(
    job: PredictJob, *, device: torch.device, show: Show, warn: Callable[[str], object]
) -> PredictOutcome | None:
    """Predicts in this process, which may be one of several, and writes the results.

    The results of each image are kept in part files of the output folder: a process that died and the same command
    started again continue with the other images. No file depends on the number of processes.

    Args:
        job: what to predict.
        device: of the whole prediction; each of several processes uses its own GPU.
        show: shows the progress of all processes; called in the process of rank 0.
        warn: shows a sentence about an image that cannot be read.

    Returns:
        the outcome in the process of rank 0; None in the others.

    Raises:
        StoppedError: a signal came; the results so far are kept.
        CodetrError: any error that the user can fix.
    """
    device = process_group.local_device(device)
    with process_group.joined(device, work=PREDICTION) as store, ExitStack() as stack:
        shown = stack.enter_context(ExitStack())
        stop = stack.enter_context(stop_request(shown.close))
        digest = job.digest(device.type)
        device = use_device(choose_device(str(device)))
        loaded = load_detector(job.weights, device, list(job.overrides))
        detector = Detector(loaded, device=device, precision=job.precision, tta=job.tta)
        detector.log_tiles(job.options)
        selection = LabelSelection(detector, job.options, job.labels)
        check_class_names([job.dataset.layout] if job.dataset else job.formats, selection.class_names)
        truth = job.pictures.ground_truth(selection.class_names, job.images)
        facts = _facts(job, detector)
        agree_on_weights(digest, job.digest(device.type))  # the facts, too, are of the file that was loaded
        parts = job.parts(job.out)
        work = SharedWork(parts, bytes([1]) * len(job.images), pack_results, work=PREDICTION, stop=stop, store=store)
        stack.callback(work.close, complete=False)
        make = partial(Pictures, options=job.pictures, truth=truth, class_names=selection.class_names, force=job.force)
        planned = cache(lambda: make(place=parts, names=job.drawn_names(parts.folder, digest), request=digest))
        done = work.start(digest, lambda: job.choose_folder(digest), lambda number: planned().is_complete(number))
        if process_group.is_main() and job.labels.crops and job.force and not done:
            remove_crops(parts.folder)
        names = process_group.from_main(planned().names if process_group.is_main() else None)
        pictures = make(place=parts, names=names, request=digest)
        writing = _Writing(job, detector, selection, pictures, parts, digest, facts)
        if any(name in PARTIAL for name in job.formats) and len(job.images) <= LISTED_IMAGES:
            # The list of what was found is always there, complete or not, whatever ends this process.
            work.snapshot = writing.write_partial
        if process_group.is_main():
            for sentence in pictures.warnings():
                warn(sentence)
            work.progress = shown.enter_context(show(len(job.images), work.images_before))
        predictor = Predictor(
            detector=detector,
            options=job.options,
            folder=parts.folder,
            pictures=pictures,
            scratch=parts.path,
            request=digest,
            force=job.force,
            selection=selection,
            labels=job.labels,
            images=job.images,
        )
        numbers = _numbers_here(job.images, done)
        warned = _Warnings(warn)
        with closing(predictor.predict((number, job.images[number]) for number in numbers)) as found_here:
            for result in found_here:
                warned.see(result)
                work.add(result.number, result, failed=result.error is not None)
        found = work.finish()
        shown.close()
        if not process_group.is_main():
            return None
        outcome = writing.write_all(found, work, device)
        work.close(complete=True, keep=bool(outcome.unwritten))
        return outcome


def _facts(job: PredictJob, detector: Detector) -> dict[str, Any]:
    """What makes the labels of a data set; empty for other results, and in processes that do not write them."""
    if job.dataset is None or not process_group.is_main():
        return {}
    return describe_model(detector, job.options, job.labels, job.overrides, tta=job.tta)


class _Warnings:
    """Shows the first images that cannot be read, so that a wrong list of a million does not fill the log."""

    def __init__(self, warn: Callable[[str], object]) -> None:
        self._warn, self._count = warn, 0

    def see(self, result: ImageResult) -> None:
        if result.error is not None:
            self._count += 1
            if self._count <= MAX_WARNINGS:
                self._warn(result.error)
            if self._count == MAX_WARNINGS:
                self._warn(f"images that cannot be read from here on are only listed in {FAILURES_NAME}")


class _Writing:
    """Writes the results from part files; for the process of rank 0."""

    def __init__(
        self,
        job: PredictJob,
        detector: Detector,
        selection: LabelSelection,
        pictures: Pictures,
        parts: PartFiles,
        digest: str,
        facts: Mapping[str, Any],
    ) -> None:
        self._job, self._detector, self._selection, self._pictures = job, detector, selection, pictures
        self._parts, self._digest, self._facts = parts, digest, facts

    @cached_property
    def _model(self) -> str:
        """The name of the network."""
        loaded = self._detector.loaded
        return f"{loaded.settings.name} {loaded.path.name if loaded.path else ''}".strip()

    @property
    def _target(self) -> OutputTarget:
        return OutputTarget(
            folder=self._parts.folder,
            scratch=self._parts.path,
            request=self._digest,
            force=self._job.force,
            class_names=self._selection.class_names,
            category_ids=self._selection.category_ids,
            images=self._job.images,
            shard_size=self._job.shard_size,
            labels=self._job.labels,
            model=self._model,
            dataset=self._job.dataset,
            facts=self._facts,
        )

    def write_partial(self) -> None:
        """Writes the formats that make sense while images are missing."""
        formats = [name for name in self._job.formats if name in PARTIAL]
        with unpacking(self._parts):
            write_outputs(merge_results(self._parts.read()), formats, self._target, complete=False)

    def write_all(self, parts: Iterable[Part], work: SharedWork, device: torch.device) -> PredictOutcome:
        """Writes all files from the parts of all images."""
        job, folder, target = self._job, self._parts.folder, self._target
        facts = {
            "checkpoint": str(self._detector.loaded.path or job.weights),
            "device": device.type if process_group.world_size() > 1 else str(device),
        }
        runtime = runtime_facts(self._detector.loaded.model)
        tally, unwritten = Tally(len(job.images)), ""
        summary: dict[str, Any] = {}
        names = result_names(job.written, len(job.images), job.shard_size)
        with unpacking(self._parts):
            try:
                write_outputs(tally.counting(merge_results(parts)), job.written, target)
                names += [FAILURES_NAME] if tally.failures else []
                names += self._pictures.write_montage(job.images)
                summary = summarize(tally, work, names, **facts, **runtime)
                write_summary(summary, target)
            except ResourceError as error:
                kept = "The results of all images are kept: the same command writes the file without predicting again."
                unwritten = f"{error} {kept}"
                for _ in tally.counting(merge_results(parts)):
                    pass
        return PredictOutcome(
            folder=folder,
            **facts,
            tally=tally,
            files=[] if unwritten else [folder / name for name in names],
            summary=summary or summarize(tally, work, [], **facts, **runtime),
            unwritten=unwritten,
            notes=[f"{name}: {sentence}" for name, found in target.notes.items() for sentence in found],
        )


def _numbers_here(images: Sequence[InputImage], done: Collection[int]) -> list[int]:
    """The images of this process; all processes call it together.

    One process looks at the files: while some are being copied, each would see other sizes and divide differently.
    """
    numbers: list[list[int]] | None = None
    if process_group.is_main():
        remaining = [number for number in range(len(images)) if number not in done]
        sizes = _file_sizes(images) if process_group.world_size() > 1 else [0.0] * len(images)
        numbers = divide(remaining, sizes, process_group.world_size())
    found: list[list[int]] = process_group.from_main(numbers)
    return found[process_group.rank()]


def _file_sizes(images: Sequence[InputImage]) -> list[float]:
    """A measure of how long each image takes."""
    sizes = [0.0] * len(images)
    for number, image in enumerate(images):
        with suppress(OSError):
            sizes[number] = float(image.size if image.member else 0 if image.url else image.path.stat().st_size)
    return sizes
