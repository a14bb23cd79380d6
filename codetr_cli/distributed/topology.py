"""Where the processes of a command run: resolved from the options, the machine, and the SLURM job around it."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from codetr_cli.distributed.launcher import LaunchSpec, split_endpoint
from codetr_cli.distributed.process_group import launched_world_size, was_launched
from codetr_cli.distributed.slurm import SlurmStep, read_step
from codetr_cli.distributed.worker_errors import TRAINING, Work
from codetr_cli.errors import ConfigError, ResourceError
from codetr_cli.runtime.devices import choose_device


@dataclass(frozen=True, kw_only=True)
class Request:
    """Options of the command line; None where they are absent. `gpus` and `procs` are numbers per node."""

    device: str = "auto"
    gpus: int | None = None
    procs: int | None = None
    nodes: int | None = None
    endpoint: str | None = None
    node: int | None = None
    max_restarts: int | None = None


@dataclass(frozen=True)
class Placement:
    """Where a command runs.

    Attributes:
        device: of the command; each of several processes uses its own GPU.
        world_size: number of processes.
        spec: the processes to start; None when this process does the work itself, alone or as one of the group.
        agreed: whether the processes must agree on the output folder, because several launchers start them.
    """

    device: torch.device
    world_size: int
    spec: LaunchSpec | None
    agreed: bool = False


def place(request: Request, work: Work = TRAINING) -> Placement:
    """Resolves where a command runs; a SLURM task that is one of its processes gets the environment of a worker.

    Raises:
        ConfigError: options that exclude each other.
        ResourceError: more GPUs than there are.
    """
    _check(request)
    step = None if was_launched() else read_step(os.environ)
    device = choose_device("cuda" if request.gpus is not None else request.device)
    if request.procs is not None and device.type != "cpu":
        raise ConfigError(
            f"--procs {request.procs} is for work on the CPU: add --device cpu, or use --gpus {request.procs}"
        )
    if step is not None and step.is_task_per_process:
        os.environ.update(step.environment())
    launched = launched_world_size()
    if launched is not None:
        return Placement(device, launched, spec=None, agreed=True)
    available = torch.cuda.device_count()
    if request.gpus is not None and request.gpus > available:
        raise ResourceError(f"--gpus {request.gpus}: this machine has {available}, use --gpus {available}")
    # A SLURM task uses all GPUs of its node unless the user has selected one.
    all_gpus = step is not None and device.type == "cuda" and request.device in ("auto", "cuda")
    spec = _launch_spec(request, step, available if all_gpus else 1, work)
    alone = spec.world_size == 1 and not request.max_restarts
    return Placement(device, spec.world_size, None if alone else spec, agreed=spec.nodes > 1)


def _check(request: Request) -> None:
    if request.gpus is not None and request.procs is not None:
        raise ConfigError("--gpus and --procs exclude each other: --procs is for work on the CPU")
    if request.gpus is not None and request.device not in ("auto", "cuda"):
        raise ConfigError(f"--gpus {request.gpus} and --device {request.device} exclude each other: remove --device")
    if request.endpoint is not None:
        split_endpoint(request.endpoint)
        if request.nodes is None:
            raise ConfigError("--rdzv-endpoint is for several nodes: give their number with --nodes")
    if request.node is not None and not 0 <= request.node < (request.nodes or 1):
        raise ConfigError(
            f"--node-rank {request.node} is out of range for {request.nodes or 1} nodes: ranks start at 0, and --nodes "
            "is the number of nodes"
        )


def _launch_spec(request: Request, step: SlurmStep | None, processes: int, work: Work) -> LaunchSpec:
    """The processes to start from here.

    Args:
        request: checked.
        step: of SLURM, one task per node.
        processes: per node where the options do not say.
        work: what the processes do.
    """
    nodes, endpoint, node = request.nodes or 1, request.endpoint, request.node
    if step is not None and request.nodes is None and step.nodes > 1:
        nodes, endpoint, node = step.nodes, step.endpoint, step.node
    if nodes > 1 and endpoint is None:
        raise ConfigError(
            f"--nodes {nodes} needs --rdzv-endpoint HOST:PORT: the address of one of the nodes and a free port on it, "
            "the same on all nodes; in a SLURM job, start one task per node with srun and give neither option"
        )
    return LaunchSpec(
        processes=request.gpus or request.procs or processes,
        nodes=nodes,
        endpoint=endpoint,
        node=node,
        job="codetr" if step is None else f"codetr-{step.job}",
        max_restarts=work.max_restarts if request.max_restarts is None else request.max_restarts,
        work=work,
    )
