"""A dataset of images and annotations in COCO's format (COCO, LVIS, Objects365), filtered as published.

`codetr_cli.data.targets` describes the targets.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from codetr_cli.annotations.cache import source_of
from codetr_cli.annotations.file_names import NameRule
from codetr_cli.annotations.image_folder import ImageFolder
from codetr_cli.annotations.objects import Annotations, check_kind, read_annotations
from codetr_cli.annotations.outlines import Outlines
from codetr_cli.config.data_settings import DataConfig, DatasetName
from codetr_cli.config.schema import Settings
from codetr_cli.data.bad_files import BAD_FILES_KEY, BLANK, BadFile
from codetr_cli.data.copy_paste import CopyPaste
from codetr_cli.data.oversampling import repeated_images
from codetr_cli.data.sample import Sample
from codetr_cli.data.targets import Target
from codetr_cli.data.transforms import AnyTransform, DroppedSampleError, build_transforms
from codetr_cli.errors import DatasetError
from codetr_cli.formats.resolve import Split, find_data
from codetr_cli.images.decoder import BrokenImageError, decode_image, missing_file, read_file
from codetr_cli.images.headers import header_of
from codetr_cli.images.image_header import Size

logger = logging.getLogger(__name__)

MAX_REPLACEMENTS = 100
"""Images that are tried instead of one that lost all its objects."""


class CocoDataset(Dataset[tuple[np.ndarray, Target]]):
    """Images of one annotation file with their objects.

    The key of an item is its index or (epoch, index). Its random numbers, including those of a second image that is
    pasted, depend on seed, epoch and index only, so the order of reading and the number of processes change nothing.
    With oversampling an image has several indices, each with its own random numbers.

    Args:
        images_dir: folder that the file names of the annotations are relative to.
        annotations_path: COCO JSON file.
        transform: applied to every sample.
        training: exclude crowd regions and images with a side under `min_side`.
        seed: of the random numbers.
        min_side: in pixels, according to the annotation file.
        max_pixels: files with more are rejected by their header.
        pad_divisor: images count as padded to multiples of this.
        max_images: keep only the first images.
        dataset: required kind of the annotations; None: any.
        masks: read the objects' masks and transform them; `mask_targets` includes them in the targets.
        copy_paste: pastes objects of a second image, which is transformed as well.
        filter_empty: exclude images without any annotation (training only).
        oversample_threshold: see `repeated_images` (training only).
        skip_bad: replace unreadable files: in training by another image, else by a blank one. The target lists them
            under `bad_files`.
        skip_files: paths of files to exclude from the start.
        annotations: the content of `annotations_path` if it was read before, with outlines where masks are read.
        names: what the names of images may lead to; None: only to files in `images_dir`.

    Attributes:
        category_ids: original id of each label, ascending.
        image_ids: id of the image of each index, in the order of the file.
        sizes: (M, 2) int64 (height, width) of each index, according to the annotation file.
        aspect_flags: int64, 1 for images wider than high, else 0, according to the annotation file.

    Raises:
        DatasetError: unusable annotations, those of another data set, names that lead out of it, no object to train
            on, or objects without masks where masks are needed.
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
        dataset: DatasetName | None = None,
        masks: bool = False,
        mask_targets: bool = False,
        copy_paste: CopyPaste | None = None,
        filter_empty: bool = False,
        oversample_threshold: float | None = None,
        skip_bad: bool = False,
        skip_files: Collection[str] = (),
        annotations: Annotations | None = None,
        names: NameRule | None = None,
    ) -> None:
        self.images_dir = images_dir
        self.annotations_path = annotations_path
        self.transform = transform
        self.seed = seed % 2**64  # as torch does
        self.max_pixels = max_pixels
        self.pad_divisor = pad_divisor
        self.mask_targets = mask_targets
        self.copy_paste = copy_paste
        self.training = training
        self.skip_bad = skip_bad
        if annotations is None:
            annotations = read_annotations(annotations_path, with_outlines=masks)
        if dataset is not None:
            check_kind(annotations, dataset, annotations_path)
        self._folder = ImageFolder(images_dir, annotations.file_names, names or NameRule.of(images_dir))
        file_names, note = self._folder.inside(annotations.file_names, source_of(annotations_path).name)
        if note:
            logger.info(note)
        self.class_names = annotations.class_names
        self.category_ids = annotations.category_ids

        rows = np.arange(len(annotations.image_ids))
        if training:
            rows = rows[annotations.sizes.min(axis=1, initial=min_side) >= min_side]
            if filter_empty:
                rows = rows[annotations.annotated_images()[rows]]
        rows = rows[:max_images]
        if skip_files:
            bad = set(skip_files)
            rows = rows[[str(images_dir / file_names[row]) not in bad for row in rows]]
        self._unique_rows = np.arange(len(rows))
        if training and oversample_threshold is not None:
            self._unique_rows = repeated_images(
                annotations.image_rows, annotations.labels, rows, oversample_threshold, count_empty=not filter_empty
            )
        items = rows[self._unique_rows]
        self.image_ids = annotations.image_ids[items].tolist()
        self.file_names = [file_names[row] for row in items]
        self.sizes = annotations.sizes[items]
        heights, widths = self.sizes.T
        self.aspect_flags = (widths / heights > 1).astype(np.int64)
        self._outlines = annotations.outlines if masks else None
        self._objects = annotations.usable_objects(rows, with_crowd=not training)
        if training and not len(self._objects.labels):
            source = source_of(annotations_path)
            raise DatasetError(
                f"{source.name} has no object to train on ({len(annotations.labels)} annotations, {len(rows)} usable "
                f"images): check it with {source.check}"
            )
        if self._outlines is not None:
            self._check_outlines(self._outlines)
        self._check = source_of(annotations_path).check

    def _check_outlines(self, outlines: Outlines) -> None:
        """Checks that no object lacks a mask."""
        absent = ~outlines.present[self._objects.rows]
        if not absent.any():
            return
        count = "none" if absent.all() else f"{len(absent) - int(absent.sum())}"
        first = outlines.entries[self._objects.rows[np.argmax(absent)]]
        raise DatasetError(
            f"{source_of(self.annotations_path).name} lacks masks: {count} of its {len(absent)} usable objects have a "
            f"segmentation (annotations[{first}] has none), but the settings need the masks of all. Use a preset "
            'without masks, paste whole boxes with --set data.copy_paste="boxes" or nothing with '
            "--set data.copy_paste=none, or add the masks"
        )

    @property
    def object_counts(self) -> np.ndarray:
        """Number of objects of the image of each index, (M,) int64, before any augmentation."""
        return np.diff(self._objects.offsets)[self._unique_rows]

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[np.ndarray, Target]:
        """Reads and transforms the image of an index or (epoch, index).

        Returns:
            The image (h, w, 3) uint8 RGB and its target.

        Raises:
            DatasetError: the file is missing or cannot be decoded.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        rng = np.random.default_rng([self.seed, epoch, index])
        bad_files: list[BadFile] = []
        index, orig_size, sample = self._transformed(index, rng, bad_files)
        if self.copy_paste is not None:
            _, _, source = self._transformed(int(rng.integers(len(self))), rng, bad_files)
            sample = self.copy_paste(sample, source, rng)
        if not self.mask_targets:
            sample = replace(sample, masks=None)
        target = sample.to_target(image_id=self.image_ids[index], orig_size=orig_size, pad_divisor=self.pad_divisor)
        if bad_files:
            target[BAD_FILES_KEY] = [tuple(bad) for bad in bad_files]
        return np.ascontiguousarray(sample.image), target

    def _transformed(self, index: int, rng: np.random.Generator, bad_files: list[BadFile]) -> tuple[int, Size, Sample]:
        """A transformed image, or another one of its orientation if augmentation removed all its objects.

        Unreadable files are replaced in the same way, where skipping is allowed, and appended to `bad_files`.

        Returns:
            index of the image, its (height, width) as decoded, and the sample.
        """
        for _ in range(MAX_REPLACEMENTS):
            try:
                sample = self.load_sample(index)
                return index, sample.size, self.transform(sample, rng)
            except BrokenImageError as error:
                if not self.skip_bad:
                    raise
                bad_files.append(BadFile(str(self.image_path(index)), error.reason))
                if not self.training:
                    sample = Sample.from_image(BLANK)
                    return index, sample.size, self.transform(sample, rng)
                index = self._replacement(index, rng)
            except DroppedSampleError:
                # Parity: any image of the same orientation, the same one included.
                index = int(rng.choice(np.flatnonzero(self.aspect_flags == self.aspect_flags[index])))
        raise DatasetError(
            f"{MAX_REPLACEMENTS} images of {source_of(self.annotations_path).name} in a row lost all their objects in "
            f"augmentation{' or cannot be read' if bad_files else ''}, the last one is {self.image_path(index)}. Check "
            "that masks and boxes match, or crop less with --set data.lsj_ratio=[0.1,1.0]"
        )

    def _replacement(self, index: int, rng: np.random.Generator) -> int:
        """Another image, of the same orientation if there is any: batches hold one orientation."""
        alike = np.flatnonzero(self.aspect_flags == self.aspect_flags[index])
        others = alike[alike != index]
        if not len(others):
            others = np.delete(np.arange(len(self)), index)
        return int(rng.choice(others)) if len(others) else index

    def load_sample(self, index: int) -> Sample:
        """The decoded image and its objects, before any transform.

        Raises:
            DatasetError: the file is missing or cannot be decoded, or a mask is broken or of another size.
        """
        return self.annotated(index, self.decode(index, self.read_bytes(index)))

    def read_bytes(self, index: int) -> bytes:
        """First stage of `load_sample`: the content of the image file, or of the one with a similar name."""
        try:
            return read_file(self.image_path(index), max_pixels=self.max_pixels, check=self._check)
        except BrokenImageError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            name = self.file_names[index]
            found = self._folder.find(name)
            if found is None:
                raise missing_file(self.image_path(index), self._folder.hint(name), self._check) from error
        self.file_names[index] = found
        return read_file(self.image_path(index), max_pixels=self.max_pixels, check=self._check)

    def decode(self, index: int, content: bytes) -> np.ndarray:
        """Second stage of `load_sample`: the image (h, w, 3) uint8 RGB, of the size in the annotation file.

        The size before an EXIF rotation is accepted too, as by `codetr prepare`, which warns of it.
        """
        path = self.image_path(index)
        image = decode_image(content, path, max_pixels=self.max_pixels, check=self._check)
        listed_height, listed_width = self.sizes[index].tolist()
        height, width = image.shape[:2]
        if (height, width) == (listed_height, listed_width):
            return image
        if header_of(content).size_problem((listed_height, listed_width)) == "size_differs":
            raise BrokenImageError(
                f"image {path} has {width} x {height} pixels, but the annotation file lists {listed_width} x "
                f"{listed_height}, so that boxes would be in wrong places. Restore the original image, or correct "
                f"width, height and boxes of its record; {self._check} lists all such files",
                path,
                f"it has {width} x {height} pixels, not the {listed_width} x {listed_height} of the annotation file",
            )
        return image

    def annotated(self, index: int, image: np.ndarray) -> Sample:
        """Last stage of `load_sample`: the image with its objects."""
        objects, row = self._objects, self._unique_rows[index]
        rows = slice(objects.offsets[row], objects.offsets[row + 1])
        masks = None
        if self._outlines is not None:
            try:
                masks = self._outlines.masks(objects.rows[rows].tolist(), image.shape[:2])
            except DatasetError as error:
                source = source_of(self.annotations_path)
                raise DatasetError(
                    f"{source.name}: {error} (image {self.image_path(index).name}). Correct or remove it; "
                    f"{source.check} lists every such entry"
                ) from error
        return Sample(
            image=image,
            boxes=objects.boxes[rows],
            labels=objects.labels[rows],
            iscrowd=objects.iscrowd[rows],
            area=objects.area[rows],
            masks=masks,
        )

    def image_path(self, index: int) -> Path:
        """The path of the image."""
        return self.images_dir / self.file_names[index]


def build_dataset(
    settings: Settings,
    *,
    split: Split,
    training: bool,
    data: str | None = None,
    skip_files: Collection[str] = (),
    annotations: Annotations | None = None,
) -> CocoDataset:
    """Builds the dataset of the settings; `data.max_images` limits the training split only.

    For training, images are augmented and filtered; otherwise every image is resized as for testing. `data` is the
    folder given on the command line, `annotations` those of the split if they were read before.

    Raises:
        DatasetError: the data is not found, or the annotations are unusable.
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
        dataset=settings.data.dataset,
        masks=training and settings.needs_masks,
        mask_targets=training and settings.learns_masks,
        copy_paste=build_copy_paste(settings.data) if training else None,
        filter_empty=settings.data.filter_empty,
        oversample_threshold=settings.data.oversample_threshold,
        skip_bad=settings.data.bad_files == "skip",
        skip_files=skip_files,
        annotations=annotations,
        names=paths.names,
    )


def build_copy_paste(config: DataConfig) -> CopyPaste | None:
    """Builds the copy-paste augmentation, if the settings ask for it."""
    return None if config.copy_paste == "none" else CopyPaste(cut=config.copy_paste, max_pasted=config.max_pasted)
