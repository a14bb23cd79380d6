"""AP of a network, whether it is a checkpoint or an exported file, on a part of a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from codetr_cli.annotations.objects import Annotations, read_annotations
from codetr_cli.data.coco import CocoDataset
from codetr_cli.data.loading.loader import EvalLoader
from codetr_cli.data.transforms import build_transforms
from codetr_cli.evaluation.data_choice import choose_data, data_config
from codetr_cli.evaluation.evaluator import EvalResult, evaluate
from codetr_cli.evaluation.request import EvalRequest
from codetr_cli.formats.resolve import DataPaths, Split
from codetr_cli.inference.exported.network import ExportedNetwork
from codetr_cli.inference.loading import LoadedModel


@dataclass(frozen=True, eq=False)
class VerifyData:
    """Images with annotations.

    Attributes:
        paths: of both.
        split: their name.
        ground_truth: the annotations.
        max_images: only the first ones are evaluated; None: all.
    """

    paths: DataPaths
    split: str
    ground_truth: Annotations
    max_images: int | None = None


def find_images(folder: str | Path, split: Split, *, max_images: int | None = None) -> VerifyData:
    """A part of a data set of any layout.

    Raises:
        DatasetError: images or annotations are not found.
    """
    config, chosen = data_config([])
    config = config.model_copy(update={"root": str(folder)})
    paths, name = choose_data(config, chosen, split, None)
    return VerifyData(paths, name, read_annotations(paths.annotations_path, with_outlines=False), max_images)


def average_precision(
    loaded: LoadedModel,
    data: VerifyData,
    device: torch.device,
    *,
    progress: Callable[[int], object] | None = None,
) -> EvalResult:
    """Detects in all images as `codetr eval` does, and scores the boxes.

    Args:
        loaded: the network.
        data: images and annotations.
        device: of the network.
        progress: is called with the number of images after each batch.

    Raises:
        CheckpointError: the network has other classes than the data.
        DatasetError: too many of the images cannot be read.
    """
    settings = loaded.settings
    batch = settings.test.batch_size
    if isinstance(loaded.model, ExportedNetwork):
        batch = loaded.model.engine.metadata.input.batch or batch
    request = EvalRequest.resolve(
        settings,
        data.ground_truth,
        data.paths.annotations_path,
        class_names=loaded.class_names,
        category_ids=loaded.category_ids,
        masks=False,
        batch=batch,
        split=data.split,
    )
    dataset = CocoDataset(
        images_dir=data.paths.images_dir,
        annotations_path=data.paths.annotations_path,
        transform=build_transforms(settings.data, settings.test, train=False),
        training=False,
        max_pixels=settings.data.max_pixels,
        pad_divisor=settings.data.pad_divisor,
        max_images=data.max_images,
        skip_bad=settings.data.bad_files == "skip",
        annotations=data.ground_truth,
        names=data.paths.names,
    )
    loader = EvalLoader(dataset, batch_size=batch, workers=0)
    return evaluate(loaded.model, loader, request, device=device, progress=progress)
