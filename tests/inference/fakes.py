"""Detectors for tests: a tiny checkpoint on disk, and a fake network that detects exactly what is annotated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from codetr_cli.annotations.objects import read_annotations
from codetr_cli.config.schema import Settings
from codetr_cli.data.coco import CocoDataset
from codetr_cli.data.loading.loader import EvalLoader
from codetr_cli.evaluation.evaluator import run_detector
from codetr_cli.evaluation.request import EvalRequest
from codetr_cli.evaluation.results import LocalCollector
from codetr_cli.inference.detector import Detector
from codetr_cli.models.build import build_model
from codetr_cli.models.postprocess import Detections
from codetr_cli.weights.checkpoint import save_checkpoint

CLASS_NAMES = ["disc", "bar", "ring"]
CATEGORY_IDS = [2, 3, 7]


def write_checkpoint(path: Path, settings: Settings) -> Path:
    """A checkpoint with random weights and the classes of the `tiny_coco` data set."""
    torch.manual_seed(0)
    model = build_model(settings.model)
    save_checkpoint(path, model.state_dict(), settings=settings, class_names=CLASS_NAMES, category_ids=CATEGORY_IDS)
    return path


def write_run(folder: Path, settings: Settings, *names: str) -> list[Path]:
    """A run folder with the named checkpoints."""
    return [write_checkpoint(folder / "checkpoints" / name / "model.safetensors", settings) for name in names]


def evaluated_records(detector: Detector, dataset: CocoDataset) -> list[dict[str, Any]]:
    """The detections of an evaluation on a split of the `tiny_coco` data set, image by image."""
    request = EvalRequest.resolve(
        detector.loaded.settings,
        read_annotations(dataset.annotations_path),
        dataset.annotations_path,
        class_names=CLASS_NAMES,
        category_ids=CATEGORY_IDS,
    )
    loader = EvalLoader(dataset, batch_size=1, workers=0)
    collector = LocalCollector()
    run_detector(detector.loaded.model, loader, request, collector, device=torch.device("cpu"))
    (results,) = collector.gather()
    return results.detections.to_records()


class Oracle(nn.Module):
    """Detects the annotated objects of each image, with scores that fall from object to object.

    Args:
        wrong: best detections of the first image of each batch that overlap no object.
    """

    def __init__(self, wrong: int = 0) -> None:
        super().__init__()
        self.wrong = wrong
        self.modes: list[bool] = []

    def detect(self, images, padding_mask, metas, postprocess):
        self.modes.append(self.training)
        return [self._one(meta, self.wrong if i == 0 else 0) for i, meta in enumerate(metas)]

    def _one(self, meta, wrong):
        boxes = meta["boxes"].double() / torch.tensor(meta["scale_factor"] * 2, dtype=torch.float64)
        boxes = torch.cat([torch.tensor([[0.0, 0.0, 2.0, 2.0]], dtype=torch.float64).repeat(wrong, 1), boxes])
        labels = torch.cat([torch.zeros(wrong, dtype=torch.int64), meta["labels"]])
        return Detections(boxes, torch.linspace(0.9, 0.5, len(boxes), dtype=torch.float64), labels)


class Blind(Oracle):
    """Detects nothing."""

    def detect(self, images, padding_mask, metas, postprocess):
        nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
        return [nothing for _ in metas]


class Masked(Oracle):
    """An oracle that also predicts masks.

    Args:
        share: of each box, from its left, that the mask covers.
        wrong: as for `Oracle`.
        wrong_mask_score: score of the masks of wrong boxes; the others have their box's score.
    """

    def __init__(self, share: float = 1.0, wrong: int = 0, wrong_mask_score: float = 0.99) -> None:
        super().__init__(wrong)
        self.share, self.wrong_mask_score = share, wrong_mask_score

    def _one(self, meta, wrong):
        detections = super()._one(meta, wrong)
        masks = torch.zeros(len(detections), 20, 20)
        masks[:, :, : round(20 * self.share)] = 1
        mask_scores = detections.scores.clone()
        mask_scores[:wrong] = self.wrong_mask_score
        return replace(detections, masks=masks, mask_scores=mask_scores)
