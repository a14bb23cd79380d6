"""Starts the processes of a training on this machine, and on others with them, under torchrun's elastic agent.

When a process dies, all are started anew and continue from the newest checkpoint, a few times at most. What a person
has to mend (exit codes 2 to 6) is never tried again: it is told once, and every machine ends with it.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from torch.distributed.elastic.agent.server.api import WorkerSpec
from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousParameters, RendezvousTimeoutError
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from codetr_cli.distributed.elastic_agent import Agent
from codetr_cli.distributed.process_group import RESTART_REASON, ROUND, STARTS_BEFORE
from codetr_cli.distributed.worker_errors import NOTES, stopped_at_once, write_note
from codetr_cli.errors import CodetrError, ConfigError, ResourceError, StoppedError
from codetr_cli.runtime.environment import cpu_count
from codetr_cli.runtime.signals import STOPPING

MAX_RESTARTS = 3
GATHER_S = 900  # for all machines to come together


@dataclass(frozen=True)
class LaunchPlan:
    """How many processes are started where.

    Attributes:
        processes: on this machine.
        nodes: machines, each with as many processes.
        endpoint: HOST:PORT where the machines meet; None for one machine.
        node: number of this machine; 0 holds the meeting point. None finds out by the endpoint's address.
        job: a name that all machines of a training share.
        max_restarts: of all processes after the death of one.
    """

    processes: int
    nodes: int = 1
    endpoint: str | None = None
    node: int | None = None
    job: str = "codetr"
    max_restarts: int = MAX_RESTARTS

    @property
    def world_size(self) -> int:
        """All processes on all machines."""
        return self.processes * self.nodes


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """Host and port.

    Raises:
        ConfigError: not of the form HOST:PORT.
    """
    host, _, port = endpoint.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(
            f"--rdzv-endpoint {endpoint} is not of the form HOST:PORT: give the name or address of one of the machines "
            "and a free port there, the same on all machines, e.g. node1:29500"
        )
    return host.strip("[]"), int(port)


def launch(
    function: Callable[..., Any], arguments: Sequence[Any], plan: LaunchPlan, tell: Callable[[str], None]
) -> Any:
    """Runs `function(*arguments)` in the processes of a plan and waits for their end.

    A signal sent to this process reaches those of this machine; all decide together when to stop.

    Args:
        function: importable by name; it and the arguments are pickled.
        arguments: the same for every process of this machine.
        plan: how many and where.
        tell: called with a sentence when the processes are started anew.

    Returns:
        what the process of rank 0 returned; None on a machine that it does not run on.

    Raises:
        CodetrError: the first error that a process raised, as it was raised there.
        ResourceError: a process ended without a word, e.g. killed for lack of memory, or a machine did not come.
    """
    share_threads(plan.processes)
    with tempfile.TemporaryDirectory(prefix="codetr-") as folder, _quiet_agent(), _forwarded_signals() as received:
        os.environ[NOTES] = folder
        os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGQUIT"  # the others are forwarded, not answered with a kill
        try:
            agent = _build_agent(plan, function, arguments, Path(folder), received, tell)
            result = agent.run_to_the_end()
        except RendezvousTimeoutError as error:
            raise ResourceError(
                f"not all of the {plan.nodes} machines came to {plan.endpoint} within {GATHER_S // 60} minutes: "
                "start the same command on each, and check that they reach that address"
            ) from error
        except RendezvousError as error:
            raise ResourceError(
                f"lost the meeting point of the machines, {plan.endpoint}: {error} Check that the machine there runs "
                "the same command and that its port can be reached."
            ) from error
        finally:
            for name in (NOTES, ROUND, STARTS_BEFORE, RESTART_REASON):
                os.environ.pop(name, None)
    for value in result.values():
        if isinstance(value, CodetrError):
            raise value
    return result.get(0)


def share_threads(processes: int) -> None:
    """Lets processes started from here share the cores, unless the person has set OMP_NUM_THREADS."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cpu_count() // processes)))


def _enter(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """What each started process runs: the function, with errors written down for the launcher to read.

    A stop by a signal is no failure of one process but the end of all, so it travels as a result.
    """
    parent = os.getppid()
    result: Any
    try:
        result = function(*arguments)
    except StoppedError as stopped:
        result = stopped
    except Exception as error:
        write_note(error)
        # Not through the interpreter's end: threads of the process group that still wait for the others would abort it.
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(error.exit_code if isinstance(error, CodetrError) else 1)
    if os.getppid() != parent:
        # The launcher was killed; the agent's end of the result queue is gone and would be waited for in vain.
        os._exit(0)
    return result


def _build_agent(
    plan: LaunchPlan,
    function: Callable[..., Any],
    arguments: Sequence[Any],
    folder: Path,
    received: list[int],
    tell: Callable[[str], None],
) -> Agent:
    meeting: dict[str, Any] = {"local_addr": "localhost"}
    endpoint = None if plan.endpoint is None else split_endpoint(plan.endpoint)
    if endpoint is not None:
        meeting = {"local_addr": _address_towards(*endpoint)}
        if plan.node is not None:
            meeting["is_host"] = plan.node == 0
    parameters = RendezvousParameters(
        backend="c10d",
        endpoint=plan.endpoint or "localhost:0",
        run_id=f"{plan.job}-{uuid.uuid4().hex}" if plan.endpoint is None else plan.job,
        min_nodes=plan.nodes,
        max_nodes=plan.nodes,
        join_timeout=GATHER_S,
        **meeting,
    )
    spec = WorkerSpec(
        role="training",
        local_world_size=plan.processes,
        entrypoint=_enter,
        args=(function, tuple(arguments)),
        rdzv_handler=get_rendezvous_handler(parameters),
        max_restarts=plan.max_restarts,
        monitor_interval=0.1 if plan.nodes == 1 else 0.5,
        local_addr=meeting["local_addr"],
        event_log_handler="null",
    )
    return Agent(spec, nodes=plan.nodes, endpoint=endpoint, folder=folder, received=received, tell=tell)


def _address_towards(host: str, port: int) -> str:
    """This machine's address as another one sees it: not every machine's name is known to the others.

    Raises:
        ResourceError: nobody knows that host.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)  # sends nothing
            return str(probe.getsockname()[0])
    except OSError as error:
        raise ResourceError(
            f"--rdzv-endpoint {host}:{port}: this machine finds no way to {host} ({error}); check the name"
        ) from error


@contextmanager
def _quiet_agent() -> Iterator[None]:
    """Keeps the agent's own warnings and tracebacks away: what matters is raised by `launch`."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def _forwarded_signals() -> Iterator[list[int]]:
    """Hands Ctrl-C, SIGTERM and SIGUSR1 on to the started processes, or stops at once where there are none yet.

    Yields:
        the numbers of the signals received so far.
    """
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        children = multiprocessing.active_children()
        if not children:
            raise stopped_at_once(number)
        for child in children:
            if child.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(child.pid, number)

    before = {number: signal.signal(number, forward) for number in STOPPING}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
