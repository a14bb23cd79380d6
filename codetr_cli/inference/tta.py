"""Test-time augmentation: detections of an image at several sizes and mirrored, merged by soft-NMS.

No recipe was published with the published numbers (the published code's `aug_test` raises an error). Every view gives
its detections before any NMS; the union of all views then goes through the soft-NMS of a single view, class by class.
Scores are not averaged: of a detection in several views the best score is kept, the others decay.
Shape letters: B images of a batch, N detections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np
import torch

from codetr_cli.config.data_settings import DataConfig
from codetr_cli.config.schema import Settings, TestConfig
from codetr_cli.data.batch import Batch, collate
from codetr_cli.data.sample import Sample
from codetr_cli.data.targets import Target
from codetr_cli.data.transforms import AnyTransform, Flip, FlipParams, build_transforms
from codetr_cli.inference.cuda_graph import Network
from codetr_cli.inference.exported.network import LARGEST_FACTOR
from codetr_cli.inference.pipeline import detect
from codetr_cli.models.postprocess import Detections, PostProcess
from codetr_cli.ops.nms import batched_soft_nms


@dataclass(frozen=True)
class View:
    """One view of an image: its size in words, its transform, and whether it is mirrored."""

    size: str
    transform: AnyTransform
    flip: bool


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Detects as `inference.pipeline.detect` does, in several views of each image.

    Args:
        views: at least one; a single view that is not mirrored gives the same as without augmentation.
        candidates: number of best detections of a view that are merged; None: `max_detections`.
        pad_divisor: each view counts as padded to a multiple of this.
    """

    views: Sequence[View]
    candidates: int | None
    pad_divisor: int = 1

    def detect(
        self,
        network: Network,
        postprocess: PostProcess,
        batch: Batch,
        *,
        device: torch.device,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> list[Detections]:
        """Detections of every image of a batch in the pixels of its original image, in host memory.

        Args:
            network: on `device`, in the `inference` context.
            postprocess: as built from the settings.
            batch: in host memory; its images as decoded (`data.transforms.Keep`).
            device: where the network runs on the views, one after the other.
            mean: of each RGB channel, 0..255.
            std: standard deviation of each RGB channel, 0..255.
        """
        single = len(self.views) == 1 and not self.views[0].flip
        of_view = postprocess if single else without_nms(postprocess, self.candidates)
        by_image: list[list[Detections]] = [[] for _ in batch.targets]
        for view in self.views:
            samples = [self._view_image(view, *pair) for pair in zip(batch.images, batch.targets, strict=True)]
            detections = detect(network, of_view, collate(samples).to(device), mean=mean, std=std)
            for views, item, target in zip(by_image, detections, batch.targets, strict=True):
                item = item.cpu()
                views.append(flip_detections(item, target["orig_size"][1]) if view.flip else item)
        return [views[0] if single else merge(views, postprocess) for views in by_image]

    def _view_image(self, view: View, image: torch.Tensor, target: Target) -> tuple[np.ndarray, Target]:
        height, width = target["size"]
        sample = Sample(
            image=np.ascontiguousarray(image[:, :height, :width].permute(1, 2, 0).numpy()),
            boxes=target["boxes"].numpy(),
            labels=target["labels"].numpy(),
            iscrowd=target["iscrowd"].numpy(),
            area=target["area"].numpy(),
        )
        # Mirrored before it is resized and padded, so that the padding of a canvas stays at the right.
        sample = Flip(probability=1).apply(sample, FlipParams(flip=view.flip))
        sample = view.transform(sample, np.random.default_rng(0))
        view_target = sample.to_target(
            image_id=target["image_id"], orig_size=target["orig_size"], pad_divisor=self.pad_divisor
        )
        return np.ascontiguousarray(sample.image), view_target


class ViewDetector(Protocol):
    """What detects images in several views of each: `Augmentation`, `tiling.Tiling`."""

    def detect(
        self,
        network: Network,
        postprocess: PostProcess,
        batch: Batch,
        *,
        device: torch.device,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> list[Detections]:
        """As `Augmentation.detect`."""


def without_nms(postprocess: PostProcess, candidates: int | None) -> PostProcess:
    """The post-processing of one of several views; the auxiliary heads keep their own NMS.

    Args:
        postprocess: as built from the settings.
        candidates: number of best detections of a view that are merged; None: `max_detections`.
    """
    count = candidates if postprocess.candidates == "num_queries" and postprocess.nms != "none" else None
    return replace(postprocess, nms="none", max_detections=max(count or 0, postprocess.max_detections))


def detect_images(
    network: Network,
    postprocess: PostProcess,
    batch: Batch,
    augmentation: ViewDetector | None,
    *,
    device: torch.device,
    config: DataConfig,
) -> list[Detections]:
    """Detections of every image of a batch, in its views or as it is; arguments as for `Augmentation.detect`."""
    if augmentation is None:
        return detect(network, postprocess, batch.to(device), mean=config.mean, std=config.std)
    return augmentation.detect(network, postprocess, batch, device=device, mean=config.mean, std=config.std)


def build_augmentation(settings: Settings) -> Augmentation:
    """The views of `test.tta_scales` and `test.tta_flip`, smallest first.

    A network that takes squares of one size only (fixed rotary positions) gets no other sizes, only mirroring.
    """
    test = settings.test
    sizes = [_at_scale(test, scale, settings.data.pad_divisor) for scale in test.tta_scales]
    sizes.sort(key=lambda size: size.canvas or size.short_side)
    if getattr(settings.model.backbone, "fixed_size", None) is not None:
        sizes = [test]
    unique = {size_text(size): build_transforms(settings.data, size, train=False) for size in sizes}
    flips = (False, True) if test.tta_flip else (False,)
    return Augmentation(
        views=[View(text, transform, flip) for text, transform in unique.items() for flip in flips],
        # A mask for every query of every view would take gigabytes.
        candidates=None if settings.learns_masks else settings.model.num_queries,
        pad_divisor=settings.data.pad_divisor,
    )


def _at_scale(test: TestConfig, scale: float, divisor: int) -> TestConfig:
    """The test settings for images of another size."""
    base = test.short_side if test.canvas is None else test.canvas
    factor = scale if scale <= LARGEST_FACTOR else scale / base
    canvas = None if test.canvas is None else max(1, round(test.canvas * factor / divisor)) * divisor
    fixed = test.fixed_size and tuple(max(1, round(side * factor / divisor)) * divisor for side in test.fixed_size)
    sides = {name: max(1, round(getattr(test, name) * factor)) for name in ("short_side", "long_side")}
    return test.model_copy(update={**sides, "canvas": canvas, "fixed_size": fixed})


def size_text(test: TestConfig) -> str:
    """The size of test images in words."""
    if test.canvas is not None:
        return f"{test.canvas}x{test.canvas} padded"
    frame = f" in {test.fixed_size[0]}x{test.fixed_size[1]} padded" if test.fixed_size else ""
    return f"{test.short_side}x{test.long_side}{frame}"


def flip_detections(detections: Detections, width: float) -> Detections:
    """Mirrors detections in an image of this width in pixels."""
    x1, y1, x2, y2 = detections.boxes.unbind(-1)
    masks = None if detections.masks is None else detections.masks.flip(-1)
    return replace(detections, boxes=torch.stack([width - x2, y1, width - x1, y2], dim=-1), masks=masks)


def merge(views: Sequence[Detections], postprocess: PostProcess) -> Detections:
    """Merges the detections of several views of one image by soft-NMS of their union within each class.

    A box keeps its mask; the mask's own score decays by the same factor as the box's.

    Args:
        views: detections of each view, in pixels of the original image, in host memory.
        postprocess: with the NMS threshold, the minimum score and the number of detections.
    """
    union = join(views)
    keep, scores = batched_soft_nms(
        union.boxes,
        union.scores,
        union.labels,
        iou_threshold=postprocess.nms_iou,
        min_score=postprocess.nms_min_score,
        max_detections=postprocess.max_detections,
    )
    kept = union[keep]
    mask_scores = kept.mask_scores
    if mask_scores is not None:
        mask_scores = mask_scores * (scores / kept.scores.clamp(min=torch.finfo(scores.dtype).tiny))
    return replace(kept, scores=scores, mask_scores=mask_scores)


def join(views: Sequence[Detections]) -> Detections:
    """Concatenates detections. Masks are kept if all views with detections have them."""
    filled = [item for item in views if len(item)] or list(views[:1])
    columns: dict[str, Any] = {}
    for column in fields(Detections):
        values = [getattr(item, column.name) for item in filled]
        columns[column.name] = None if any(value is None for value in values) else torch.cat(values)
    return Detections(**columns)
