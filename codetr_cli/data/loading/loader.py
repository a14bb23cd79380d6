"""Batches for training and evaluation: who reads which image, in what order, in how many processes.

Training order: mmdet's DistributedGroupSampler, every micro-batch of one orientation. Nothing random happens in the
worker processes but what (seed, epoch, index) decides, so their number changes no batch, and any batch of any epoch can
be reached without reading those before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler

from codetr_cli.data.bad_files import BadFile, take_met
from codetr_cli.data.batch import Batch
from codetr_cli.data.coco import CocoDataset
from codetr_cli.data.loading.workers import PATIENCE_S, Reader

Key = tuple[int, int]
Segment = tuple[int, int, int, int | None]
"""A stretch of an epoch that was trained at one width: how many processes there were, how many images each took at
once, how many batches of these it used, and from which batch on they came in another order (None: as planned)."""


class TrainLoader:
    """One epoch of batches at a time, from any batch on.

    Args:
        dataset: what to read.
        sampler: decides the order.
        workers: processes that read ahead; 0 reads in this process.
        pin_memory: deliver batches in page-locked memory, for fast copies to a GPU.
        tell: told of dead workers that were replaced, and of missing shared memory.
        patience_s: seconds without a batch before workers count as hanging.

    Attributes:
        on_bad_file: told of every file that could not be read and in whose place another image came.
    """

    def __init__(
        self,
        dataset: CocoDataset,
        sampler: AspectGroupedSampler,
        *,
        workers: int,
        pin_memory: bool = False,
        tell: Callable[[str], object] | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.sampler = sampler
        self.on_bad_file: Callable[[BadFile], object] = lambda bad: None
        self.reader = Reader(
            dataset,
            sampler,
            workers=workers,
            pin_memory=pin_memory,
            keep_workers=True,
            tell=tell,
            patience_s=patience_s,
        )

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank."""
        return self.sampler.num_batches

    def set_epoch(
        self,
        epoch: int,
        start_batch: int = 0,
        other_order_from: int | None = None,
        segments: Sequence[Segment] = (),
    ) -> int:
        """Chooses what the next iteration yields.

        Args:
            epoch: 0-based; decides the order and every augmentation.
            start_batch: batches of this epoch, since the last of the segments, that are already done.
            other_order_from: batch of this epoch from which on they come in another order; None: as planned.
            segments: of this epoch that were trained at another width, in their order: what they used does not come
                again, and what they left is planned anew for this width.

        Returns:
            how many batches that is on this rank; as many on every other.
        """
        return self.sampler.set_epoch(epoch, start_batch, other_order_from, segments)

    def __iter__(self) -> Iterator[Batch]:
        """The batches of the chosen epoch.

        Raises:
            DatasetError: an image cannot be read.
            ResourceError: workers died again and again, hang, or cannot be started.
        """
        for batch in self.reader:
            for bad in take_met(batch):
                self.on_bad_file(bad)
            yield batch


class AspectGroupedSampler(Sampler[list[Key]]):
    """Order of training images: batches hold one orientation, nothing is left out, every rank has as many batches.

    Each group is shuffled and filled up with its own head to a multiple of micro_batch * world_size; the groups are cut
    into batches, the batches are shuffled, and each rank takes a contiguous part. An epoch that goes on at another
    width than it began with does the same once more with the images that are left.

    Args:
        groups: (images,) int64, the group of each image; all equal for one group.
        micro_batch: images a batch.
        rank: of this process.
        world_size: number of processes.
        seed: of the order; epoch + seed seeds the generator, as published.
    """

    def __init__(self, groups: np.ndarray, *, micro_batch: int, rank: int, world_size: int, seed: int) -> None:
        self.groups = groups
        self.micro_batch = micro_batch
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        together = micro_batch * world_size
        sizes = np.unique(groups, return_counts=True)[1]
        self.num_batches = int((-(-sizes // together)).sum())
        self.set_epoch(0)

    def __len__(self) -> int:
        """Batches that the next iteration yields."""
        return len(self._coming)

    def __iter__(self) -> Iterator[list[Key]]:
        """Lists of (epoch, index)."""
        for batch in self._coming:
            yield [(self._epoch, int(index)) for index in batch]

    def set_epoch(
        self,
        epoch: int,
        start_batch: int = 0,
        other_order_from: int | None = None,
        segments: Sequence[Segment] = (),
    ) -> int:
        """Chooses what the next iteration yields, and counts it; see `TrainLoader.set_epoch`."""
        self._epoch = epoch
        batches = self._reordered(self.batches(epoch, segments), other_order_from, epoch, self.rank)
        self._coming = batches[start_batch:]
        return len(self._coming)

    def batches(self, epoch: int, segments: Sequence[Segment] = ()) -> np.ndarray:
        """Indices (batches, micro_batch) int64 on this rank of what segments at other widths left of an epoch."""
        left = np.ones(len(self.groups), bool)
        for number, (world_size, micro_batch, used, other_order_from) in enumerate(segments):
            plan = self._plan(epoch, left, number, micro_batch, world_size)
            for rank, batches in enumerate(plan):
                left[self._reordered(batches, other_order_from, epoch, rank)[:used]] = False
        return self._plan(epoch, left, len(segments), self.micro_batch, self.world_size)[self.rank]

    def _plan(self, epoch: int, left: np.ndarray, number: int, micro_batch: int, world_size: int) -> np.ndarray:
        """Indices (world_size, batches, micro_batch) of the images left for segment `number` of an epoch."""
        # The first one is the published order; more of them are drawn from generators of their own.
        seed = epoch + self.seed if number == 0 else _mixed(self.seed, epoch, number)
        generator = torch.Generator().manual_seed(seed)
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
        """One rank's batches, shuffled from one on; still no image of the epoch is left out or comes twice."""
        if start is None:
            return batches
        order = np.random.default_rng([self.seed, epoch, rank]).permutation(len(batches) - start)
        return np.concatenate([batches[:start], batches[start:][order]])


class EvalLoader:
    """Batches in which every image occurs once over all ranks, in order: rank r has batches r, r + world_size, ...

    An image is in the same batch, and so padded alike, however many ranks there are: they change no detection.

    Args:
        dataset: what to read.
        batch_size: images a batch; the last one may be smaller.
        workers: processes that read ahead; 0 reads in this process.
        rank: of this process.
        world_size: number of processes.
        pin_memory: deliver batches in page-locked memory, for fast copies to a GPU.
        tell: as of `TrainLoader`.
        patience_s: as of `TrainLoader`.
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
        tell: Callable[[str], object] | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.dataset = dataset
        indices = range(len(dataset))
        batches = [list(indices[i : i + batch_size]) for i in range(0, len(dataset), batch_size)]
        self._batches = batches[rank::world_size]
        self.num_images = sum(len(batch) for batch in self._batches)
        self.reader = Reader(
            dataset, self._batches, workers=workers, pin_memory=pin_memory, tell=tell, patience_s=patience_s
        )

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        """The batches of this rank.

        Raises:
            DatasetError: an image cannot be read.
            ResourceError: workers died again and again, hang, or cannot be started.
        """
        return iter(self.reader)


def _mixed(*numbers: int) -> int:
    """A seed of several numbers."""
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
    tell: Callable[[str], object] | None = None,
    patience_s: float = PATIENCE_S,
) -> TrainLoader:
    """The training loader of one process.

    Args:
        dataset: what to read.
        micro_batch: images a batch.
        workers: processes that read ahead; 0 reads in this process.
        seed: of the order.
        rank: of this process.
        world_size: number of processes.
        aspect_grouping: batches hold images of one orientation.
        pin_memory: deliver batches in page-locked memory.
        tell: as of `TrainLoader`.
        patience_s: as of `TrainLoader`.
    """
    groups = dataset.aspect_flags if aspect_grouping else np.zeros_like(dataset.aspect_flags)
    sampler = AspectGroupedSampler(groups, micro_batch=micro_batch, rank=rank, world_size=world_size, seed=seed)
    return TrainLoader(dataset, sampler, workers=workers, pin_memory=pin_memory, tell=tell, patience_s=patience_s)
