"""torchrun's elastic agent, told which deaths to try again after and which end a training on all its machines."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.rendezvous import TCPStore  # type: ignore[attr-defined]

from codetr_cli.distributed.process_group import RESTART_REASON, ROUND, STARTS_BEFORE
from codetr_cli.distributed.worker_errors import error_from, error_of, stopped_at_once
from codetr_cli.errors import CodetrError

LEAVE_S = 15.0  # for the other machines to hear why the training ends
LAST_WORDS_S = 3.0  # for the other processes of a machine to say what they saw when one dies


class Agent(LocalElasticAgent):
    """torchrun's agent, which tells a death that can be tried again from one that cannot, on all machines alike.

    Args:
        spec: what to start.
        nodes: machines of the training.
        endpoint: host and port where they meet, None for one machine.
        folder: of the processes' notes.
        received: numbers of the signals that this process got so far.
        tell: called with a sentence before a restart.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        *,
        nodes: int,
        endpoint: tuple[str, int] | None,
        folder: Path,
        received: list[int],
        tell: Callable[[str], None],
    ) -> None:
        super().__init__(spec, DefaultLogsSpecs(log_dir=str(folder / "logs")), exit_barrier_timeout=60)
        self._nodes, self._endpoint = nodes, endpoint
        self._folder, self._received, self._tell = folder, received, tell
        self._processes: dict[int, Any] = {}
        self._starts = 0
        self._error: Exception | None = None
        self._machines: Store | None = None

    def run_to_the_end(self) -> dict[int, Any]:
        """Runs the processes, again where that helps.

        Returns:
            what each process of this machine returned, by rank.

        Raises:
            Exception: what `launch` raises; RendezvousError where machines do not come together.
        """
        handler = self._worker_group.spec.rdzv_handler
        try:
            result: RunResult = self.run()
        except RendezvousError:
            elsewhere = self._error_elsewhere()
            if elsewhere is None:
                raise
            raise elsewhere from None
        finally:
            with suppress(Exception):
                handler.shutdown()
            self._wait_until_heard()
        if result.is_failed() and self._error is not None:
            raise self._error
        return dict(result.return_values)

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        if self._received:
            raise stopped_at_once(self._received[0])
        # Otherwise the address of the processes' own store is told in the first round only: a machine that takes the
        # place of a lost one would wait for it.
        worker_group.spec.rdzv_handler._bootstrap_store_info = None  # type: ignore[attr-defined]
        super()._rendezvous(worker_group)
        round_store: Any = worker_group.store
        if worker_group.group_rank == 0:
            round_store.set(ROUND, uuid.uuid4().hex)
        os.environ[ROUND] = round_store.get(ROUND).decode()
        if self._endpoint is not None and self._machines is None:
            self._machines = PrefixStore("end", TCPStore(*self._endpoint, is_master=False))

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        for path in self._folder.glob("*.json"):
            path.unlink()
        os.environ[STARTS_BEFORE] = str(self._starts)
        self._starts += 1
        pids: dict[int, Any] = super()._start_workers(worker_group)
        children = {child.pid: child for child in multiprocessing.active_children()}
        # One that is gone already has failed; the next look at all of them tells.
        self._processes = {worker.global_rank: children.get(pids[worker.local_rank]) for worker in worker_group.workers}
        return pids

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        elsewhere = self._error_elsewhere()
        if elsewhere is not None:
            self._error = elsewhere
            return self._give_up()
        deaths = self._deaths()
        if not deaths:
            result: RunResult = super()._monitor_workers(worker_group)
            if not result.is_failed():
                return result
            deaths = {rank: failure.exitcode for rank, failure in result.failures.items()}
        self._wait_for_last_words()
        self._error, final = error_of(self._folder, self._deaths() or deaths)
        if self._received:
            self._error, final = stopped_at_once(self._received[0]), True
        if final or self._remaining_restarts == 0:
            self._tell_machines(self._error)
            return self._give_up()
        reason, most = str(self._error).rstrip("."), self._worker_group.spec.max_restarts
        os.environ[RESTART_REASON] = reason
        self._tell(
            f"{reason}. Starting all processes again from the newest checkpoint (restart "
            f"{most - self._remaining_restarts + 1} of at most {most})."
        )
        self._error = None
        if self._nodes > 1:
            time.sleep(1.0)  # what this machine saw may follow from an error that another is about to tell
        return RunResult(state=WorkerState.FAILED)

    def _give_up(self) -> RunResult:
        self._remaining_restarts = 0
        return RunResult(state=WorkerState.FAILED)

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        """Kills at once: processes that wait for a dead one cannot end in order, and a frozen one does not listen."""
        for process in self._processes.values():
            if process is not None and process.is_alive():
                process.kill()
        super()._stop_workers(worker_group)

    def _shutdown(self, *arguments: Any, **named: Any) -> None:
        """Leaves no process behind, whatever the agent's own way of asking them to end is."""
        for process in self._processes.values():
            if process is not None and process.is_alive():
                process.kill()
        super()._shutdown(*arguments, **named)

    def _deaths(self) -> dict[int, int]:
        """Exit codes of the processes that failed so far, by rank."""
        return {rank: process.exitcode for rank, process in self._processes.items() if process and process.exitcode}

    def _wait_for_last_words(self) -> None:
        """One death makes the others fail a moment later; their notes may tell more, and so may their exit codes."""
        deadline = time.monotonic() + LAST_WORDS_S
        while time.monotonic() < deadline and any(p is not None and p.is_alive() for p in self._processes.values()):
            time.sleep(0.05)

    def _tell_machines(self, error: Exception) -> None:
        if self._machines is not None:
            known = type(error).__name__ if isinstance(error, CodetrError) else ""
            note = {"kind": known, "text": str(error), "host": socket.gethostname()}
            with suppress(Exception):
                self._machines.set("error", json.dumps(note))

    def _error_elsewhere(self) -> Exception | None:
        """What another machine ended the training with; None while none has."""
        if self._machines is None or self._error is not None:
            return None
        try:
            if not self._machines.check(["error"]):
                return None
            note = json.loads(self._machines.get("error"))
            self._machines.add("heard", 1)
        except Exception:
            return None  # the meeting point is gone; the agent finds that out itself
        return error_from({**note, "text": f"{note['text'].rstrip('.')}. (Told by {note['host']}.)"})

    def _wait_until_heard(self) -> None:
        """The machine with the meeting point must not leave before the others know why."""
        if self._machines is None or self._error is None:
            return
        with suppress(Exception):
            deadline = time.monotonic() + LEAVE_S
            while time.monotonic() < deadline and self._machines.add("heard", 0) < self._nodes - 1:
                time.sleep(0.1)
