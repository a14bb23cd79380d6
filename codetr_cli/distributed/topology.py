"""Where the processes of a training run: decided from the options, the machine, and a SLURM job around it."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from codetr_cli.distributed.launcher import MAX_RESTARTS, LaunchPlan, split_endpoint
from codetr_cli.distributed.process_group import launched_world_size, was_launched
from codetr_cli.distributed.slurm import SlurmStep, become_process, read_step
from codetr_cli.errors import ConfigError, ResourceError
from codetr_cli.runtime.environment import choose_device


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the options ask for; None where they say nothing.

    Attributes:
        device: as `choose_device` takes it.
        gpus: of each machine.
        procs: on the CPU of each machine.
        nodes: machines.
        endpoint: HOST:PORT where they meet.
        node: number of this one.
        max_restarts: after the death of a process.
    """

    device: str = "auto"
    gpus: int | None = None
    procs: int | None = None
    nodes: int | None = None
    endpoint: str | None = None
    node: int | None = None
    max_restarts: int | None = None


@dataclass(frozen=True)
class Placement:
    """Where a training runs.

    Attributes:
        device: of the training; each of several processes takes its own GPU.
        world_size: all its processes.
        plan: of the processes to start; None when this process is the training, or one of its processes.
        agreed: whether the processes have to agree on the run folder, because several launchers start them.
    """

    device: torch.device
    world_size: int
    plan: LaunchPlan | None
    agreed: bool = False


def place(request: Request) -> Placement:
    """Decides where a training runs; a task of SLURM that is one of its processes becomes that.

    Raises:
        ConfigError: options that exclude each other.
        ResourceError: more GPUs than there are.
    """
    _check(request)
    step = None if was_launched() else read_step(os.environ)
    device = choose_device("cuda" if request.gpus is not None else request.device)
    if request.procs is not None and device.type != "cpu":
        raise ConfigError(
            f"--procs {request.procs} is for training on the CPU: add --device cpu, or use --gpus {request.procs}"
        )
    if step is not None and step.is_task_per_process:
        become_process(step)
    launched = launched_world_size()
    if launched is not None:
        return Placement(device, launched, plan=None, agreed=True)
    available = torch.cuda.device_count()
    if request.gpus is not None and request.gpus > available:
        raise ResourceError(
            f"--gpus {request.gpus} asked for, but this machine has {available}: use --gpus {available}"
        )
    plan = _plan(request, step, available if step is not None and _is_any_gpu(request, device) else 1)
    alone = plan.world_size == 1 and not request.max_restarts
    return Placement(device, plan.world_size, None if alone else plan, agreed=plan.nodes > 1)


def _check(request: Request) -> None:
    if request.gpus is not None and request.procs is not None:
        raise ConfigError("--gpus and --procs exclude each other: --procs is for training on the CPU")
    if request.gpus is not None and request.device not in ("auto", "cuda"):
        raise ConfigError(f"--gpus {request.gpus} and --device {request.device} exclude each other: leave --device out")
    if request.endpoint is not None:
        split_endpoint(request.endpoint)
        if request.nodes is None:
            raise ConfigError("--rdzv-endpoint is for a training on several machines: say on how many with --nodes")
    if request.node is not None and not 0 <= request.node < (request.nodes or 1):
        raise ConfigError(
            f"--node-rank {request.node} is none of {request.nodes or 1} machines: they are numbered from 0, and "
            "--nodes says how many there are"
        )


def _plan(request: Request, step: SlurmStep | None, processes: int) -> LaunchPlan:
    """The processes to start from here.

    Args:
        request: checked.
        step: of SLURM, one task a machine.
        processes: a machine starts when nobody says how many.
    """
    nodes, endpoint, node = request.nodes or 1, request.endpoint, request.node
    if step is not None and request.nodes is None and step.nodes > 1:
        nodes, endpoint, node = step.nodes, step.endpoint, step.node
    if nodes > 1 and endpoint is None:
        raise ConfigError(
            f"--nodes {nodes} needs --rdzv-endpoint HOST:PORT: the address of one of the machines and a free port "
            "there, the same on all machines; in a SLURM job, start one task a machine with srun and leave both out"
        )
    return LaunchPlan(
        processes=request.gpus or request.procs or processes,
        nodes=nodes,
        endpoint=endpoint,
        node=node,
        job="codetr" if step is None else f"codetr-{step.job}",
        max_restarts=MAX_RESTARTS if request.max_restarts is None else request.max_restarts,
    )


def _is_any_gpu(request: Request, device: torch.device) -> bool:
    """Whether a GPU is used and the person has not picked one."""
    return device.type == "cuda" and request.device in ("auto", "cuda")
