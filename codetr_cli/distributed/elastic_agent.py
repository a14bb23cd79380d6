"""torchrun's elastic agent, with a decision which failures cause a restart and which end the work on all nodes."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import socket
import time
import uuid
from contextlib import suppress
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.rendezvous import TCPStore  # type: ignore[attr-defined]

from codetr_cli.data.loading.worker_process import interrupts_held
from codetr_cli.distributed.process_group import LAUNCH_ID, RESTART_REASON, RESTARTS
from codetr_cli.distributed.worker_errors import TRAINING, Work, error_from, error_of, stopped_at_once
from codetr_cli.errors import CodetrError

logger = logging.getLogger(__name__)

LEAVE_S = 15.0  # for the other nodes to read why the work ends
ERROR_DELAY_S = 3.0  # for the other processes of a node to write their errors when one dies


class Agent(LocalElasticAgent):
    """torchrun's agent: restarts after failures where that helps, and else ends all nodes with the same error.

    Args:
        spec: what to start.
        nodes: number of nodes.
        endpoint: host and port of the rendezvous, None for one node.
        folder: for the errors of the processes.
        received: numbers of the signals that this process received so far.
        work: what the processes do.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        *,
        nodes: int,
        endpoint: tuple[str, int] | None,
        folder: Path,
        received: list[int],
        work: Work = TRAINING,
    ) -> None:
        super().__init__(spec, DefaultLogsSpecs(log_dir=str(folder / "logs")), exit_barrier_timeout=60)
        self._nodes, self._endpoint = nodes, endpoint
        self._folder, self._received, self._work = folder, received, work
        self._processes: dict[int, Any] = {}
        self._starts = 0
        self._error: Exception | None = None
        self._node_store: Store | None = None

    def run_workers(self) -> dict[int, Any]:
        """Runs the processes, with restarts.

        Returns:
            the results of the processes of this node, by rank.

        Raises:
            Exception: what `launch` raises; RendezvousError where nodes do not join.
        """
        handler = self._worker_group.spec.rdzv_handler
        try:
            result: RunResult = self.run()
        except RendezvousError:
            elsewhere = self._error_of_other_node()
            if elsewhere is None:
                raise
            raise elsewhere from None
        finally:
            with suppress(Exception):
                handler.shutdown()
            self._wait_until_read()
        if result.is_failed() and self._error is not None:
            raise self._error
        return dict(result.return_values)

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        if self._received:
            raise stopped_at_once(self._received[0], self._work)
        # Otherwise the address of the workers' store is published in the first round only: a node that replaces a lost
        # one would wait for it.
        worker_group.spec.rdzv_handler._bootstrap_store_info = None  # type: ignore[attr-defined]
        super()._rendezvous(worker_group)
        round_store: Any = worker_group.store
        if worker_group.group_rank == 0:
            round_store.set(LAUNCH_ID, uuid.uuid4().hex)
        os.environ[LAUNCH_ID] = round_store.get(LAUNCH_ID).decode()
        if self._endpoint is not None and self._node_store is None:
            self._node_store = PrefixStore("end", TCPStore(*self._endpoint, is_master=False))

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        for path in self._folder.glob("*.json"):
            path.unlink()
        os.environ[RESTARTS] = str(self._starts)
        self._starts += 1
        if os.name == "posix":
            resource_tracker.ensure_running()  # started with the first process, it would release the signal
        with interrupts_held():
            pids: dict[int, Any] = super()._start_workers(worker_group)
        children = {child.pid: child for child in multiprocessing.active_children()}
        # A process that has ended already is found by the next check.
        self._processes = {worker.global_rank: children.get(pids[worker.local_rank]) for worker in worker_group.workers}
        return pids

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        elsewhere = self._error_of_other_node()
        if elsewhere is not None:
            self._error = elsewhere
            return self._give_up()
        exit_codes = self._exit_codes()
        if not exit_codes:
            result: RunResult = super()._monitor_workers(worker_group)
            if not result.is_failed():
                return result
            exit_codes = {rank: failure.exitcode for rank, failure in result.failures.items()}
        self._wait_for_errors()
        self._error, final = error_of(self._folder, self._exit_codes() or exit_codes, self._work)
        if self._received:
            self._error, final = stopped_at_once(self._received[0], self._work), True
        if final or self._remaining_restarts == 0:
            self._publish_error(self._error)
            return self._give_up()
        reason, most = str(self._error).rstrip("."), self._worker_group.spec.max_restarts
        os.environ[RESTART_REASON] = reason
        logger.warning(
            "%s. Restarting all processes, which continue %s (restart %d of at most %d).",
            *(reason, self._work.continues, most - self._remaining_restarts + 1, most),
        )
        self._error = None
        if self._nodes > 1:
            time.sleep(1.0)  # the failure here may follow from an error that another node is about to publish
        return RunResult(state=WorkerState.FAILED)

    def _give_up(self) -> RunResult:
        self._remaining_restarts = 0
        return RunResult(state=WorkerState.FAILED)

    def _stop_workers(self, *arguments: Any, **named: Any) -> None:  # torch 2.7 also gives whether it is a restart
        self._kill_workers()
        super()._stop_workers(*arguments, **named)

    def _shutdown(self, *arguments: Any, **named: Any) -> None:
        self._kill_workers()
        super()._shutdown(*arguments, **named)

    def _kill_workers(self) -> None:
        """Kills at once: processes that wait for a dead one cannot exit, and a frozen one does not react to signals."""
        for process in self._processes.values():
            if process is not None and process.is_alive():
                process.kill()

    def _exit_codes(self) -> dict[int, int]:
        """Exit codes of the processes that failed so far, by rank."""
        return {rank: process.exitcode for rank, process in self._processes.items() if process and process.exitcode}

    def _wait_for_errors(self) -> None:
        """Waits for the other processes: they fail a moment later, and their errors may have the cause."""
        deadline = time.monotonic() + ERROR_DELAY_S
        while time.monotonic() < deadline and any(p is not None and p.is_alive() for p in self._processes.values()):
            time.sleep(0.05)

    def _publish_error(self, error: Exception) -> None:
        if self._node_store is not None:
            known = type(error).__name__ if isinstance(error, CodetrError) else ""
            record = {"kind": known, "text": str(error), "host": socket.gethostname()}
            with suppress(Exception):
                self._node_store.set("error", json.dumps(record))

    def _error_of_other_node(self) -> Exception | None:
        """The error with which another node ended the work; None while there is none."""
        if self._node_store is None or self._error is not None:
            return None
        try:
            if not self._node_store.check(["error"]):
                return None
            record = json.loads(self._node_store.get("error"))
            self._node_store.add("readers", 1)
        except Exception:
            return None  # the rendezvous is gone; the agent notices that itself
        return error_from({**record, "text": f"{record['text'].rstrip('.')}. (Reported by {record['host']}.)"})

    def _wait_until_read(self) -> None:
        """Keeps the node that hosts the rendezvous alive until the others have read the error."""
        if self._node_store is None or self._error is None:
            return
        with suppress(Exception):
            deadline = time.monotonic() + LEAVE_S
            while time.monotonic() < deadline and self._node_store.add("readers", 0) < self._nodes - 1:
                time.sleep(0.1)
