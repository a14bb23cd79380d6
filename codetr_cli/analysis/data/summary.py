"""Everything about a data set: the numbers of its splits, how they differ, copies of images, and advice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from codetr_cli.analysis.data.advice import Advice, advise
from codetr_cli.analysis.data.image_copies import CopiedImages, find_copies
from codetr_cli.analysis.data.input_size import NetworkLimits
from codetr_cli.analysis.data.split_differences import SplitDifference, split_difference
from codetr_cli.analysis.data.splits import DataSplit, Progress, read_splits
from codetr_cli.analysis.data.statistics import DataStatistics, data_statistics
from codetr_cli.config.data_settings import DataConfig
from codetr_cli.config.schema import Settings


@dataclass(frozen=True, eq=False)
class DataSummary:
    """What is known about a data set.

    Attributes:
        preset: name of the settings that the advice is about.
        splits: their numbers, training images first.
        differences: of the other splits from the first.
        copies: of images; None: images were not read.
        advice: that follows.
        places: the annotation file of each split, and the folder of its images.
        notes: on how the data were read, sentences.
    """

    preset: str
    splits: list[DataStatistics]
    differences: list[SplitDifference]
    copies: CopiedImages | None
    advice: list[Advice]
    places: dict[str, tuple[Path, Path]]
    notes: list[str]


def summarize_data(
    config: DataConfig, settings: Settings, *, with_images: bool = True, progress: Progress | None = None
) -> DataSummary:
    """Reads a data set and computes its numbers.

    Args:
        config: where the data are and how they are read.
        settings: of the network that the advice is about.
        with_images: look for copies of images, which reads them; all else is in the annotations.
        progress: displays the progress.

    Raises:
        ConfigError: options that exclude each other.
        DatasetError: there is no such data set, its annotations are broken, or names lead out of it.
    """
    limits = NetworkLimits.of(settings)
    splits = read_splits(config, needs_images=with_images, progress=progress)
    statistics = []
    with _shown(progress, "counting", len(splits)) as advance:
        for split in splits:
            statistics.append(data_statistics(split.annotations, limits, split=split.name))
            advance(1)
        found = [
            split_difference(splits[0].annotations, split.annotations, names=(splits[0].name, split.name))
            for split in splits[1:]
        ]
    differences = [each for each in found if each is not None]
    copies = _copies(splits, progress) if with_images else None
    return DataSummary(
        preset=settings.name,
        splits=statistics,
        differences=differences,
        copies=copies,
        advice=advise(statistics, limits, differences=differences, copies=copies),
        places={split.name: (split.paths.annotations_path, split.paths.images_dir) for split in splits},
        notes=list(dict.fromkeys(note for split in splits for note in (*split.paths.notes, *split.paths.warnings))),
    )


def _copies(splits: list[DataSplit], progress: Progress | None) -> CopiedImages:
    images = [(split.name, split.annotations.file_names, split.image_files()) for split in splits]
    with _shown(progress, "comparing images", sum(len(paths) for _, _, paths in images)) as advance:
        return find_copies(images, advance)


@contextmanager
def _shown(progress: Progress | None, text: str, total: int) -> Iterator[Callable[[int], object]]:
    if progress is None:
        yield lambda number: None
        return
    with progress(text, total) as advance:
        yield advance
