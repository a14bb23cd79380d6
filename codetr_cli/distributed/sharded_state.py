"""Sharded checkpoints: the part of a training state that each process writes itself.

A checkpoint of a sharded training has a folder `sharded` beside its other files: the moments of the optimizer and,
where an average is kept, the raw weights; see `shard_files`. Any number of processes can read it, sharded or not. A
process group of its own coordinates the writing, so that a thread can do it while training continues.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from codetr_cli.distributed import former_shards, process_group, shard_files
from codetr_cli.distributed.fsdp import is_sharded
from codetr_cli.distributed.shard_files import Shard, StoredTensor
from codetr_cli.errors import CheckpointError
from codetr_cli.files import system_error

Shards = dict[str, Shard]
MAX_REASON = 300  # letters of an error message


class ShardWriters:
    """Coordinates the processes of a sharded training when they write a checkpoint; every process must create one."""

    def __init__(self) -> None:
        self._group: Any = dist.new_group(backend="gloo", timeout=process_group.TIMEOUT)

    def write_all(self, folder: Path, shards: Shards) -> None:
        """Makes every process write its shards into a folder; for rank 0.

        Raises:
            Exception: of the first process that could not write, e.g. an OSError.
        """
        folder.mkdir(exist_ok=True)
        process_group.from_main(str(folder), self._group)
        _raise_first(_write(folder, shards, self._group))

    def finish(self) -> None:
        """Makes `serve` return; for rank 0, however its writing ended."""
        process_group.from_main(None, self._group)

    def serve(self, shards: Shards) -> None:
        """Writes this process's shards whenever rank 0 writes, until it finishes; for the other ranks.

        Errors are raised in rank 0, which receives them.
        """
        while (folder := process_group.from_main(None, self._group)) is not None:
            _write(Path(folder), shards, self._group)


def host_shards(
    model: nn.Module, optimizer: torch.optim.Optimizer, copy: Callable[[Tensor], Tensor], *, weights: bool
) -> Shards:
    """A copy of the shards that this process writes, in host memory; rank 0 writes what is not sharded.

    Args:
        model: sharded.
        optimizer: of the model's parameters.
        copy: copies a tensor into host memory.
        weights: whether to include the model's own.
    """
    values = {f"weights.{name}": value for name, value in model.state_dict().items()} if weights else {}
    for name, moments in _moments(model, optimizer).items():
        values |= {f"optimizer.{name}.{key}": value for key, value in moments.items()}
    return {
        name: _host_shard(value, copy)
        for name, value in values.items()
        if isinstance(value, DTensor) or process_group.is_main()
    }


def optimizer_skeleton(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state dict with None for sharded tensors; `read_shards` fills them in."""
    state = optimizer.state_dict()
    own = {
        index: {key: None if isinstance(value, DTensor) else value for key, value in values.items()}
        for index, values in state["state"].items()
    }
    return {**state, "state": own}


def read_shards(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, skeleton: Mapping[str, Any], *, weights: bool
) -> None:
    """Restores a state that was written in shards; each process reads what it needs.

    Args:
        folder: as written.
        model: sharded or not.
        optimizer: of the model's parameters.
        skeleton: of the optimizer, as `optimizer_skeleton` returned it; its tensors are on the CPU.
        weights: whether to read the model's own.

    Raises:
        CheckpointError: a file is missing or damaged, or belongs to another network.
    """
    try:
        state, wanted = _unfilled(model, optimizer, skeleton, weights=weights)
        read = shard_files.read_index if shard_files.is_written_here(folder) else former_shards.read_index
        stored = read(folder, wanted)
        for name, target in wanted.items():
            _fill(name, target, stored)
        optimizer.load_state_dict({**skeleton, "state": state})
    except Exception as error:  # hostile or damaged files can make the readers fail in any way
        reason = (
            str(error) if isinstance(error, CheckpointError) else f"it is damaged ({type(error).__name__}: {error})"
        )
        raise CheckpointError(f"cannot read the training state in {folder}: {reason[:MAX_REASON]}") from error


def is_saved_in_shards(model: nn.Module) -> bool:
    """Whether the training state of this network is written in shards."""
    return process_group.is_connected() and is_sharded(model)


def _write(folder: Path, shards: Shards, group: dist.ProcessGroup | None) -> list[BaseException | None]:
    """Writes this process's shards; the errors of all processes, in rank 0."""
    failed: BaseException | None = None
    try:
        shard_files.write_shards(folder, shards, process_group.rank(), process_group.world_size())
    except Exception as error:
        failed = system_error(error) or RuntimeError(str(error))
    return process_group.gather_objects(failed, group)


def _raise_first(errors: Iterable[BaseException | None]) -> None:
    for error in errors:
        if error is not None:
            raise error


def _unfilled(
    model: nn.Module, optimizer: torch.optim.Optimizer, skeleton: Mapping[str, Any], *, weights: bool
) -> tuple[dict[int, dict[str, Any]], dict[str, Tensor]]:
    """The state of an optimizer with zeros in the place of shards, and all tensors to fill by their stored name."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    own = model.state_dict() if weights else {}
    wanted = {f"weights.{name}": value for name, value in own.items()}
    state: dict[int, dict[str, Any]] = {}
    for index, values in skeleton["state"].items():
        parameter = parameters[index].detach()
        state[index] = {key: torch.zeros_like(parameter) if v is None else v for key, v in values.items()}
        name = names[id(parameters[index])]
        wanted |= {f"optimizer.{name}.{key}": state[index][key] for key, v in values.items() if v is None}
    return state, wanted


def _fill(name: str, target: Tensor, stored: Mapping[str, StoredTensor]) -> None:
    """Fills a tensor, or this process's shard of it."""
    if name not in stored:
        raise CheckpointError(f"it lacks {name}")
    source, shape = stored[name], tuple(target.shape) or (1,)  # scalars are written with one dimension
    if (source.shape, source.dtype) != (shape, target.dtype):
        raise CheckpointError(
            f"{name} has shape {source.shape} of {source.dtype}, not {shape} of {target.dtype} as this network"
        )
    local = process_group.local_part(target).detach()
    source.copy_into(local.view(1) if local.dim() == 0 else local, _start(target))


def _start(value: Any) -> int:
    """The row of a whole tensor at which this process's shard starts."""
    if not isinstance(value, DTensor):
        return 0
    chunk = value.__create_chunk_list__()[0]  # type: ignore[no-untyped-call]
    if any(chunk.offsets[1:]) or chunk.sizes[1:] != value.shape[1:]:
        raise ValueError("a tensor is sharded by another dimension than its first")
    return int(chunk.offsets[0])


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """The sharded optimizer states by name of the parameter."""
    model.state_dict()  # reshards the parameters after a forward pass
    return {
        name: {key: value for key, value in optimizer.state[parameter].items() if isinstance(value, DTensor)}
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
    }


def _host_shard(value: Tensor, copy: Callable[[Tensor], Tensor]) -> Shard:
    rows = copy(process_group.local_part(value))
    total = value.shape[0] if value.dim() else 1
    return Shard(rows.view(1) if rows.dim() == 0 else rows, _start(value), total)
