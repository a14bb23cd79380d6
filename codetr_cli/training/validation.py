"""Evaluation of the model during a training: every process runs on its part of the validation images."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial

import torch

from codetr_cli.annotations.objects import read_annotations
from codetr_cli.config.schema import Settings
from codetr_cli.data.coco import build_dataset
from codetr_cli.data.loading.loader import EvalLoader
from codetr_cli.distributed import process_group
from codetr_cli.distributed.fsdp import local_copy
from codetr_cli.errors import StoppedError
from codetr_cli.evaluation.evaluator import EvalResult, evaluate
from codetr_cli.evaluation.request import EvalRequest, expects_masks
from codetr_cli.evaluation.results import LocalCollector, RankResults
from codetr_cli.formats.resolve import find_data
from codetr_cli.models.codetr import CoDETR
from codetr_cli.models.inference_mode import optimize_for_inference
from codetr_cli.training.bad_images import BadFiles
from codetr_cli.training.best_report import BestReport
from codetr_cli.training.initial_weights import build_trainable_model
from codetr_cli.training.plan import TrainJob
from codetr_cli.training.plots import draw_pr_curves
from codetr_cli.training.state import RunIO
from codetr_cli.training.val_pictures import ValPictures

logger = logging.getLogger(__name__)


class Validation:
    """Evaluates the model on the validation images of a training; all processes make one and call it together.

    A signal to stop ends an evaluation at once.

    Attributes:
        best_report: the report of the best checkpoint; None without `train.report`.

    Raises:
        DatasetError: the annotations cannot be scored against.
    """

    def __init__(
        self,
        job: TrainJob,
        *,
        settings: Settings,
        model: CoDETR,
        bad_files: BadFiles,
        io: RunIO,
        device: torch.device,
    ) -> None:
        self._model, self._build = model, partial(build_trainable_model, settings)
        self._bad_files, self._io, self._device = bad_files, io, device
        self._is_protocol_logged = False
        paths = find_data(settings.data, None, "val")
        annotations_path = paths.annotations_path
        ground_truth = read_annotations(annotations_path, with_outlines=expects_masks(settings))
        self._request = EvalRequest.resolve(  # now, not after the first epoch
            settings,
            ground_truth,
            annotations_path,
            class_names=job.class_names,
            category_ids=job.category_ids,
        )
        dataset = build_dataset(settings, split="val", training=False, annotations=ground_truth)
        self._pictures = ValPictures(dataset, ground_truth, io.folder, settings.train.val_pictures)
        self.best_report = BestReport(self._request, paths) if settings.train.report else None
        self._loader = EvalLoader(
            dataset,
            batch_size=settings.test.batch_size,
            workers=settings.data.workers,
            rank=process_group.rank(),
            world_size=process_group.world_size(),
            pin_memory=device.type == "cuda",
            timeout_s=reading_timeout_s(settings),
        )

    def __call__(self, step: int) -> dict[str, float]:
        """Metrics of the model after a step; empty except on rank 0.

        Raises:
            StoppedError: a signal came; the checkpoint of the step is saved.
        """
        self._io.reporter.evaluating(0, self._loader.num_images)
        result = evaluate(
            optimize_for_inference(local_copy(self._model, self._build)),
            self._loader,
            self._request,
            device=self._device,
            progress=lambda images: self._on_batch(images, step),
            collector=_GroupCollector(lambda: self._io.heartbeat("scoring")),
        )
        for bad in result.skipped:
            self._bad_files.on_unreadable(bad, "val")
        if result.protocol is not None:
            # The same at every evaluation of a run.
            level = logging.DEBUG if self._is_protocol_logged else logging.INFO
            logger.log(level, "evaluation protocol: %s", result.protocol)
            self._is_protocol_logged = True
            if self.best_report is not None:
                self.best_report.add(result)
        if process_group.is_main():
            self._draw(step, result)
        return result.metrics

    def _draw(self, step: int, result: EvalResult) -> None:
        """Draws the precision by recall and some images; an error is logged and does not stop the training."""
        started = time.perf_counter()
        try:
            if result.pr_curves is not None:
                names = [score.name for score in result.per_class]
                objects = [score.objects for score in result.per_class]
                draw_pr_curves(result.pr_curves, names, objects, step, self._io.folder.plots_dir)
            self._pictures.draw(step, result.detections)
        except Exception as error:
            logger.debug("validation images could not be drawn: %s: %s", type(error).__name__, error)
        logger.debug("validation images of step %d: drawn in %.2f s", step, time.perf_counter() - started)

    def _on_batch(self, images: int, step: int) -> None:
        """Reports the progress; ends the evaluation when a signal has asked to stop."""
        io = self._io
        io.reporter.evaluating(images, self._loader.num_images)
        io.heartbeat("evaluation")
        if io.stop.number is not None:
            logger.debug("stopped during the evaluation of step %d", step)
            raise StoppedError(
                f"stopped during the evaluation after step {step}, which is saved in {io.folder.path}: "
                "start the same command again to continue.",
                io.stop.number,
            )


class _GroupCollector(LocalCollector):
    """Gathers the results of all processes through their group; an evaluation that stops is repeated.

    Args:
        on_gather: called before the process waits for the others.
    """

    def __init__(self, on_gather: Callable[[], object]) -> None:
        super().__init__()
        self._on_gather = on_gather

    def gather(self) -> list[RankResults]:
        """As `Collector.gather`."""
        self._on_gather()
        (results,) = super().gather()
        return process_group.gather_objects(results)


def reading_timeout_s(settings: Settings) -> float:
    """Seconds to wait for a worker process; shorter than the watchdog's timeout, so that the error names the cause."""
    return 0.8 * 60 * settings.train.timeout_minutes
