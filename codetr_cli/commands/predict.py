"""`codetr predict`: detects objects in images; writes drawn images and COCO JSON, prints a table."""

from __future__ import annotations

import json
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codetr_cli import console
from codetr_cli.commands import _options as opt
from codetr_cli.commands._defaults import Invocation
from codetr_cli.commands._launch import requested, run_placed, worker_output
from codetr_cli.commands._submit import submit_command
from codetr_cli.commands._weights import resolve_weights
from codetr_cli.errors import ConfigError, DatasetError, ResourceError, listed
from codetr_cli.files import check_folder

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import torch

    from codetr_cli.distributed.part_files import Part, PartFiles
    from codetr_cli.files import ResultRecord
    from codetr_cli.images.image_files import Skipped
    from codetr_cli.inference.inputs import InputImage
    from codetr_cli.inference.prediction import ImageResult

EXAMPLES = (
    "codetr predict photo.jpg",
    "codetr predict images/ --checkpoint co_dino_r50.safetensors --score 0.5",
    "codetr predict images/ --checkpoint runs/co_dino_r50/1 --gpus 8",
)
PREDICTIONS_NAME = "predictions.json"
MAX_ROWS = 40


def predict(
    context: typer.Context,
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
    gpus: opt.GpusOption = None,
    device: opt.DeviceOption = "auto",
    procs: opt.ProcsOption = None,
    precision: opt.InferencePrecisionOption = "auto",
    nodes: opt.NodesOption = None,
    rdzv_endpoint: opt.EndpointOption = None,
    node_rank: opt.NodeRankOption = None,
    max_restarts: opt.MaxRestartsOption = None,
    slurm: opt.SlurmOption = False,
    overrides: opt.SetOption = None,
) -> None:
    """Detect objects in images and draw them.

    Without --checkpoint the newest run in runs/ is used: its best checkpoint, or else its last. Several processes give
    the same files as one. The same command continues an interrupted prediction.
    """
    console.set_mode(json=json_output, quiet=quiet)
    check_folder(out, "--out")

    from codetr_cli.images.image_files import Skipped
    from codetr_cli.inference.inputs import find_images

    skipped = Skipped()
    images = find_images(sources, skipped=skipped)
    for sentence in skipped.sentences():
        console.warn(f"{sentence}.")
    weights = resolve_weights(checkpoint) or str(_newest())
    job = PredictJob(
        images=images,
        weights=weights,
        overrides=[*([f"test.head={head}"] if head else []), *(overrides or [])],
        score=score,
        max_dets=max_dets,
        nms=nms,
        tta=tta,
        draw=not no_draw,
        precision=precision,
        out=out,
        force=force,
    )
    if slurm:
        invocation: Invocation = context.obj
        request = requested(context)
        device_type = "cuda" if request.device == "auto" else request.device.partition(":")[0]  # of the job
        submit_command(invocation.words, job.choose_folder(job.digest(device_type)), request, name="predict")
        return
    outcome = _run(job, context)
    if outcome is None:
        return
    _show(outcome)
    if outcome.unwritten:
        error = ResourceError(outcome.unwritten)
        console.result_json({**_summary(outcome, skipped), "error": str(error), "exit_code": error.exit_code})
        raise error
    if json_output:
        console.result_json(_summary(outcome, skipped))
    if outcome.failed:
        console.error(
            f"{len(outcome.failed)} of {len(images)} images cannot be read: {listed(list(outcome.failed), 5)}. Replace "
            f"or remove them; the results of the others are in {outcome.folder}"
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


@dataclass(frozen=True, kw_only=True)
class PredictJob:
    """What the options ask for."""

    images: list[InputImage]
    weights: str
    overrides: list[str]
    score: float
    max_dets: int | None
    nms: opt.Nms | None
    tta: bool
    draw: bool
    precision: str
    out: Path
    force: bool

    def digest(self, device_type: str) -> str:
        """A name of everything that the results depend on, except the images' content."""
        from codetr_cli.distributed.part_files import request_digest
        from codetr_cli.inference.loading import find_checkpoint

        options = ("score", "max_dets", "nms", "tta", "draw", "precision")
        return request_digest(
            weights=find_checkpoint(self.weights) or self.weights,
            images=[(str(image.path.absolute()), image.name, image.image_id) for image in self.images],
            device=device_type,
            overrides=[text for text in self.overrides if not text.startswith("data.workers=")],
            **{name: getattr(self, name) for name in options},
        )

    def drawn_names(self, folder: Path, digest: str) -> list[Path]:
        """Names of the drawn images in an output folder, by the number of the image; empty if none are drawn."""
        from codetr_cli.distributed import part_files, slurm
        from codetr_cli.inference.prediction import drawn_names

        reserved = (PREDICTIONS_NAME, part_files.FOLDER, slurm.FOLDER)
        return drawn_names(self.images, reserved, folder, request=digest, force=self.force) if self.draw else []

    def choose_folder(self, digest: str) -> Path:
        """The output folder: that of the same command before, or a free one.

        Raises:
            ConfigError: links in it lead elsewhere.
        """
        from codetr_cli.distributed.part_files import output_folder
        from codetr_cli.inference.prediction import misplaced

        def problem(folder: Path) -> str | None:
            return misplaced(folder, self.drawn_names(folder, digest))

        folder = output_folder(
            self.out,
            PREDICTIONS_NAME,
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
        from codetr_cli.distributed.part_files import PartFiles
        from codetr_cli.inference.prediction import check_packed

        return PartFiles(
            folder, lambda number: [self.images[number].path], lambda part: check_packed(part.content, part.units)
        )


@dataclass(frozen=True)
class PredictOutcome:
    """Results of all images.

    Attributes:
        folder: of the files.
        checkpoint: the file of the weights.
        device: where the network ran.
        images: what `--json` says of each image.
        failed: images that cannot be read: path -> reason.
        detections: their number.
        unwritten: why they could not be written, a sentence; empty if they are.
    """

    folder: Path
    checkpoint: str
    device: str
    images: list[dict[str, Any]]
    failed: dict[str, str]
    detections: int
    unwritten: str


def _run(job: PredictJob, context: typer.Context) -> PredictOutcome | None:
    """Predicts in as many processes as requested; None where another process has the outcome."""
    from codetr_cli.distributed.topology import place
    from codetr_cli.distributed.worker_errors import PREDICTION

    placement = place(requested(context), PREDICTION)
    if not placement.agreed:
        # A folder that cannot be used is an error before processes start.
        job.choose_folder(job.digest(placement.device.type))
    mode = (context.params["json_output"], context.params["quiet"])
    outcome: PredictOutcome | None = run_placed(_predict_here, (job, placement.device, *mode), placement)
    return outcome


def _predict_here(job: PredictJob, device: torch.device, json_output: bool, quiet: bool) -> PredictOutcome | None:
    """Predicts in this process, alone or as one of several, and shows the progress of all."""
    from codetr_cli.distributed import process_group
    from codetr_cli.distributed.shared_work import SharedWork, agree_on_weights, stop_request
    from codetr_cli.distributed.worker_errors import PREDICTION
    from codetr_cli.inference.detector import Detector
    from codetr_cli.inference.loading import load_detector
    from codetr_cli.inference.prediction import Predictor, pack_results
    from codetr_cli.runtime.devices import choose_device, use_device

    device = process_group.local_device(device)
    with (
        worker_output(json=json_output, quiet=quiet),
        process_group.joined(device, work=PREDICTION) as store,
        ExitStack() as stack,
    ):
        shown = stack.enter_context(ExitStack())
        stop = stack.enter_context(stop_request(shown.close))
        digest = job.digest(device.type)
        device = use_device(choose_device(str(device)))
        loaded = load_detector(job.weights, device, job.overrides)
        detector = Detector(loaded, device=device, precision=job.precision, tta=job.tta)
        agree_on_weights(digest, job.digest(device.type))
        parts = job.parts(job.out)
        work = SharedWork(parts, [1] * len(job.images), pack_results, work=PREDICTION, stop=stop, store=store)
        stack.callback(work.close, complete=False)
        drawings = _Drawings(job, parts, digest)
        done = work.start(digest, lambda: job.choose_folder(digest), drawings.is_complete)
        drawn = process_group.from_main(drawings.names if process_group.is_main() else None)
        # The list of what was found is always there, complete or not, whatever ends this process.
        work.snapshot = lambda: _write(parts, _unpack(parts, parts.read()), request=digest, force=job.force)
        if process_group.is_main():
            show = console.progress("predicting", len(job.images), done=work.images_before)
            work.progress = shown.enter_context(show)
        predictor = Predictor(
            detector=detector,
            folder=parts.folder,
            score=job.score,
            max_dets=job.max_dets,
            nms=job.nms,
            drawn_names=drawn if job.draw else None,
            scratch=parts.path,
            request=digest,
            force=job.force,
        )
        for number in _numbers_here(job.images, done):
            result = predictor.predict(number, job.images[number])
            if result.error is not None:
                console.warn(result.error)
            work.add(number, result, failed=result.error is not None)
        found = work.finish()
        shown.close()
        if not process_group.is_main():
            return None
        results, unwritten = _unpack(parts, found), ""
        try:
            _write(parts, results, request=digest, force=job.force)
        except ResourceError as error:
            kept = "The results of all images are kept: the same command writes the file without predicting again."
            unwritten = f"{error} {kept}"
        work.close(complete=True, keep=bool(unwritten))
        return PredictOutcome(
            folder=parts.folder,
            checkpoint=str(detector.loaded.path or job.weights),
            device=device.type if process_group.world_size() > 1 else str(device),
            images=[result.image for result in results if result.image is not None],
            failed={result.file: result.error for result in results if result.error is not None},
            detections=sum(len(result.records) for result in results),
            unwritten=unwritten,
        )


def _numbers_here(images: Sequence[InputImage], done: Collection[int]) -> list[int]:
    """The images of this process; all processes call it together.

    One process looks at the files: while some are being copied, each would see other sizes and divide differently.
    """
    from codetr_cli.data.loading.loader import divide
    from codetr_cli.distributed import process_group

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
            sizes[number] = float(image.path.stat().st_size)
    return sizes


class _Drawings:
    """The drawings of a job in the output folder of its parts, once that is chosen; for the process of rank 0."""

    def __init__(self, job: PredictJob, parts: PartFiles, digest: str) -> None:
        self._job, self._parts, self._digest = job, parts, digest

    @cached_property
    def names(self) -> list[Path]:
        return self._job.drawn_names(self._parts.folder, self._digest)

    @cached_property
    def record(self) -> ResultRecord:
        from codetr_cli.files import ResultRecord

        return ResultRecord(self._parts.folder)

    def is_complete(self, number: int) -> bool:
        """Whether an image that is in a part has its drawing, too, and it has survived a power failure."""
        from codetr_cli.inference.prediction import drawing_request

        if not self.names:
            return True
        path, request = self._parts.folder / self.names[number], drawing_request(self._digest, number)
        return self.record.is_own(path, request=request, quick=True) and path.stat().st_size > 0


def _unpack(files: PartFiles, parts: list[Part]) -> list[ImageResult]:
    """The results in parts, which are removed from the list: the results take as much memory again."""
    from codetr_cli.distributed.part_files import unpacking
    from codetr_cli.inference.prediction import unpack_results

    parts.reverse()
    with unpacking(files):
        return unpack_results(parts.pop().content for _ in range(len(parts)))


def _write(files: PartFiles, results: Sequence[ImageResult], *, request: str, force: bool) -> None:
    """Writes predictions.json into the output folder of the parts.

    Raises:
        ConfigError: a file that codetr did not make has come into its place.
        ResourceError: no space left, or the folder cannot be written.
    """
    from codetr_cli.files import write_result

    path = files.folder / PREDICTIONS_NAME
    texts = (json.dumps(result.records, ensure_ascii=False)[1:-1] for result in results if result.records)
    with (
        write_result(path, by="predict", force=force, request=request, scratch=files.path) as temporary,
        # Bytes of file names that are not UTF-8 are written as JSON's \udc80 to \udcff, and read back as they were.
        temporary.open("w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        file.write("[")
        file.writelines(text if number == 0 else f", {text}" for number, text in enumerate(texts))
        file.write("]")


def _summary(outcome: PredictOutcome, skipped: Skipped) -> dict[str, Any]:
    """What `--json` prints."""
    path = None if outcome.unwritten else outcome.folder / PREDICTIONS_NAME
    return {
        "checkpoint": outcome.checkpoint,
        "out": str(outcome.folder),
        "predictions": path and str(path),
        "images": outcome.images,
        "detections": path and json.loads(path.read_text(encoding="utf-8")),
        "failed": [{"file": name, "error": error} for name, error in outcome.failed.items()],
        "skipped": asdict(skipped),
    }


def _show(outcome: PredictOutcome) -> None:
    images = outcome.images
    rows: list[Sequence[object]] = []
    for image in images[:MAX_ROWS]:
        objects = ", ".join(f"{name} {count}" for name, count in image["objects"].items()) or "nothing"
        rows.append([image["file_name"], objects, round(image["seconds"] * 1000, 1)])
    if rows:
        console.table(f"Detections (on {outcome.device})", ["image", "objects", "time [ms]"], rows)
    if len(images) > MAX_ROWS:
        console.result(f"... and {len(images) - MAX_ROWS} more images.")
    where = "" if outcome.unwritten else f": {outcome.folder / PREDICTIONS_NAME}"
    console.result(f"{outcome.detections} detections in {len(images)} images{where}")
