"""Starts the processes of a command on this node with torchrun's elastic agent.

When a process dies, all restart and continue with what was saved, a limited number of times. An error that the user
must fix (exit codes 2 to 6) causes no restart: it is reported once, and every node ends with it.
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

from codetr_cli.data.loading.worker_process import release_interrupts
from codetr_cli.distributed.elastic_agent import Agent
from codetr_cli.distributed.process_group import LAUNCH_ID, RESTART_REASON, RESTARTS
from codetr_cli.distributed.worker_errors import (
    ERROR_FOLDER,
    MAX_RESTARTS,
    TRAINING,
    Work,
    explained,
    stopped_at_once,
    write_error,
)
from codetr_cli.errors import CodetrError, ConfigError, ResourceError, StoppedError
from codetr_cli.runtime.devices import cpu_count
from codetr_cli.runtime.signals import STOPPING

RENDEZVOUS_S = 900  # timeout for all nodes to join


@dataclass(frozen=True)
class LaunchSpec:
    """How many processes to start where.

    Attributes:
        processes: on each node.
        nodes: number of nodes.
        endpoint: HOST:PORT of the rendezvous; None for one node.
        node: rank of this node; 0 hosts the rendezvous. None: decided by the endpoint's address.
        job: a name that all nodes of a launch share.
        max_restarts: number of restarts of all processes after one died.
        work: what the processes do.
    """

    processes: int
    nodes: int = 1
    endpoint: str | None = None
    node: int | None = None
    job: str = "codetr"
    max_restarts: int = MAX_RESTARTS
    work: Work = TRAINING

    @property
    def world_size(self) -> int:
        """Processes on all nodes."""
        return self.processes * self.nodes


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """Host and port.

    Raises:
        ConfigError: not of the form HOST:PORT.
    """
    host, _, port = endpoint.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(
            f"--rdzv-endpoint {endpoint} is not of the form HOST:PORT: give the name or address of one of the nodes "
            "and a free port on it, the same on all nodes, e.g. node1:29500"
        )
    return host.strip("[]"), int(port)


def launch(function: Callable[..., Any], arguments: Sequence[Any], spec: LaunchSpec) -> Any:
    """Runs `function(*arguments)` in the processes of a spec and waits for their end.

    A signal sent to this process is forwarded to those of this node; all decide together when to stop.

    Args:
        function: importable by name; it and the arguments are pickled.
        arguments: the same for every process of this node.
        spec: how many processes, and where.

    Returns:
        the result of rank 0; None on other nodes.

    Raises:
        CodetrError: the first error that a process raised, as it was raised there.
        ResourceError: a process ended without a message, e.g. killed when memory ran out, or a node did not join.
    """
    share_threads(spec.processes)
    with (
        tempfile.TemporaryDirectory(prefix="codetr-") as folder,
        _quiet_agent(),
        _forwarded_signals(spec.work) as received,
    ):
        os.environ[ERROR_FOLDER] = folder
        os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGQUIT"  # the others are forwarded and do not kill
        try:
            agent = _build_agent(spec, function, arguments, Path(folder), received)
            result = agent.run_workers()
        except RendezvousTimeoutError as error:
            raise ResourceError(
                f"not all of the {spec.nodes} nodes joined the rendezvous at {spec.endpoint} within "
                f"{RENDEZVOUS_S // 60} minutes: start the same command on each, and check that they reach that address"
            ) from error
        except RendezvousError as error:
            raise ResourceError(
                f"lost the rendezvous at {spec.endpoint}: {error} Check that this node runs the same command and that "
                "its port can be reached."
            ) from error
        finally:
            for name in (ERROR_FOLDER, LAUNCH_ID, RESTARTS, RESTART_REASON):
                os.environ.pop(name, None)
    for value in result.values():
        if isinstance(value, CodetrError):
            raise value
    return result.get(0)


def share_threads(processes: int) -> None:
    """Divides the cores among the processes started from here, unless OMP_NUM_THREADS is set."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cpu_count() // processes)))


def run_worker(function: Callable[..., Any], arguments: tuple[Any, ...], work: Work) -> Any:
    """The entry point of each process: runs the function, and writes an error for the launcher to read.

    A stop by a signal is no failure, so it is returned as a result.
    """
    parent = os.getppid()
    result: Any
    try:
        release_interrupts()
        result = function(*arguments)
    except StoppedError as stopped:
        result = stopped
    except KeyboardInterrupt:  # before the work could handle it; the launcher has it too
        os._exit(130)
    except Exception as caught:
        error = explained(caught, work)
        write_error(error)
        # Without the interpreter's shutdown: threads of the process group that still wait for others would abort it.
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(error.exit_code if isinstance(error, CodetrError) else 1)
    if os.getppid() != parent:
        # The launcher was killed: nobody reads the result queue, and the interpreter's shutdown would wait for that.
        os._exit(0)
    return result


def _build_agent(
    spec: LaunchSpec,
    function: Callable[..., Any],
    arguments: Sequence[Any],
    folder: Path,
    received: list[int],
) -> Agent:
    rendezvous: dict[str, Any] = {"local_addr": "localhost"}
    endpoint = None if spec.endpoint is None else split_endpoint(spec.endpoint)
    if endpoint is not None:
        rendezvous = {"local_addr": _address_towards(*endpoint)}
        if spec.node is not None:
            rendezvous["is_host"] = spec.node == 0
    parameters = RendezvousParameters(
        backend="c10d",
        endpoint=spec.endpoint or "localhost:0",
        run_id=f"{spec.job}-{uuid.uuid4().hex}" if spec.endpoint is None else spec.job,
        min_nodes=spec.nodes,
        max_nodes=spec.nodes,
        join_timeout=RENDEZVOUS_S,
        **rendezvous,
    )
    worker_spec = WorkerSpec(
        role=spec.work.name,
        local_world_size=spec.processes,
        entrypoint=run_worker,
        args=(function, tuple(arguments), spec.work),
        rdzv_handler=get_rendezvous_handler(parameters),
        max_restarts=spec.max_restarts,
        monitor_interval=0.1 if spec.nodes == 1 else 0.5,
        local_addr=rendezvous["local_addr"],
    )
    return Agent(worker_spec, nodes=spec.nodes, endpoint=endpoint, folder=folder, received=received, work=spec.work)


def _address_towards(host: str, port: int) -> str:
    """The address of this node towards another one: host names may not resolve elsewhere.

    Raises:
        ResourceError: the host name does not resolve.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)  # sends nothing
            return str(probe.getsockname()[0])
    except OSError as error:
        raise ResourceError(
            f"--rdzv-endpoint {host}:{port}: cannot reach {host} from this node ({error}); check the name"
        ) from error


@contextmanager
def _quiet_agent() -> Iterator[None]:
    """Silences the agent's own warnings and tracebacks: `launch` raises what matters."""
    # Both have handlers of their own.
    loggers = [logging.getLogger(name) for name in ("torch", "torch.distributed")]
    before = [(logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [logging.NullHandler()], False
    try:
        yield
    finally:
        for logger, (handlers, propagates) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagates


@contextmanager
def _forwarded_signals(work: Work) -> Iterator[list[int]]:
    """Forwards Ctrl-C, SIGTERM and SIGUSR1 to the started processes; stops at once where there are none yet.

    Yields:
        the numbers of the signals received so far.
    """
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        children = multiprocessing.active_children()
        if not children:
            raise stopped_at_once(number, work)
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
