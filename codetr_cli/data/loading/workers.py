"""Batches from worker processes that may crash, hang, or run out of shared memory.

A worker that dies is replaced and reading continues at the next batch: batches depend on seed, epoch and index only, so
the training computes the same. Other failures become a `ResourceError` that names the worker, its current image, and
what to do.
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

from codetr_cli.data.batch import Batch, collate
from codetr_cli.data.loading.transport import SharedBatch, pack
from codetr_cli.data.loading.worker_process import (
    exiting_flag,
    init_worker,
    interrupts_held,
    no_worker_count_warning,
    raise_file_limit,
    restore_sigchld,
    start_method,
    torch_sigchld,
)
from codetr_cli.data.targets import Target
from codetr_cli.errors import CodetrError, ResourceError

logger = logging.getLogger(__name__)

Key = int | tuple[int, int]
Item = tuple[np.ndarray, Target]

MAX_REPLACEMENTS = 3
"""How often dead workers are replaced within one epoch."""

POLL_S = 5.0
"""Interval of checks for dead workers, where the system does not signal them."""

TIMEOUT_S = 600.0
"""Time without a batch after which workers are considered hung."""


class ImageSet(Protocol):
    """The samples that batches are made of."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Key) -> Item: ...

    def image_path(self, index: int) -> Path:
        """The path of an image, for messages."""


class BatchReader:
    """Reads the batches of an order; every iteration reads all of them.

    Logs a warning when it replaces a dead worker, and when there is no shared memory. Iterating raises a DatasetError
    for an image that cannot be read, and a ResourceError if workers died repeatedly, hang, or cannot be started.

    Args:
        dataset: the samples.
        order: lists of keys, one a batch; every iteration over it must return the same, unless its owner changes it.
        workers: processes that read ahead; 0 reads in this process.
        pin_memory: return batches in page-locked memory.
        keep_workers: keep the workers for the next iteration.
        timeout_s: see `TIMEOUT_S`.
    """

    def __init__(
        self,
        dataset: ImageSet,
        order: Iterable[Sequence[Key]],
        *,
        workers: int,
        pin_memory: bool = False,
        keep_workers: bool = False,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.dataset, self.workers = dataset, workers
        self.timeout_s = timeout_s
        self._order = _RemainingOrder(order)
        self._current_index = multiprocessing.RawArray(ctypes.c_int64, max(1, workers))  # of each worker
        self._shm_warned = False
        self._stream: Any = None  # PyTorch's iterator over the batches of the current workers
        with no_worker_count_warning():
            self._loader: DataLoader[Item | CodetrError] = DataLoader(
                _ErrorsAsItems(dataset, self._current_index),
                batch_sampler=self._order,  # type: ignore[arg-type]
                collate_fn=functools.partial(_collated_or_error, pack if workers else collate),
                num_workers=workers,
                worker_init_fn=functools.partial(init_worker, exiting_flag()) if workers else None,
                multiprocessing_context=start_method() if workers else None,
                persistent_workers=keep_workers and workers > 0,
                pin_memory=pin_memory,
                timeout=POLL_S if workers else 0,
            )

    @property
    def processes(self) -> list[BaseProcess]:
        """The current worker processes."""
        return list(self._stream._workers) if self.workers and self._stream is not None else []

    @property
    def _outstanding(self) -> int:
        """Number of batches that were requested from workers and not yet received."""
        return len(self._stream._task_info) if self.processes else 0

    def __iter__(self) -> Iterator[Batch]:
        """The batches of the current order."""
        if self._outstanding:  # of an iteration that was not finished
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
                deaths += bool(died.description)
                if deaths > MAX_REPLACEMENTS:
                    self.close()
                    raise self._too_many_deaths(died.description) from died
                if died.description:
                    logger.warning(
                        "%s. It was replaced, and reading continues with the next batch: no batch is lost. %s",
                        died.description,
                        _advice(died.description),
                    )
                self.close()
                started = False
                continue
            except CodetrError:
                self.close()  # now: the garbage collector would end workers only after seconds
                raise
            delivered += 1
            yield batch

    def _start(self, skip: int) -> None:
        """Starts workers, or reuses the kept ones, after the first `skip` batches of the order.

        Raises:
            _WorkerDiedError: one of the kept workers has died.
            ResourceError: workers cannot be started.
        """
        if self._loader.persistent_workers and self._dead():
            raise _WorkerDiedError(self._death())
        self._order.skip = skip
        if self.workers:
            raise_file_limit()
        previous = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
        before = multiprocessing.active_children()
        try:
            with no_worker_count_warning(), interrupts_held():
                self._stream = iter(self._loader)
        except OSError as error:
            for worker in multiprocessing.active_children():
                if worker not in before:
                    worker.kill()  # the exit of this process would wait for those that were started
            raise ResourceError(
                f"cannot start {self.workers} data workers: {error.strerror}. {_advice(error.strerror or '')}"
            ) from error
        except RuntimeError as error:
            if not self._dead():
                raise
            raise _WorkerDiedError(self._death()) from error
        finally:
            restore_sigchld(previous)

    def _next(self) -> Batch:
        """The next batch; waits for it up to the timeout.

        Raises:
            StopIteration: there is none.
            _WorkerDiedError: workers have to be replaced first.
        """
        started = time.monotonic()
        while True:
            try:
                with torch_sigchld():
                    if self._dead():
                        raise _WorkerDiedError(self._death())
                    item = next(self._stream)
                if isinstance(item, SharedBatch):  # opened out of the handler's reach: it would leave a socket open
                    self._warn_of_shm(item.shm_error)
                    return item.open()
            except (RuntimeError, OSError, EOFError) as error:
                text = str(error)
                if self._dead(wait_s=1.0 if isinstance(error, OSError | EOFError) else 0.0):
                    raise _WorkerDiedError(self._death()) from error
                if text.startswith("DataLoader worker (pid"):
                    # A worker of another reader. The signal interrupted PyTorch, which may have lost a batch.
                    raise _WorkerDiedError("") from error
                if any(sign in text for sign in ("Too many open files", "ancdata")):
                    raise ResourceError(
                        f"too many open files to receive batches from data workers. {_advice('open files')}"
                    ) from error
                if not text.startswith("DataLoader timed out"):
                    raise
                if time.monotonic() - started >= self.timeout_s:
                    raise self._stalled() from error
                continue
            if isinstance(item, CodetrError):
                raise item
            return item

    def _dead(self, wait_s: float = 0.0) -> list[BaseProcess]:
        """Workers that ended unexpectedly, after waiting some time for the first."""
        until = time.monotonic() + wait_s
        while True:
            dead = [worker for worker in self.processes if worker.exitcode not in (None, 0)]
            if dead or time.monotonic() >= until:
                return dead
            time.sleep(0.05)

    def _death(self) -> str:
        """How the first dead worker ended, a sentence without full stop."""
        dead = self._dead()[0]
        code = dead.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        when = "while reading" if self._outstanding else "after reading"
        return f"a data worker (process {dead.pid}) {how} {when} {self._image_of(self.processes.index(dead))}"

    def _image_of(self, worker: int) -> str:
        index = self._current_index[worker]
        return str(self.dataset.image_path(index)) if index >= 0 else "no image yet"

    def _stalled(self) -> ResourceError:
        named = ", ".join(
            f"process {worker.pid} at {self._image_of(number)}" for number, worker in enumerate(self.processes)
        )
        return ResourceError(
            f"no data for {self.timeout_s:.0f} seconds: the data workers do not respond ({named}). Check the "
            "disk or network drive and free memory; if reading is only slow, raise --set train.timeout_minutes. The "
            "same command continues from the newest checkpoint"
        )

    def _too_many_deaths(self, description: str) -> ResourceError:
        return ResourceError(
            f"{description}. That was the {MAX_REPLACEMENTS + 1}th within one epoch. {_advice(description)} "
            "The same command continues from the newest checkpoint"
        )

    def close(self) -> None:
        """Terminates all workers; the next iteration starts new ones."""
        if not self.processes:
            return
        for worker in self.processes:
            worker.kill()
        for worker in self.processes:
            worker.join(timeout=POLL_S)  # one that waits for an unavailable drive cannot even be killed
        # A killed worker may have left locks that PyTorch would wait for.
        closing = threading.Thread(target=self._stream._shutdown_workers, daemon=True)
        closing.start()
        closing.join(timeout=2 * POLL_S)
        self._loader._iterator = self._stream = None

    def _warn_of_shm(self, error: str | None) -> None:
        if error and not self._shm_warned:
            self._shm_warned = True
            logger.warning(
                "no shared memory for batches (%s): data workers send them through pipes, which is slower but gives "
                "the same results. Free /dev/shm, or give a container more with docker run --shm-size=8g",
                error,
            )


class _WorkerDiedError(Exception):
    """A worker died; the description is empty if it was another reader's."""

    def __init__(self, description: str) -> None:
        super().__init__(description)
        self.description = description


class _RemainingOrder:
    """An order without its first batches."""

    def __init__(self, order: Iterable[Sequence[Key]]) -> None:
        self.order = order
        self.skip = 0

    def __iter__(self) -> Iterator[Sequence[Key]]:
        return itertools.islice(iter(self.order), self.skip, None)

    def __len__(self) -> int:
        return len(self.order) - self.skip  # type: ignore[arg-type]


class _ErrorsAsItems(Dataset[Item | CodetrError]):
    """Returns an error that the user can fix instead of raising it, and records the index that each worker reads.

    DataLoader would re-raise it from a worker with that worker's traceback as its message.
    """

    def __init__(self, dataset: ImageSet, current_index: Any) -> None:
        self.dataset, self.current_index = dataset, current_index
        for worker in range(len(current_index)):
            current_index[worker] = -1

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> Item | CodetrError:
        worker = get_worker_info()
        index = key[1] if isinstance(key, tuple) else key
        self.current_index[worker.id if worker else 0] = index
        try:
            return self.dataset[key]
        except CodetrError as error:
            return type(error)(*error.args)
        except MemoryError:
            return ResourceError(f"out of memory with {self.dataset.image_path(index)}. {_advice('memory')}")


def _collated_or_error(
    collate: Callable[[list[Item]], Batch | SharedBatch], items: list[Item | CodetrError]
) -> Batch | SharedBatch | CodetrError:
    """The batch, or the first error among its items."""
    samples = [item for item in items if not isinstance(item, CodetrError)]
    if len(samples) == len(items):
        return collate(samples)
    return next(item for item in items if isinstance(item, CodetrError))


def _advice(problem: str) -> str:
    """How to fix a problem of the workers."""
    if "SIGBUS" in problem or "No space" in problem:
        return (
            "Shared memory (/dev/shm) is full: free it, give a container more with docker run --shm-size=8g, or read "
            "without workers (--set data.workers=0)."
        )
    if "open files" in problem:
        return "Allow more with ulimit -n 4096, or lower --set data.workers=2."
    if any(sign in problem for sign in ("SIGKILL", "memory", "temporarily")):
        cause = "SIGKILL usually means that the system ran out of memory: l" if "SIGKILL" in problem else "L"
        return f"{cause}ower data.workers, or free memory."
    return "Check that image; `codetr prepare DIR` checks all."
