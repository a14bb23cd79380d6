"""Several processes as one: who am I, agree, average.

Every function works in a single process too, where there is nobody to ask. Processes come from `launcher`, or from
a torchrun or SLURM outside that sets RANK, LOCAL_RANK and WORLD_SIZE.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from codetr_cli.errors import ResourceError, StoppedError

# One process evaluates or saves while the others wait for it.
PATIENCE = timedelta(hours=3)
# Set by `launcher` for the processes it starts: a name of this start that all of them share, how many starts
# there were before, and why there had to be another.
ROUND = "CODETR_ROUND"
STARTS_BEFORE = "CODETR_STARTS_BEFORE"
RESTART_REASON = "CODETR_RESTART_REASON"
# Attribute of parameters that had no dimension before they were spread.
SINGLE_NUMBER = "codetr_single_number"


def rank() -> int:
    """This process's number among all, 0 for the one that speaks and writes."""
    return dist.get_rank() if _together() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _together() else 1


def is_connected() -> bool:
    """Whether this process is one of a group, which may be a group of one."""
    return _together()


def is_main() -> bool:
    """Whether this process speaks and writes for all."""
    return rank() == 0


def was_launched() -> bool:
    """Whether something started this process as one of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launched_world_size() -> int | None:
    """How many processes were started together with this one, before they are connected; None for none."""
    return int(os.environ["WORLD_SIZE"]) if was_launched() else None


def launched_rank() -> int:
    """This process's number among those started together, also while they are not connected."""
    return int(os.environ.get("RANK", "0"))


def was_restarted() -> bool:
    """Whether this process takes the place of one that died: it continues what that one did."""
    before = os.environ.get(STARTS_BEFORE) or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return was_launched() and int(before) > 0


def local_device(device: torch.device) -> torch.device:
    """The device of this process: each process of a machine has its own GPU, all share the CPU."""
    if device.type != "cuda" or not was_launched():
        return device
    # A cluster may show each process its own GPU only.
    return torch.device("cuda", 0 if torch.cuda.device_count() == 1 else int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def process_group(device: torch.device, timeout: timedelta = PATIENCE) -> Iterator[Store | None]:
    """Connects this process to the others it was started with; alone it does nothing.

    Args:
        device: this process's own; GPUs talk through NCCL, everything that lies on the CPU through gloo.
        timeout: after which a process that waits for others gives up.

    Yields:
        texts that all processes share, for a thread of its own; None for a process alone.

    Raises:
        ResourceError: another process is gone.
    """
    if not was_launched():
        yield None
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store, number, processes = next(iter(rendezvous("env://", timeout=timeout)))
    store.set_timeout(timeout)
    # The agent keeps its store when it starts processes anew: what dead ones wrote must not be read.
    start = os.environ.get(ROUND) or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=PrefixStore(f"group/{start}", store),
        rank=number,
        world_size=processes,
        timeout=timeout,
    )
    try:
        with _quiet_unless_main():
            yield PrefixStore(f"shared/{start}", store.clone())
    except StoppedError:  # all stop together
        dist.destroy_process_group()
        raise
    except RuntimeError as error:
        # A launcher of ours knows which process died; one from outside shows what each process says.
        if ROUND in os.environ or not _is_lost_connection(error):
            raise
        raise ResourceError(
            f"training process {number} lost its connection to another one, which has died or was ended: its own "
            "message, or the system's log where memory ran out, tells why. The same command continues from the newest "
            "checkpoint."
        ) from error
    # After any other error the connections stay until the process ends: closing them now would make the other processes
    # fail too, with errors that hide this one.
    dist.destroy_process_group()


@contextmanager
def _quiet_unless_main() -> Iterator[None]:
    """Processes of rank other than 0 log errors only."""
    package = logging.getLogger("codetr_cli")
    before = package.level
    if not is_main():
        package.setLevel(logging.ERROR)
    try:
        yield
    finally:
        package.setLevel(before)


def barrier() -> None:
    """Waits until every process is here."""
    if _together():
        dist.all_reduce(torch.zeros(1))


def reduce_mean(value: Tensor) -> Tensor:
    """The mean of a tensor over all processes, without gradient; the tensor itself in a single process."""
    if not _together():
        return value
    mean = value.detach().clone()
    dist.all_reduce(mean)
    return mean / dist.get_world_size()


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor that may be spread over all; shares its memory."""
    # Importing the class of such tensors takes a second.
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def is_single_number(parameter: Tensor) -> bool:
    """Whether a parameter is a single number, also when it has a dimension only to be spread along."""
    return parameter.dim() == 0 or getattr(parameter, SINGLE_NUMBER, False)


def norm_of_spread(tensors: Sequence[Tensor]) -> Tensor:
    """The L2 norm of tensors of which each process holds a part, taken together; every process gets the same."""
    squares = torch.stack([torch.linalg.vector_norm(own_part(tensor)).double().square() for tensor in tensors]).sum()
    dist.all_reduce(squares)
    return squares.sqrt().to(tensors[0].dtype)


def reduce_max(numbers: Sequence[int]) -> list[int]:
    """The largest of each whole number in any process; every process gets the same answer, and no GPU is waited for."""
    if not _together():
        return list(numbers)
    largest = torch.tensor(numbers, dtype=torch.int64)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return [int(number) for number in largest]


def any_process(*flags: bool) -> tuple[bool, ...]:
    """For each flag whether it is true in any process; every process gets the same answer."""
    if not _together():
        return flags
    votes = torch.tensor(flags, dtype=torch.uint8)
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return tuple(bool(vote) for vote in votes)


def gather_objects(item: object) -> list[Any]:
    """Every process's item in the order of ranks for the process of rank 0; an empty list in the others."""
    if not _together():
        return [item]
    items: list[Any] | None = [None] * dist.get_world_size() if is_main() else None
    dist.gather_object(item, items)
    return items or []


def from_main(item: object) -> Any:
    """The item of the process of rank 0, in every process."""
    if not _together():
        return item
    items = [item]
    dist.broadcast_object_list(items)
    return items[0]


def wrap_ddp(module: nn.Module, device: torch.device) -> nn.Module:
    """The module with gradients averaged over all processes; itself in a single process.

    Every parameter must get a gradient in every step: unused ones are not looked for, it would cost a pass each step.
    """
    if not _together():
        return module
    # The buffers are constants; newer PyTorch calls the switch by another name.
    names = inspect.signature(DistributedDataParallel).parameters
    constant: dict[str, Any] = {
        "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers": False
    }
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=devices, gradient_as_bucket_view=True, **constant)


def without_sync(module: nn.Module) -> AbstractContextManager[None]:
    """A context in which backward adds gradients here and does not average them yet."""
    reduce_gradients: Any = getattr(module, "set_requires_gradient_sync", None)  # sharded modules have it
    if reduce_gradients is not None:
        return _without_reduction(reduce_gradients)
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


@contextmanager
def _without_reduction(reduce_gradients: Callable[[bool], None]) -> Iterator[None]:
    reduce_gradients(False)
    try:
        yield
    finally:
        reduce_gradients(True)


def _is_lost_connection(error: RuntimeError) -> bool:
    if isinstance(error, dist.DistError):
        return True
    text = str(error)  # gloo's errors have no type of their own
    return "Connection reset" in text or "Connection closed" in text


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()
