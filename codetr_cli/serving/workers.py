"""Several processes on one port: each has a detector, a device and a queue; the system divides the connections."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from codetr_cli.distributed.process_group import launched_rank, launched_world_size
from codetr_cli.errors import ConfigError, ResourceError
from codetr_cli.inference.detector import Detector
from codetr_cli.runtime.devices import choose_device
from codetr_cli.serving.connections import bind
from codetr_cli.serving.options import METRICS_FOLDER, ServeOptions
from codetr_cli.serving.supervisor import report_ready

if TYPE_CHECKING:
    from codetr_cli.serving.run import Running


@dataclass(frozen=True)
class ServeJob:
    """What a server does, in each of its processes.

    Attributes:
        weights: as `Detector.load` takes them.
        overrides: of settings.
        precision: of the network.
        options: how it answers.
        threads: of the network on a CPU, in each process; None: PyTorch's choice.
    """

    weights: str
    overrides: list[str]
    precision: str
    options: ServeOptions
    threads: int | None = None

    def load(self, device: torch.device) -> Detector:
        """The detector of a process."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        return Detector.load(self.weights, device, self.precision, overrides=self.overrides)


@dataclass(frozen=True)
class Placement:
    """The processes of a server.

    Attributes:
        device: of the command; with several GPUs each process has one of them.
        processes: how many.
    """

    device: torch.device
    processes: int


def place_workers(device: str, *, gpus: int | None, workers: int | None) -> Placement:
    """The processes of a server.

    Args:
        device: as given.
        gpus: number of GPUs, one process each at least; None: one device.
        workers: number of processes; None: one for each GPU.

    Raises:
        ConfigError: options that exclude each other.
        ResourceError: more GPUs than there are, or a system that cannot share a port.
    """
    if gpus is not None and device not in ("auto", "cuda"):
        raise ConfigError(f"--gpus {gpus} and --device {device} exclude each other: remove --device")
    if gpus is not None and workers is not None and workers < gpus:
        raise ConfigError(f"--workers {workers} is fewer than --gpus {gpus}: each GPU needs a process")
    chosen = choose_device("cuda" if gpus is not None else device)
    if gpus is not None and gpus > torch.cuda.device_count():
        available = torch.cuda.device_count()
        raise ResourceError(f"--gpus {gpus}: this machine has {available}, use --gpus {available}")
    processes = workers or gpus or 1
    if processes > 1 and sys.platform != "linux":
        raise ResourceError(
            f"{processes} processes share a port on Linux only: start one process, or several on ports of their own "
            "behind a proxy"
        )
    return Placement(chosen, processes)


@contextmanager
def shared_port(job: ServeJob, placement: Placement) -> Iterator[ServeJob]:
    """Around several processes: holds their port and the folder of their metrics.

    Yields:
        the job with the number of the port.

    Raises:
        ConfigError, ResourceError: as `connections.bind`.
    """
    if placement.processes == 1:
        yield job
        return
    bind(job.options).close()  # nobody else may have it; sockets that share a port would not notice
    with bind(job.options, shared=True) as held, tempfile.TemporaryDirectory(prefix="codetr-serve-") as folder:
        before = os.environ.get(METRICS_FOLDER)
        os.environ[METRICS_FOLDER] = folder
        try:
            yield replace(job, options=replace(job.options, port=held.getsockname()[1]))
        finally:
            os.environ.pop(METRICS_FOLDER)
            if before is not None:
                os.environ[METRICS_FOLDER] = before


def serve_here(
    job: ServeJob, device: torch.device, *, gpus: int | None, announce: Callable[[Running, int], None]
) -> None:
    """Serves in this process until a signal.

    Args:
        job: what to do.
        device: of the command.
        gpus: that the processes share; None: all use `device`.
        announce: called once, by the first process that is ready, with what runs and the number of processes.

    Raises:
        StoppedError: a signal stopped it.
    """
    from codetr_cli.serving.run import ServerProcess  # after the folder of the metrics is known

    rank, processes = launched_rank(), launched_world_size() or 1
    if gpus is not None:
        device = torch.device("cuda", rank % gpus)
    bound = bind(job.options, shared=processes > 1)
    ServerProcess(
        lambda: job.load(device),
        job.options,
        bound,
        on_ready=lambda running: announce(running, processes) if report_ready() else None,
        listen_early=processes == 1,
        end_unhealthy=processes > 1,
    ).run()
