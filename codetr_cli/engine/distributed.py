"""Several processes as one: who am I, agree, average, and start them all. The only user of `torch.distributed`.

Every function works in a single process too, where there is nobody to ask. Processes come from `launch`, which runs
torchrun's elastic agent here, or from a torchrun or SLURM outside that sets RANK, LOCAL_RANK and WORLD_SIZE.
"""

from __future__ import annotations

import inspect
import json
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from codetr_cli import errors
from codetr_cli.engine.environment import cpu_count
from codetr_cli.errors import CodetrError, MachineError, StoppedError

# One process evaluates or saves while the others wait for it.
PATIENCE = timedelta(hours=3)


def rank() -> int:
    """This process's number among all, 0 for the one that speaks and writes."""
    return dist.get_rank() if _together() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _together() else 1


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


def local_device(device: torch.device) -> torch.device:
    """The device of this process: each process of a machine has its own GPU, all share the CPU."""
    if device.type != "cuda" or not was_launched():
        return device
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Connects this process to the others it was started with; alone it does nothing.

    Args:
        device: this process's own; GPUs talk through NCCL, everything that lies on the CPU through gloo.
    """
    if not was_launched():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield
    except StoppedError:  # all stop together
        dist.destroy_process_group()
        raise
    # After any other error the connections stay until the process ends: closing them now would make the other processes
    # fail too, with errors that hide this one.
    dist.destroy_process_group()


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
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def launch(function: Callable[..., Any], arguments: Sequence[Any], *, processes: int) -> Any:
    """Runs `function(*arguments)` in several processes of this machine under torchrun's elastic agent.

    A signal sent to this process reaches all of them; they decide together when to stop.

    Args:
        function: importable by name; it and the arguments are pickled.
        arguments: the same for every process.
        processes: how many.

    Returns:
        what the process of rank 0 returned.

    Raises:
        CodetrError: the first error that a process raised, as it was raised there.
        MachineError: a process ended without a word, e.g. killed for lack of memory.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    share_threads(processes)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        signals_to_handle="SIGQUIT",  # the others are forwarded below and must not be answered with a kill
    )
    with tempfile.TemporaryDirectory(prefix="codetr-") as folder, _quiet_agent(), _forwarded_signals() as received:
        try:
            results = elastic_launch(config, _enter)(function, tuple(arguments), folder)
        except ChildFailedError as failure:
            if received:
                raise StoppedError(
                    "stopped at once, nothing was saved after the newest checkpoint: start the same command again to "
                    "continue from it.",
                    received[0],
                ) from failure
            number, first = failure.get_first_failure()
            raise _error_of(Path(folder), number, first.exitcode) from failure
    result = results[0]
    if isinstance(result, CodetrError):
        raise result
    return result


def share_threads(processes: int) -> None:
    """Lets processes started from here share the cores, unless the person has set OMP_NUM_THREADS."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cpu_count() // processes)))


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()


def _enter(function: Callable[..., Any], arguments: tuple[Any, ...], folder: str) -> Any:
    """What each started process runs: the function, with errors written down for the parent to read.

    A stop by a signal is no failure of one process but the end of all, so it travels as a result.
    """
    parent = os.getppid()
    result: Any
    try:
        result = function(*arguments)
    except StoppedError as stopped:
        result = stopped
    except Exception as error:
        known = isinstance(error, CodetrError)
        if os.environ.get("CODETR_DEBUG"):
            sys.stderr.write(traceback.format_exc())
        note = {
            "kind": type(error).__name__ if known else "",
            "text": str(error) if known else f"{type(error).__name__}: {error}",
            "time": time.time(),
        }
        Path(folder, f"{os.environ['RANK']}.json").write_text(json.dumps(note), encoding="utf-8")
        raise SystemExit(error.exit_code if isinstance(error, CodetrError) else 1) from error
    if os.getppid() != parent:
        # The launcher was killed; the agent's end of the result queue is gone and would be waited for in vain.
        os._exit(0)
    return result


def _error_of(folder: Path, number: int, exit_code: int) -> Exception:
    """The error that the processes wrote down first, rather one that a person can mend; several may follow from one."""
    notes = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    if notes:
        note = min(notes, key=lambda item: (not item["kind"], item["time"]))
        if note["kind"]:
            kind: type[CodetrError] = getattr(errors, note["kind"])
            return kind(note["text"])
        return RuntimeError(f"a training process failed with {note['text']}")
    if exit_code < 0:
        return MachineError(
            f"training process {number} was ended by {signal.Signals(-exit_code).name}, often because memory ran out: "
            "lower train.micro_batch or the number of processes. The same command continues from the newest checkpoint."
        )
    return MachineError(f"training process {number} ended with exit code {exit_code} and without a message.")


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
    """Hands Ctrl-C and SIGTERM on to the started processes.

    Yields:
        the numbers of the signals received so far.
    """
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for child in multiprocessing.active_children():
            if child.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(child.pid, number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
