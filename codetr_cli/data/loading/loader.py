"""Batches for training and evaluation: which process reads which images, in which order, with how many workers.

Training order: mmdet's DistributedGroupSampler, every micro-batch of one orientation. Random numbers in workers depend
only on (seed, epoch, index), so the number of workers changes no batch, and any batch of any epoch can be read without
those before it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler

from codetr_cli.data.bad_files import BadFile, pop_bad_files
from codetr_cli.data.batch import Batch
from codetr_cli.data.coco import CocoDataset
from codetr_cli.data.loading.workers import TIMEOUT_S, BatchReader

Key = tuple[int, int]
Segment = tuple[int, int, int, int | None]
"""A part of an epoch that was trained with one world size: the world size, the micro batch, the number of batches used
of each process, and the batch from which on they were reshuffled (None: never)."""


class TrainLoader:
    """One epoch of batches at a time, from any batch on; see `build_train_loader`.

    Attributes:
        on_bad_file: called with every unreadable file that another image replaced.
    """

    def __init__(self, sampler: AspectGroupedSampler, reader: BatchReader) -> None:
        self.sampler = sampler
        self.reader = reader
        self.set_epoch = sampler.set_epoch
        self.on_bad_file: Callable[[BadFile], object] = lambda bad: None

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank."""
        return self.sampler.num_batches

    def __iter__(self) -> Iterator[Batch]:
        """The batches of the chosen epoch; errors as of `BatchReader`."""
        for batch in self.reader:
            for bad in pop_bad_files(batch):
                self.on_bad_file(bad)
            yield batch


class AspectGroupedSampler(Sampler[list[Key]]):
    """Order of training images: batches of one orientation, every image included, equally many batches on every rank.

    Each group is shuffled and padded with its own first images to a multiple of micro_batch * world_size; the groups
    are split into batches, the batches are shuffled, and each rank takes a contiguous part. An epoch that continues
    with another world size repeats this with the remaining images.

    Args:
        groups: (images,) int64, the group of each image; all equal for one group.
        seed: of the order; the generator's seed is epoch + seed, as published.
    """

    def __init__(self, groups: np.ndarray, *, micro_batch: int, rank: int, world_size: int, seed: int) -> None:
        self.groups = groups
        self.micro_batch = micro_batch
        self.rank = rank
        self.world_size = world_size
        self.seed = seed % 2**64  # as torch does
        together = micro_batch * world_size
        sizes = np.unique(groups, return_counts=True)[1]
        self.num_batches = int((-(-sizes // together)).sum())
        self.set_epoch(0)

    def __len__(self) -> int:
        """Batches that the next iteration yields."""
        return len(self._batches)

    def __iter__(self) -> Iterator[list[Key]]:
        """Lists of (epoch, index)."""
        for batch in self._batches:
            yield [(self._epoch, int(index)) for index in batch]

    def set_epoch(
        self,
        epoch: int,
        start_batch: int = 0,
        reshuffled_from: int | None = None,
        segments: Sequence[Segment] = (),
    ) -> int:
        """Selects the batches of the next iteration.

        Args:
            epoch: 0-based; determines the order and every augmentation.
            start_batch: batches of this epoch, since the last of the segments, that are already done.
            reshuffled_from: batch of this epoch from which on they are reshuffled; None: never.
            segments: parts of this epoch that were trained with another world size, in their order: images they used
                are not repeated, and the remaining ones are divided again for this world size.

        Returns:
            the number of batches on this rank; the same on every rank.
        """
        self._epoch = epoch
        batches = self._reordered(self.batches(epoch, segments), reshuffled_from, epoch, self.rank)
        self._batches = batches[start_batch:]
        return len(self._batches)

    def batches(self, epoch: int, segments: Sequence[Segment] = ()) -> np.ndarray:
        """Indices (batches, micro_batch) int64 on this rank of the images of an epoch that no segment used."""
        left = np.ones(len(self.groups), bool)
        for number, (world_size, micro_batch, used, reshuffled_from) in enumerate(segments):
            plan = self._plan(epoch, left, number, micro_batch, world_size)
            for rank, batches in enumerate(plan):
                left[self._reordered(batches, reshuffled_from, epoch, rank)[:used]] = False
        return self._plan(epoch, left, len(segments), self.micro_batch, self.world_size)[self.rank]

    def _plan(self, epoch: int, left: np.ndarray, number: int, micro_batch: int, world_size: int) -> np.ndarray:
        """Indices (world_size, batches, micro_batch) of the images that remain for segment `number` of an epoch."""
        # The first segment has the published order; each further one has its own generator.
        seed = epoch + self.seed if number == 0 else _combined_seed(self.seed, epoch, number)
        generator = torch.Generator().manual_seed(seed % 2**64)
        together = micro_batch * world_size
        parts = [np.zeros(0, np.int64)]
        for group in np.unique(self.groups):
            members = np.flatnonzero((self.groups == group) & left)
            members = members[torch.randperm(len(members), generator=generator).numpy()]
            parts.append(np.resize(members, -(-len(members) // together) * together))
        batches = np.concatenate(parts).reshape(-1, micro_batch)
        batches = batches[torch.randperm(len(batches), generator=generator).numpy()]
        return batches.reshape(world_size, -1, micro_batch)

    def _reordered(self, batches: np.ndarray, start: int | None, epoch: int, rank: int) -> np.ndarray:
        """One rank's batches, shuffled from one on; every image of the epoch still occurs once."""
        if start is None:
            return batches
        order = np.random.default_rng([self.seed, epoch, rank]).permutation(len(batches) - start)
        return np.concatenate([batches[:start], batches[start:][order]])


class EvalLoader:
    """Batches with every image once over all ranks, each rank's in order.

    An image is in the same batch, with the same padding, for any number of ranks: they change no detection. The batches
    are divided so that every rank has about as much to do. The last batch may be smaller. Arguments that
    `build_train_loader` has too are explained there.

    Args:
        done: numbers of batches that need not be read.

    Attributes:
        batch_numbers: position of each batch of this rank in `batches_of` the dataset.
        num_images: on this rank.
    """

    def __init__(
        self,
        dataset: CocoDataset,
        *,
        batch_size: int,
        workers: int,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
        timeout_s: float = TIMEOUT_S,
        done: Collection[int] = (),
    ) -> None:
        self.dataset = dataset
        batches = batches_of(len(dataset), batch_size)
        remaining = [number for number in range(len(batches)) if number not in done]
        costs = [_batch_cost(dataset.sizes[batch]) for batch in batches]
        self.batch_numbers = divide(remaining, costs, world_size)[rank]
        self._batches = [batches[number] for number in self.batch_numbers]
        self.num_images = sum(len(batch) for batch in self._batches)
        self.reader = BatchReader(dataset, self._batches, workers=workers, pin_memory=pin_memory, timeout_s=timeout_s)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        """The batches of this rank; errors as of `BatchReader`."""
        return iter(self.reader)


def batches_of(images: int, batch_size: int) -> list[list[int]]:
    """The indices of each evaluation batch: consecutive images."""
    return [list(range(start, min(start + batch_size, images))) for start in range(0, images, batch_size)]


def divide(units: Collection[int], costs: Sequence[float], parts: int) -> list[list[int]]:
    """Units of work in parts of about equal costs, each in ascending order; every unit is in one part.

    Args:
        units: numbers of the units.
        costs: by unit number; also of units that are not divided.
        parts: how many.
    """
    order = sorted(units, key=lambda unit: (-costs[unit], unit))
    return [sorted(order[part::parts]) for part in range(parts)]


def _batch_cost(sizes: np.ndarray) -> float:
    """Area of a padded batch of images of these (height, width), resized to a short side of 1."""
    height, width = (sizes / sizes.min(axis=1, keepdims=True)).max(axis=0)
    return round(float(len(sizes) * height * width), 3)


def _combined_seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def build_train_loader(
    dataset: CocoDataset,
    *,
    micro_batch: int,
    workers: int,
    seed: int,
    rank: int,
    world_size: int,
    aspect_grouping: bool,
    pin_memory: bool = False,
    timeout_s: float = TIMEOUT_S,
) -> TrainLoader:
    """The training loader of one process.

    Args:
        dataset: the images.
        micro_batch: images a batch.
        workers: processes that read ahead; 0 reads in this process.
        seed: of the order.
        rank: of this process.
        world_size: number of processes.
        aspect_grouping: batches have images of one orientation.
        pin_memory: return batches in page-locked memory, for fast copies to a GPU.
        timeout_s: seconds without a batch after which workers are considered hung.
    """
    groups = dataset.aspect_flags if aspect_grouping else np.zeros_like(dataset.aspect_flags)
    sampler = AspectGroupedSampler(groups, micro_batch=micro_batch, rank=rank, world_size=world_size, seed=seed)
    reader = BatchReader(
        dataset, sampler, workers=workers, pin_memory=pin_memory, keep_workers=True, timeout_s=timeout_s
    )
    return TrainLoader(sampler, reader)
