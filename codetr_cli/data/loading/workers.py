"""Batches from worker processes that may die, hang, or find no shared memory.

A worker that dies is replaced and reading goes on at the batch that is due: batches depend on seed, epoch and index
only, so the training computes what it would have computed. What cannot be mended here ends as a `ResourceError` that
names the worker, the image it was at, and what to do.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import logging
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch.utils.data import DataLoader, Dataset, get_worker_info

from codetr_cli.data.batch import Batch, Target, collate
from codetr_cli.data.loading.transport import Pinned, SharedBatch, pack
from codetr_cli.data.loading.worker_process import (
    allow_descriptors,
    hearing_of_deaths,
    keep_deaths_quiet,
    leaving_flag,
    many_workers_allowed,
    start_method,
    start_worker,
)
from codetr_cli.errors import CodetrError, ResourceError

Key = int | tuple[int, int]
Item = tuple[np.ndarray, Target]

REPLACEMENTS = 3
"""Times that dead workers are replaced while the batches of one epoch are read."""

POLL_S = 5.0
"""Between looks at whether all workers live, where the system does not tell."""

PATIENCE_S = 600.0
"""Without a batch, before the worker that has it to deliver counts as hanging."""


class ImageSet(Protocol):
    """What batches are made of."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Key) -> Item: ...

    def image_path(self, index: int) -> Path:
        """Where the image of an index lies, for messages."""


class Reader:
    """Reads the batches of an order, again and again.

    Args:
        dataset: what to read.
        order: lists of keys, one a batch; iterated anew for each reading, and must then give the same if not told
            otherwise.
        workers: processes that read ahead; 0 reads in this process.
        pin_memory: deliver batches in page-locked memory, for fast copies to a GPU.
        keep_workers: do not start them anew for each reading.
        tell: told of what was mended, in a sentence.
        patience_s: see `PATIENCE_S`.
    """

    def __init__(
        self,
        dataset: ImageSet,
        order: Iterable[Sequence[Key]],
        *,
        workers: int,
        pin_memory: bool = False,
        keep_workers: bool = False,
        tell: Callable[[str], object] | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.dataset, self.workers = dataset, workers
        self.tell = tell or logging.getLogger(__name__).warning
        self.patience_s = patience_s
        self._order = _Rest(order)
        self._doing = multiprocessing.RawArray(ctypes.c_int64, max(1, workers))
        self._told = False  # of memory that cannot be shared
        self._stream: Any = None  # torch's iterator over what the present workers read
        with many_workers_allowed():
            self._loader: DataLoader[Item | CodetrError] = DataLoader(
                _Guarded(dataset, self._doing),
                batch_sampler=self._order,  # type: ignore[arg-type]
                collate_fn=_pack_or_error if workers else _collate_or_error,
                num_workers=workers,
                worker_init_fn=functools.partial(start_worker, leaving_flag()) if workers else None,
                multiprocessing_context=start_method() if workers else None,
                persistent_workers=keep_workers and workers > 0,
                pin_memory=pin_memory,
                timeout=POLL_S if workers else 0,
            )

    @property
    def processes(self) -> list[BaseProcess]:
        """The worker processes that are there now."""
        return list(self._stream._workers) if self.workers and self._stream is not None else []

    @property
    def _on_the_way(self) -> int:
        """Batches that workers were asked for and that were not taken."""
        return len(self._stream._task_info) if self.processes else 0

    def __iter__(self) -> Iterator[Batch]:
        """The batches of the order as it is now.

        Raises:
            DatasetError: an image cannot be read.
            ResourceError: workers died again and again, hang, or cannot be started.
        """
        if self._on_the_way:  # left over from a reading that was not finished
            self.close()
        delivered = deaths = 0
        started = False
        while True:
            try:
                if not started:
                    self._start(delivered)
                    started = True
                batch = self._next()
            except StopIteration:
                return
            except _WorkerDiedError as died:
                deaths += bool(died.what)
                if deaths > REPLACEMENTS:
                    self.close()
                    raise self._give_up(died.what) from died
                if died.what:
                    self.tell(
                        f"{died.what}. It was replaced, and the training goes on with the batch that was due: nothing "
                        f"is lost. {_cure(died.what)}"
                    )
                self.close()
                started = False
                continue
            except CodetrError:
                self.close()  # now: left to the garbage collector, workers hold up the process for seconds
                raise
            delivered += 1
            yield batch

    def _start(self, skip: int) -> None:
        """Starts workers, or sets those that wait to work, from a batch of the order on.

        Raises:
            _WorkerDiedError: one of those that wait is gone.
            ResourceError: workers cannot be started.
        """
        if self._loader.persistent_workers and self._dead():
            raise _WorkerDiedError(self._death())
        self._order.skip = skip
        if self.workers:
            allow_descriptors()
        outside = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
        before = multiprocessing.active_children()
        try:
            with many_workers_allowed():
                self._stream = iter(self._loader)
        except OSError as error:
            for worker in multiprocessing.active_children():
                if worker not in before:
                    worker.kill()  # those that could be started would be waited for
            raise ResourceError(
                f"cannot start {self.workers} data workers: {error.strerror}. {_cure(error.strerror or '')}"
            ) from error
        except RuntimeError as error:
            if not self._dead():
                raise
            raise _WorkerDiedError(self._death()) from error
        finally:
            keep_deaths_quiet(outside)

    def _next(self) -> Batch:
        """The next batch, however long it takes within the patience.

        Raises:
            StopIteration: there is none.
            _WorkerDiedError: there may be one when workers are replaced.
        """
        started = time.monotonic()
        while True:
            try:
                with hearing_of_deaths():
                    if self._dead():
                        raise _WorkerDiedError(self._death())
                    item = next(self._stream)
                    if isinstance(item, SharedBatch | Pinned):
                        self._tell_of(item.trouble)
                        return item.open()
            except (RuntimeError, OSError, EOFError) as error:
                text = str(error)
                if self._dead(patience_s=1.0 if isinstance(error, OSError | EOFError) else 0.0):
                    raise _WorkerDiedError(self._death()) from error
                if text.startswith("DataLoader worker (pid"):
                    # One of another reader's. Torch was interrupted by the news: what it had in hand may be lost.
                    raise _WorkerDiedError("") from error
                if any(sign in text for sign in ("Too many open files", "ancdata")):
                    raise ResourceError(
                        f"too many open files to receive what data workers read. {_cure('open files')}"
                    ) from error
                if not text.startswith("DataLoader timed out"):
                    raise
                if time.monotonic() - started >= self.patience_s:
                    raise self._stalled() from error
                continue
            if isinstance(item, CodetrError):
                raise item
            return item

    def _dead(self, patience_s: float = 0.0) -> list[BaseProcess]:
        """Workers that ended while they were needed, after waiting a while for one to appear."""
        until = time.monotonic() + patience_s
        while True:
            dead = [worker for worker in self.processes if worker.exitcode not in (None, 0)]
            if dead or time.monotonic() >= until:
                return dead
            time.sleep(0.05)

    def _death(self) -> str:
        """What became of the first dead worker, in a sentence without its end."""
        dead = self._dead()[0]
        code = dead.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        doing = "while it read" if self._on_the_way else "when it had read"
        return f"a data worker (process {dead.pid}) {how} {doing} {self._image_of(self.processes.index(dead))}"

    def _image_of(self, worker: int) -> str:
        index = self._doing[worker]
        return str(self.dataset.image_path(index)) if index >= 0 else "nothing yet"

    def _stalled(self) -> ResourceError:
        """What to say of workers that do not answer."""
        named = ", ".join(
            f"process {worker.pid} at {self._image_of(number)}" for number, worker in enumerate(self.processes)
        )
        return ResourceError(
            f"no data for {self.patience_s:.0f} seconds: the data workers stopped answering ({named}). Look at that "
            "disk or network drive and at free memory; if reading is only slow, raise --set train.timeout_minutes. The "
            "same command continues from the newest checkpoint"
        )

    def _give_up(self, what: str) -> ResourceError:
        """What to say when replacing workers does not help."""
        return ResourceError(
            f"{what}. That was the {REPLACEMENTS + 1}th within one epoch. {_cure(what)} The same command continues "
            "from the newest checkpoint"
        )

    def close(self) -> None:
        """Ends all workers; the next reading starts new ones."""
        if not self.processes:
            return
        for worker in self.processes:
            worker.kill()
        for worker in self.processes:
            worker.join(timeout=POLL_S)  # one that waits for a drive that is gone cannot even be killed
        # A killed one may have left locks behind that torch would wait for.
        closing = threading.Thread(target=self._stream._shutdown_workers, daemon=True)
        closing.start()
        closing.join(timeout=2 * POLL_S)
        self._loader._iterator = self._stream = None

    def _tell_of(self, trouble: str | None) -> None:
        if trouble and not self._told:
            self._told = True
            self.tell(
                f"no shared memory for batches ({trouble}): data workers hand them over through pipes, which is slower "
                "but changes no number. Free /dev/shm, or give a container more with docker run --shm-size=8g"
            )


class _WorkerDiedError(Exception):
    """A worker of this reader is gone.

    Args:
        what: how, for people; empty if it was another reader's.
    """

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


class _Rest:
    """An order without its first batches."""

    def __init__(self, order: Iterable[Sequence[Key]]) -> None:
        self.order = order
        self.skip = 0

    def __iter__(self) -> Iterator[Sequence[Key]]:
        return itertools.islice(iter(self.order), self.skip, None)

    def __len__(self) -> int:
        return len(self.order) - self.skip  # type: ignore[arg-type]


class _Guarded(Dataset[Item | CodetrError]):
    """Returns an error that a person can mend instead of raising it, and notes what it reads.

    DataLoader would re-raise it from a worker with that worker's traceback as its message.

    Args:
        dataset: what to read.
        doing: index that each worker reads, shared by all processes; -1 before the first.
    """

    def __init__(self, dataset: ImageSet, doing: Any) -> None:
        self.dataset, self.doing = dataset, doing
        for worker in range(len(doing)):
            doing[worker] = -1

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> Item | CodetrError:
        worker = get_worker_info()
        index = key[1] if isinstance(key, tuple) else key
        self.doing[worker.id if worker else 0] = index
        try:
            return self.dataset[key]
        except CodetrError as error:
            return type(error)(*error.args)
        except MemoryError:
            return ResourceError(f"out of memory with {self.dataset.image_path(index)}. {_cure('memory')}")


def _collate_or_error(items: list[Item | CodetrError]) -> Batch | CodetrError:
    samples = _samples(items)
    return samples if isinstance(samples, CodetrError) else collate(samples)


def _pack_or_error(items: list[Item | CodetrError]) -> SharedBatch | CodetrError:
    samples = _samples(items)
    return samples if isinstance(samples, CodetrError) else pack(samples)


def _samples(items: list[Item | CodetrError]) -> list[Item] | CodetrError:
    """The samples, or the first error among them."""
    samples: list[Item] = []
    for item in items:
        if isinstance(item, CodetrError):
            return item
        samples.append(item)
    return samples


def _cure(trouble: str) -> str:
    """What a person can do about it."""
    if "SIGBUS" in trouble or "No space" in trouble:
        return (
            "Shared memory (/dev/shm) is full: free it, give a container more with docker run --shm-size=8g, or read "
            "without workers (--set data.workers=0)."
        )
    if "open files" in trouble:
        return "Allow more with ulimit -n 4096, or lower --set data.workers=2."
    if any(sign in trouble for sign in ("SIGKILL", "memory", "temporarily")):
        return (
            "SIGKILL usually means that the system ran out of memory: lower data.workers or data.file_cache_mb, "
            "or free memory."
            if "SIGKILL" in trouble
            else "Lower data.workers or data.file_cache_mb, or free memory."
        )
    return "Look at that image; `codetr prepare DIR` checks all."
