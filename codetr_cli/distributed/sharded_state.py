"""Sharded checkpoints (torch.distributed.checkpoint): the part of a training state that each process writes itself.

A checkpoint of a sharded training has a folder `sharded` beside its other files: the moments of the optimizer and,
where an average is kept, the raw weights. Any number of processes can read it, sharded or not. A process group of its
own coordinates the writing, so that a thread can do it while training continues.
"""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from codetr_cli.distributed import process_group
from codetr_cli.distributed.fsdp import is_sharded
from codetr_cli.errors import CheckpointError

METADATA = ".metadata"
# Classes in the metadata of saved tensors, beside those of torch.distributed.checkpoint.
ALLOWED = {
    *(("pathlib", "PosixPath"), ("pathlib", "WindowsPath")),
    *(("torch", "Size"), ("torch.serialization", "_get_layout")),
}

Shards = dict[str, Tensor]


class ShardWriters:
    """Coordinates the processes of a sharded training when they write a checkpoint; every process must create one."""

    def __init__(self) -> None:
        self._group: Any = dist.new_group(backend="gloo", timeout=process_group.TIMEOUT)

    def write_all(self, folder: Path, shards: Shards) -> None:
        """Makes every process write its shards into a folder; for rank 0.

        Raises:
            Exception: of the first process that could not write, e.g. an OSError.
        """
        process_group.from_main(str(folder), self._group)
        try:
            _write(folder, shards, self._group)
        except CheckpointException as error:
            first, _ = next(iter(error.failures.values()))
            raise first from error

    def finish(self) -> None:
        """Makes `serve` return; for rank 0, however its writing ended."""
        process_group.from_main(None, self._group)

    def serve(self, shards: Shards) -> None:
        """Writes this process's shards whenever rank 0 writes, until it finishes; for the other ranks.

        Errors are raised in rank 0, which receives them.
        """
        while (folder := process_group.from_main(None, self._group)) is not None:
            with suppress(CheckpointException):
                _write(Path(folder), shards, self._group)


def host_shards(
    model: nn.Module, optimizer: torch.optim.Optimizer, copy: Callable[[Tensor], Tensor], *, weights: bool
) -> Shards:
    """A copy of this process's shards in host memory.

    Args:
        model: sharded.
        optimizer: of the model's parameters.
        copy: copies a tensor into host memory.
        weights: whether to include the model's own.
    """
    values = {f"weights.{name}": value for name, value in model.state_dict().items()} if weights else {}
    for name, moments in _moments(model, optimizer).items():
        values |= {f"optimizer.{name}.{key}": value for key, value in moments.items()}
    return {name: _host_shard(value, copy) for name, value in values.items()}


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
    # Scalars are sharded, and written, with one dimension.
    targets = {name: value.view(1) if value.dim() == 0 else value for name, value in wanted.items()}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load(dict(targets), storage_reader=_Reader(folder), no_dist=True)
    except (CheckpointException, OSError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"cannot read the training state in {folder}: {error}") from error
    optimizer.load_state_dict({**skeleton, "state": state})


def is_saved_in_shards(model: nn.Module) -> bool:
    """Whether the training state of this network is written in shards."""
    return process_group.is_connected() and is_sharded(model)


def _write(folder: Path, shards: Shards, group: dist.ProcessGroup | None) -> None:
    save(dict(shards), storage_writer=FileSystemWriter(folder), process_group=group)


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """The sharded optimizer states by name of the parameter."""
    model.state_dict()  # reshards the parameters after a forward pass
    return {
        name: {key: value for key, value in optimizer.state[parameter].items() if isinstance(value, DTensor)}
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
    }


def _host_shard(value: Tensor, copy: Callable[[Tensor], Tensor]) -> Tensor:
    if not isinstance(value, DTensor):
        return copy(value)
    local = copy(value.to_local())
    return DTensor.from_local(
        local, value.device_mesh, value.placements, run_check=False, shape=value.shape, stride=value.stride()
    )


class _Reader(FileSystemReader):
    """Reads a folder without executing anything from its pickled metadata."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The metadata of all tensors."""
        found = _MetadataUnpickler(io.BytesIO((Path(self.path) / METADATA).read_bytes())).load()
        if not isinstance(found, Metadata):
            raise pickle.UnpicklingError("no metadata of tensors")
        found.storage_meta = found.storage_meta or StorageMeta()
        found.storage_meta.load_id = self.load_id
        return found


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Only the classes that metadata of saved tensors consists of."""
        found = super().find_class(module, name) if "." not in name else None
        own_class = isinstance(found, type) and module.startswith("torch.distributed.checkpoint.")
        if (module, name) in ALLOWED or own_class or isinstance(found, torch.dtype):
            return found
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in the metadata of tensors")
