"""COCO annotations and images as a dataset, read as they lie and filtered as published.

A target is a dict with these keys; sizes are (height, width) in pixels, G is the number of objects:
    boxes (G, 4) float32     xyxy in pixels of the resized image
    labels (G,) int64        index into `CocoDataset.class_names`
    iscrowd (G,) int64, area (G,) float32     as annotated, area in the original image
    image_id int             id in the annotation file
    orig_size, size          of the decoded file; of the resized image, without padding
    norm_size                by which boxes are normalised; equals `size` here
    pad_size                 the image's own padded size; a batch may be larger
    scale_factor (w, h)      exact new / old side of the last resize
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from torch.utils.data import Dataset

from codetr_cli.config import DataConfig, Settings
from codetr_cli.data.annotations import Annotations as Annotations
from codetr_cli.data.annotations import read_annotations as read_annotations
from codetr_cli.data.batch import Target
from codetr_cli.data.images import read_image
from codetr_cli.data.transforms import AnyTransform, Sample, build_transforms
from codetr_cli.errors import DatasetError

Split = Literal["train", "val"]
DEFAULT_ROOT = Path("data/coco")


class CocoDataset(Dataset[tuple[np.ndarray, Target]]):
    """Images of one annotation file with their objects.

    An item is addressed by its index or by (epoch, index). Its random choices depend on seed, epoch and index only, so
    the order of reading and the number of processes change nothing.

    Args:
        images_dir: folder that the file names of the annotations are relative to.
        annotations_path: COCO JSON file.
        transform: applied to every sample.
        training: leave out crowd regions and images with a side under `min_side`.
        seed: of the random choices.
        min_side: smallest side of a training image, in pixels, judged by the annotation file.
        max_pixels: files with more are refused from their header.
        pad_divisor: images count as padded to multiples of this.
        max_images: keep only the first images.

    Attributes:
        class_names: names in the order of the labels.
        category_ids: original id of each label, ascending.
        image_ids: id of each image, in the order of the file.
        aspect_flags: int64, 1 for images wider than high, else 0, judged by the annotation file.

    Raises:
        DatasetError: unusable annotations, or no object at all to train on.
    """

    def __init__(
        self,
        *,
        images_dir: Path,
        annotations_path: Path,
        transform: AnyTransform,
        training: bool,
        seed: int = 0,
        min_side: int = 32,
        max_pixels: int = 100_000_000,
        pad_divisor: int = 1,
        max_images: int | None = None,
    ) -> None:
        self.images_dir = images_dir
        self.annotations_path = annotations_path
        self.transform = transform
        self.seed = seed
        self.max_pixels = max_pixels
        self.pad_divisor = pad_divisor
        annotations = read_annotations(annotations_path)
        self.class_names = annotations.class_names
        self.category_ids = annotations.category_ids

        rows = np.arange(len(annotations.image_ids))
        if training:
            rows = rows[annotations.sizes.min(axis=1, initial=min_side) >= min_side]
        rows = rows[:max_images]
        self.image_ids = annotations.image_ids[rows].tolist()
        self.file_names = [annotations.file_names[row] for row in rows]
        heights, widths = annotations.sizes[rows].T
        self.aspect_flags = (widths / heights > 1).astype(np.int64)
        self._objects = annotations.usable_objects(rows, with_crowd=not training)
        if training and not len(self._objects.labels):
            raise DatasetError(
                f"{annotations_path} has no object to train on ({len(annotations.labels)} annotations, "
                f"{len(rows)} usable images): check it with `codetr prepare {annotations_path.parent.parent}`"
            )

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[np.ndarray, Target]:
        """Reads and transforms one image.

        Args:
            key: index, or (epoch, index).

        Returns:
            The image (h, w, 3) uint8 RGB and its target.

        Raises:
            DatasetError: the file is missing or cannot be decoded.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        sample = self.load_sample(index)
        orig_size = sample.size
        sample = self.transform(sample, np.random.default_rng([self.seed, epoch, index]))
        target = sample.to_target(image_id=self.image_ids[index], orig_size=orig_size, pad_divisor=self.pad_divisor)
        return np.ascontiguousarray(sample.image), target

    def load_sample(self, index: int) -> Sample:
        """The decoded image and its objects, before any transform."""
        image = read_image(self.image_path(index), max_pixels=self.max_pixels)
        objects = self._objects
        rows = slice(objects.offsets[index], objects.offsets[index + 1])
        return Sample(
            image=image,
            boxes=objects.boxes[rows],
            labels=objects.labels[rows],
            iscrowd=objects.iscrowd[rows],
            area=objects.area[rows],
        )

    def image_path(self, index: int) -> Path:
        """Where the image lies."""
        return self.images_dir / self.file_names[index]


def build_dataset(settings: Settings, *, split: Split, training: bool, data: str | None = None) -> CocoDataset:
    """The dataset that the settings describe.

    Args:
        settings: of the run; `data.max_images` limits the training split only.
        split: which images.
        training: augment and filter for training; otherwise every image is resized as for testing.
        data: folder given on the command line.

    Raises:
        DatasetError: nothing where the data should be, or unusable annotations.
    """
    paths = find_data(settings.data, data, split)
    return CocoDataset(
        images_dir=paths.images_dir,
        annotations_path=paths.annotations_path,
        transform=build_transforms(settings.data, settings.test, train=training),
        training=training,
        seed=settings.train.seed,
        min_side=settings.data.min_side,
        max_pixels=settings.data.max_pixels,
        pad_divisor=settings.data.pad_divisor,
        max_images=settings.data.max_images if split == "train" else None,
    )


# ----------------------------------------------------------------------------------------------------- where data lies


@dataclass(frozen=True)
class DataPaths:
    """Folder of the images and file of the annotations of one split."""

    images_dir: Path
    annotations_path: Path


def find_data(config: DataConfig, data: str | None, split: Split) -> DataPaths:
    """Finds one split of a COCO-layout folder.

    The folder is `data`, else `config.root`, else the environment's CODETR_DATA, else data/coco; paths of `config` for
    the split's images or annotations override what lies in it.

    Raises:
        DatasetError: the folder of images or the annotation file is not there.
    """
    root = Path(data or config.root or os.environ.get("CODETR_DATA") or DEFAULT_ROOT)
    images, annotations = (
        (config.train_images, config.train_annotations)
        if split == "train"
        else (config.val_images, config.val_annotations)
    )
    paths = DataPaths(
        images_dir=Path(images or root / f"{split}2017"),
        annotations_path=Path(annotations or root / "annotations" / f"instances_{split}2017.json"),
    )
    missing = [f"the folder {paths.images_dir}"] if not paths.images_dir.is_dir() else []
    missing += [f"the file {paths.annotations_path}"] if not paths.annotations_path.is_file() else []
    if missing:
        raise DatasetError(
            f"no {split} data: {' and '.join(missing)} not found. Name a COCO-layout folder with --data or CODETR_DATA,"
            " or link it as data/coco once and for all with `codetr prepare FOLDER`"
        )
    return paths
