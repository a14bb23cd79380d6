"""Batches for training and evaluation: who reads which image, in what order, in how many processes.

Training order: mmdet's DistributedGroupSampler, every micro-batch of one orientation. Nothing random happens in the
worker processes but what (seed, epoch, index) decides, so their number changes no batch, and any batch of any epoch can
be reached without reading those before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.utils.data import Sampler

from codetr_cli.data.batch import Batch
from codetr_cli.data.coco import CocoDataset
from codetr_cli.data.workers import PATIENCE_S, Reader

Key = tuple[int, int]


class TrainLoader:
    """One epoch of batches at a time, from any batch on.

    Args:
        dataset: what to read.
        sampler: decides the order.
        workers: processes that read ahead; 0 reads in this process.
        pin_memory: deliver batches in page-locked memory, for fast copies to a GPU.
        tell: told of dead workers that were replaced, and of missing shared memory.
        patience_s: seconds without a batch before workers count as hanging.
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

    def set_epoch(self, epoch: int, start_batch: int = 0, other_order_from: int | None = None) -> None:
        """Chooses what the next iteration yields.

        Args:
            epoch: 0-based; decides the order and every augmentation.
            start_batch: batches of this epoch that are already done.
            other_order_from: batch of this epoch from which on they come in another order; None: as planned.
        """
        self.sampler.set_epoch(epoch, start_batch, other_order_from)

    def __iter__(self) -> Iterator[Batch]:
        """The batches of the chosen epoch.

        Raises:
            DatasetError: an image cannot be read.
            MachineError: workers died again and again, hang, or cannot be started.
        """
        return iter(self.reader)


class AspectGroupedSampler(Sampler[list[Key]]):
    """Order of training images: batches hold one orientation, nothing is left out, every rank has as many batches.

    Each group is shuffled and filled up with its own head to a multiple of micro_batch * world_size; the groups are cut
    into batches, the batches are shuffled, and each rank takes a contiguous part.

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
        self._epoch = 0
        self._start_batch = 0
        self._other_order_from: int | None = None
        together = micro_batch * world_size
        sizes = np.unique(groups, return_counts=True)[1]
        self.num_batches = int((-(-sizes // together)).sum())

    def __len__(self) -> int:
        """Batches that the next iteration yields."""
        return self.num_batches - self._start_batch

    def __iter__(self) -> Iterator[list[Key]]:
        """Lists of (epoch, index)."""
        batches = self.batches(self._epoch)
        if self._other_order_from is not None:
            # Each rank shuffles what it has left, so that still no image of the epoch is left out or comes twice.
            left = batches[self._other_order_from :]
            order = np.random.default_rng([self.seed, self._epoch, self.rank]).permutation(len(left))
            batches = np.concatenate([batches[: self._other_order_from], left[order]])
        for batch in batches[self._start_batch :]:
            yield [(self._epoch, int(index)) for index in batch]

    def set_epoch(self, epoch: int, start_batch: int = 0, other_order_from: int | None = None) -> None:
        """Chooses the epoch, the first batch of the next iteration, and from which batch on the order is another."""
        self._epoch = epoch
        self._start_batch = start_batch
        self._other_order_from = other_order_from

    def batches(self, epoch: int) -> np.ndarray:
        """Indices (batches, micro_batch) int64 of an epoch on this rank."""
        generator = torch.Generator().manual_seed(epoch + self.seed)
        together = self.micro_batch * self.world_size
        parts = []
        for group in np.unique(self.groups):
            members = np.flatnonzero(self.groups == group)
            members = members[torch.randperm(len(members), generator=generator).numpy()]
            parts.append(np.resize(members, -(-len(members) // together) * together))
        indices = np.concatenate(parts) if parts else np.zeros(0, np.int64)
        batches = indices.reshape(-1, self.micro_batch)
        batches = batches[torch.randperm(len(batches), generator=generator).numpy()]
        return batches[self.rank * self.num_batches : (self.rank + 1) * self.num_batches]


class EvalLoader:
    """Batches in which every image occurs once over all ranks, in order: rank r has images r, r + world_size, ...

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
        rank: int,
        world_size: int,
        pin_memory: bool = False,
        tell: Callable[[str], object] | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.dataset = dataset
        indices = range(rank, len(dataset), world_size)
        self._batches = [list(indices[i : i + batch_size]) for i in range(0, len(indices), batch_size)]
        self.reader = Reader(
            dataset, self._batches, workers=workers, pin_memory=pin_memory, tell=tell, patience_s=patience_s
        )

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        """The batches of this rank.

        Raises:
            DatasetError: an image cannot be read.
            MachineError: workers died again and again, hang, or cannot be started.
        """
        return iter(self.reader)


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


def build_eval_loader(
    dataset: CocoDataset,
    *,
    batch_size: int,
    workers: int,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
    tell: Callable[[str], object] | None = None,
    patience_s: float = PATIENCE_S,
) -> EvalLoader:
    """The evaluation loader of one process; see `EvalLoader`."""
    return EvalLoader(
        dataset,
        batch_size=batch_size,
        workers=workers,
        rank=rank,
        world_size=world_size,
        pin_memory=pin_memory,
        tell=tell,
        patience_s=patience_s,
    )
