"""A list of independent units of work, divided among the processes of a group, with the results in part files.

Each process works on its own units. A process that dies loses what it did since it last wrote a part, a few seconds:
after the restart the units that are in no part are divided again, also among another number of processes.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed.distributed_c10d import Store

from codetr_cli.distributed import process_group
from codetr_cli.distributed.part_files import PartFiles
from codetr_cli.distributed.part_frames import Part
from codetr_cli.distributed.unit_set import UnitSet
from codetr_cli.distributed.worker_errors import Work
from codetr_cli.errors import CheckpointError, ResourceError, StoppedError
from codetr_cli.runtime.signals import NAMES, StopRequest

logger = logging.getLogger(__name__)

FLUSH_S = 5.0  # between two parts of a process
FLUSH_UNITS = 500  # in a part at most: a fast GPU would collect gigabytes of masks in that time
SNAPSHOT_S = 0.5  # between results that can be used before all are there, at first
SNAPSHOT_SHARE = 0.02  # of the time, at most, for them
STOP_S = 10.0  # for the last parts of the other processes when all stop
POLL_S = 0.1
STALL_S = 3600.0  # without any result while others have finished: a process hangs
VISIBLE_S = 60.0  # for the files of other nodes to appear on a network disk


@dataclass(frozen=True)
class ProcessRate:
    """What one process has done.

    Attributes:
        images: their number.
        seconds: wall time that it took.
    """

    images: int
    seconds: float


class SharedWork:
    """Units of work 0, 1, ... and their results.

    Args:
        parts: in the output folder.
        sizes: number of images of each unit, for the progress.
        pack: encodes the results of several units.
        work: what the processes do, for messages.
        stop: whether a signal requested a stop.
        store: of the process group; None in a single process.

    Attributes:
        parts: as given.
        progress: called in the process of rank 0 with the number of images that any process finished since the last
            call.
        snapshot: writes what the parts have so far as results that can be used; called in the process of rank 0 after
            the first unit, then from time to time, and when the command stops. None: there is no such thing.
        images_before: done by an earlier start of the command.
        images: done by all processes of this start, once `finish` has returned.
        seconds: wall time from `start` to then.
        rates: of each process, by rank; once `finish` has returned.
    """

    def __init__(
        self,
        parts: PartFiles,
        sizes: Sequence[int],
        pack: Callable[[list[Any]], bytes],
        *,
        work: Work,
        stop: StopRequest,
        store: Store | None,
    ) -> None:
        self.parts, self._sizes, self._pack = parts, sizes, pack
        self._work, self._stop, self._store = work, stop, store
        self.progress: Callable[[int], object] = lambda images: None
        self.snapshot: Callable[[], object] | None = None
        self._next_snapshot = 0.0
        self._unlisted = False  # there are results that are in no snapshot
        self._pending: dict[int, Any] = {}
        self._failed: dict[int, Any] = {}
        self._flushed = self._started = time.monotonic()
        self._done = self._done_alone = 0
        self.images_before, self.images, self.seconds = 0, 0, 0.0
        self.rates: list[ProcessRate] = []

    def start(
        self,
        request: str,
        choose: Callable[[], Path] | None = None,
        is_complete: Callable[[int], bool] = lambda unit: True,
    ) -> UnitSet:
        """Opens the folder; all processes call it together.

        Args:
            request: name of the request, see `part_files.request_digest`.
            choose: gives the output folder in the process of rank 0, see `PartFiles.open`.
            is_complete: whether a unit that is in a part has all its results elsewhere, too; else it is done again.

        Returns:
            the units that an earlier start has done.

        Raises:
            ConfigError: another command writes into the folder.
            ResourceError: the folder cannot be read or written.
        """
        done = UnitSet(len(self._sizes))
        if process_group.is_main():
            self.parts.open(request, choose)
            for units in self.parts.units():
                done.add(unit for unit in units if unit not in done and is_complete(unit))
        done, self.parts.folder = process_group.from_main((done, self.parts.folder))
        self.images_before = sum(self._sizes[unit] for unit in done)
        if done:
            logger.info("%d of %d images were done before", self.images_before, sum(self._sizes))
        self._flushed = self._started = time.monotonic()
        self._next_snapshot = self._started + (FLUSH_S if done else 0.0)
        return done

    def add(self, unit: int, result: Any, *, failed: bool = False) -> None:
        """Records the result of a unit; one that failed is tried again when a stopped command continues.

        Raises:
            StoppedError: a signal came; the results so far are written.
            ResourceError: no space left, or the folder cannot be written.
        """
        (self._failed if failed else self._pending)[unit] = result
        self._unlisted = True
        self._advance(self._sizes[unit])
        now = time.monotonic()
        snapshot = self.snapshot is not None and process_group.is_main() and now >= self._next_snapshot
        if snapshot or now - self._flushed > FLUSH_S or len(self._pending) + len(self._failed) >= FLUSH_UNITS:
            self.flush()
        if snapshot:
            self._write_snapshot()
        self._check_stop()

    def _write_snapshot(self) -> None:
        """Writes the results so far; the next time after so long that this takes a small part of the time."""
        if self.snapshot is None or not process_group.is_main():
            return
        started = time.monotonic()
        self.snapshot()
        self._unlisted = False
        ended = time.monotonic()
        early = min(FLUSH_S, max(SNAPSHOT_S, (ended - self._started) / 10))
        self._next_snapshot = ended + max(early, (ended - started) / SNAPSHOT_SHARE)

    def flush(self) -> None:
        """Writes the results since the last part."""
        for results, failed in ((self._pending, False), (self._failed, True)):
            units = sorted(results)
            if units:
                self.parts.add(Part(units, self._pack([results[unit] for unit in units]), failed=failed))
        self._pending, self._failed, self._flushed = {}, {}, time.monotonic()

    def finish(self) -> Iterable[Part]:
        """Writes the last part; the process of rank 0 waits for the others, and they for it to `close` or to stop.

        Where it fails they stay until they are ended: a node without processes would not take part in a restart.

        Returns:
            all parts in the process of rank 0, one by one in the order of their first units, each time that they are
            iterated; nothing in the others, which have nothing more to do.

        Raises:
            StoppedError: a signal came; the results so far are written.
            ResourceError: a process hangs, or the parts of another node are not visible here.
        """
        self.flush()
        self._report_rate()
        if self._store is not None:
            self._store.add(f"finished/{process_group.rank()}", 1)
        if not process_group.is_main():
            self._wait_for_main()
            return []
        self._wait_for_others()
        self.seconds = time.monotonic() - self._started
        self.images = sum(self._sizes) - self.images_before
        self.rates = [self._rate(rank) for rank in range(process_group.world_size())]
        self._wait_for_parts()
        return _AllParts(self.parts, len(self._sizes))

    def _report_rate(self) -> None:
        self._rate_alone = ProcessRate(self._done_alone, time.monotonic() - self._started)
        if self._store is not None:
            self._store.add(f"images/{process_group.rank()}", self._rate_alone.images)
            self._store.add(f"milliseconds/{process_group.rank()}", round(self._rate_alone.seconds * 1000))

    def _rate(self, rank: int) -> ProcessRate:
        if self._store is None:
            return self._rate_alone
        return ProcessRate(self._store.add(f"images/{rank}", 0), self._store.add(f"milliseconds/{rank}", 0) / 1000)

    def close(self, *, complete: bool, keep: bool = False) -> None:
        """Releases the folder.

        Args:
            complete: the command has ended without an error, and the other processes may end, too. Otherwise the
                results of this process that are in no part are kept as far as possible.
            keep: keep the parts although the work is complete: what comes after it failed.
        """
        if not complete:
            with suppress(ResourceError, OSError):
                self.flush()
                if self._unlisted:
                    self._write_snapshot()
        self.parts.close(remove=complete and not keep)
        if complete:
            self._release_others()

    def _advance(self, images: int) -> None:
        """Adds to the number of images done by all processes, and reports it in the process of rank 0."""
        self._done_alone += images
        done = self._done_alone if self._store is None else self._store.add("done", images)
        if process_group.is_main():
            self.progress(done - self._done)
        self._done = done

    def _release_others(self) -> None:
        if self._store is not None and process_group.is_main():
            self._store.add("closed", 1)

    def _end_together(self) -> None:
        """At a stop, the process of rank 0 waits for the last parts of the others, and they for it to use them."""
        if self._store is not None:
            self._store.add(f"stopped/{process_group.rank()}", 1)
        if not process_group.is_main():
            self._wait_for_main()
            return
        deadline = time.monotonic() + STOP_S
        waiting = list(range(process_group.world_size()))
        while self._store is not None and waiting and time.monotonic() < deadline:
            ended = {rank for rank in waiting for how in ("stopped", "finished") if self._store.add(f"{how}/{rank}", 0)}
            waiting = [rank for rank in waiting if rank not in ended]
            time.sleep(POLL_S if waiting else 0.0)
        self._advance(0)
        try:
            self._write_snapshot()
        finally:
            self._release_others()

    def _wait_for_main(self) -> None:
        # The store may end with the process of rank 0.
        with suppress(RuntimeError):
            while self._store is not None and not self._store.add("closed", 0):
                time.sleep(POLL_S)

    def _wait_for_others(self) -> None:
        waiting = list(range(process_group.world_size()))
        last_change, last_done = time.monotonic(), self._done
        while self._store is not None:
            waiting = [rank for rank in waiting if not self._store.add(f"finished/{rank}", 0)]
            if not waiting:
                return
            self._check_stop()
            self._advance(0)
            if self._done != last_done:
                last_change, last_done = time.monotonic(), self._done
            if time.monotonic() - last_change > STALL_S:
                numbers = ", ".join(map(str, waiting))
                raise ResourceError(
                    f"{self._work.name} process {numbers} has done nothing for {STALL_S / 60:.0f} minutes and was "
                    f"given up. The same command continues {self._work.continues}."
                )
            time.sleep(POLL_S)

    def _wait_for_parts(self) -> None:
        deadline = time.monotonic() + VISIBLE_S
        while True:
            found = UnitSet(len(self._sizes))
            for units in self.parts.units():
                found.add(units)
            missing = sum(self._sizes[unit] for unit in found.missing())
            if not missing:
                return
            if time.monotonic() > deadline:
                raise ResourceError(
                    f"the results of {missing:,} images are not in {self.parts.folder}: the folder must be on a disk "
                    "that all nodes see under the same path. Give such a folder with --out"
                )
            time.sleep(1.0)

    def _check_stop(self) -> None:
        number = self._stop.number or 0
        if self._store is not None:
            # The other processes stop too, also where only one got the signal.
            number = self._store.add("stop", 0) or (self._store.add("stop", number) if number else 0)
        if not number:
            return
        self.flush()
        self._advance(0)
        self._end_together()
        raise StoppedError(
            f"stopped: {self.images_before + self._done:,} of {sum(self._sizes):,} images are done and kept in "
            f"{self.parts.folder}. The same command continues with the others.",
            self._stop.number or int(signal.SIGTERM),
        )


class _AllParts:
    """The parts of all units, read from the disk as they are iterated.

    Args:
        parts: the files.
        count: of the units.
    """

    def __init__(self, parts: PartFiles, count: int) -> None:
        self._parts, self._count = parts, count

    def __iter__(self) -> Iterator[Part]:
        found = UnitSet(self._count)
        for part in self._parts.read():
            found.add(part.units)
            yield part
        if len(found) < self._count:
            raise ResourceError(
                f"{self._count - len(found):,} results in {self._parts.folder} can no longer be read: check the disk, "
                "then run the same command again, which computes them again"
            )


def agree_on_weights(before: str, after: str) -> None:
    """Ensures that all processes have loaded the same weights; all call it together.

    Args:
        before: name of a request with the weights, see `part_files.request_digest`, from before they were loaded.
        after: the same from afterwards.

    Raises:
        CheckpointError: the file was replaced meanwhile.
    """
    if process_group.from_main((before, after)) != (after, after) or before != after:
        raise CheckpointError(
            "the checkpoint was replaced while it was being loaded: run the same command again, with a checkpoint that "
            "does not change"
        )


def stop_request(close_progress: Callable[[], None]) -> StopRequest:
    """Ctrl-C, SIGTERM and SIGUSR1 as a request to stop after the current images.

    Args:
        close_progress: restores the terminal before the process ends at the second signal.
    """
    return StopRequest(_log_stop, close_progress)


def _log_stop(number: int) -> None:
    logger.info("%s: finishing the current images. Press Ctrl-C again to quit immediately.", NAMES[number])
