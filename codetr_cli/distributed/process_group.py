"""The process group of a command: joining it, ranks, and collectives on tensors and objects.

Every function also works in a single process, without communication. `launcher` starts the processes, or an external
torchrun or SLURM does and sets RANK, LOCAL_RANK and WORLD_SIZE.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import TCPStore, rendezvous  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

from codetr_cli.distributed.worker_errors import TRAINING, Work
from codetr_cli.errors import ResourceError, StoppedError
from codetr_cli.runtime.devices import use_device

TIMEOUT = timedelta(hours=3)  # one process scores or saves while the others wait for it
# Set by `launcher` for the processes it starts: an id that all processes of one start share, the number of restarts
# before, and the reason of the newest.
LAUNCH_ID = "CODETR_LAUNCH_ID"
RESTARTS = "CODETR_RESTARTS"
RESTART_REASON = "CODETR_RESTART_REASON"
# Attribute of parameters that had no dimension before they were sharded.
SCALAR = "codetr_scalar"


def rank() -> int:
    """The rank of this process; rank 0 logs and writes files."""
    return dist.get_rank() if is_connected() else 0


def world_size() -> int:
    """Number of processes in the group; 1 without a group."""
    return dist.get_world_size() if is_connected() else 1


def is_connected() -> bool:
    """Whether this process has joined a group, which may be a group of one."""
    return dist.is_available() and dist.is_initialized()


def is_main() -> bool:
    """Whether this is the process of rank 0."""
    return rank() == 0


def was_launched() -> bool:
    """Whether a launcher started this process as one of a group."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launched_world_size() -> int | None:
    """World size that the launcher set, also before the group is joined; None without a launcher."""
    return int(os.environ["WORLD_SIZE"]) if was_launched() else None


def launched_rank() -> int:
    """Rank that the launcher set, also before the group is joined; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def was_restarted() -> bool:
    """Whether this process replaces one that died, and continues its work."""
    before = os.environ.get(RESTARTS) or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return was_launched() and int(before) > 0


def local_device(device: torch.device) -> torch.device:
    """The device of this process, made the current one: each process of a node has its own GPU, all share the CPU."""
    if device.type == "cuda" and was_launched():
        # A cluster may make only its own GPU visible to each process.
        device = torch.device("cuda", 0 if torch.cuda.device_count() == 1 else int(os.environ.get("LOCAL_RANK", "0")))
    return use_device(device)


@contextmanager
def joined(device: torch.device, timeout: timedelta = TIMEOUT, work: Work = TRAINING) -> Iterator[Store | None]:
    """Joins the process group while the context lasts; does nothing in a process without a launcher.

    From then on, ranks other than 0 log errors only.

    Args:
        device: of this process, from `local_device`. GPU tensors use NCCL, CPU tensors gloo.
        timeout: of a collective.
        work: what the processes do, for messages.

    Yields:
        a key-value store shared by all processes, for the use of one thread; None without a launcher.

    Raises:
        ResourceError: another process died.
    """
    if not was_launched():
        yield None
        return
    store, number, processes = next(iter(rendezvous("env://", timeout=timeout)))
    store.set_timeout(timeout)
    # The agent keeps its store over restarts: what dead processes wrote must not be read.
    start = os.environ.get(LAUNCH_ID) or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=PrefixStore(f"group/{start}", store),
        rank=number,
        world_size=processes,
        timeout=timeout,
    )
    if number != 0:
        logging.getLogger("codetr_cli").setLevel(logging.ERROR)
    try:
        yield PrefixStore(f"shared/{start}", _another_connection(store, timeout))
    except StoppedError:  # every process stops
        dist.destroy_process_group()
        raise
    except RuntimeError as error:
        # Our launcher knows which process died; an external one prints the error of each process.
        if LAUNCH_ID in os.environ or not _is_lost_connection(error):
            raise
        raise ResourceError(
            f"{work.name} process {number} lost its connection to another one, which has died or was killed: see its "
            f"own error message, or the system log where memory ran out. The same command continues {work.continues}."
        ) from error
    # After any other error the connections stay open until the process ends: closing them now would make the other
    # processes fail too, with errors that hide this one.
    dist.destroy_process_group()


def barrier() -> None:
    """Waits until every process has called it."""
    if is_connected():
        dist.all_reduce(torch.zeros(1))


def reduce_mean(value: Tensor) -> Tensor:
    """The mean of a tensor over all processes, detached; the tensor itself in a single process."""
    if not is_connected():
        return value
    mean = value.detach().clone()
    dist.all_reduce(mean)
    return mean / dist.get_world_size()


def local_part(tensor: Tensor) -> Tensor:
    """The local shard of a tensor, or the tensor itself where it is not sharded; shares its storage."""
    # Importing DTensor takes a second.
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def is_scalar(parameter: Tensor) -> bool:
    """Whether a parameter is a scalar, also when it got a dimension for sharding."""
    return parameter.dim() == 0 or getattr(parameter, SCALAR, False)


def sharded_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The L2 norm over all sharded tensors; the same in every process."""
    norms = torch._foreach_norm([local_part(tensor) for tensor in tensors])
    squares = torch.stack(norms).double().square().sum()
    dist.all_reduce(squares)
    return squares.sqrt().to(tensors[0].dtype)


def reduce_max(numbers: Sequence[int]) -> list[int]:
    """The maximum over all processes of each integer; does not wait for a GPU."""
    if not is_connected():
        return list(numbers)
    largest = torch.tensor(numbers, dtype=torch.int64)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return [int(number) for number in largest]


def any_process(*flags: bool) -> tuple[bool, ...]:
    """For each flag whether it is true in any process."""
    return tuple(bool(vote) for vote in reduce_max(flags))


def gather_objects(item: object, group: dist.ProcessGroup | None = None) -> list[Any]:
    """The items of all processes in the order of ranks, in rank 0; an empty list in the others.

    They are sent through the default group or another one of all processes.
    """
    if not is_connected():
        return [item]
    items: list[Any] | None = [None] * dist.get_world_size() if is_main() else None
    dist.gather_object(item, items, group=group)
    return items or []


def from_main(item: object, group: dist.ProcessGroup | None = None) -> Any:
    """The item of rank 0, in every process; sent through the default group or another one of all processes."""
    if not is_connected():
        return item
    items = [item]
    dist.broadcast_object_list(items, group=group)
    return items[0]


def wrap_ddp(module: nn.Module, device: torch.device) -> nn.Module:
    """The module in DistributedDataParallel; itself in a single process.

    Every parameter must get a gradient in every step: searching for unused ones would cost a pass per step.
    """
    if not is_connected():
        return module
    # The buffers are constants; newer PyTorch has another name for the option.
    names = inspect.signature(DistributedDataParallel).parameters
    constant: dict[str, Any] = {
        "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers": False
    }
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=devices, gradient_as_bucket_view=True, **constant)


@contextmanager
def without_sync(module: nn.Module) -> Iterator[None]:
    """A context in which backward accumulates gradients without reducing them over processes."""
    reduce_gradients: Any = getattr(module, "set_requires_gradient_sync", lambda on: None)  # of FSDP modules
    reduce_gradients(False)
    try:
        with module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext():
            yield
    finally:
        reduce_gradients(True)


def _another_connection(store: Any, timeout: timedelta) -> Store:
    """A second client of a TCPStore for another thread, which would wait for the first one's requests."""
    if hasattr(store, "clone"):  # torch 2.8
        return store.clone()
    connection = TCPStore(store.host, store.port, is_master=False, timeout=timeout)
    connection.set_timeout(timeout)
    return connection


def _is_lost_connection(error: RuntimeError) -> bool:
    if isinstance(error, dist.DistError):
        return True
    text = str(error)  # gloo raises plain RuntimeError
    return "Connection reset" in text or "Connection closed" in text
