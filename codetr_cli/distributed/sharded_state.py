"""The part of a sharded training's state that each process writes by itself (torch.distributed.checkpoint).

A checkpoint of a sharded training has a folder `sharded` beside its other files: the moments of the optimizer and,
where an average is kept, the raw weights. Any number of processes can read it, sharded or not. Writing is agreed on in
a group of connections of its own, so that a thread can do it while training goes on.
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
# What a description of saved tensors consists of beside PyTorch's own classes for it.
HARMLESS = frozenset(
    (
        ("pathlib", "PosixPath"),
        ("pathlib", "WindowsPath"),
        ("torch", "Size"),
        ("torch.serialization", "_get_layout"),
    )
)

Parts = dict[str, Tensor]


class PartWriters:
    """All processes of a sharded training as writers of its checkpoints; every process makes one, at the same time."""

    def __init__(self) -> None:
        self._group: Any = dist.new_group(backend="gloo", timeout=process_group.PATIENCE)

    def lead(self, folder: Path, parts: Parts) -> None:
        """Has every process write its part into a folder; for the process of rank 0.

        Raises:
            Exception: what the first process that could not write met, e.g. an OSError.
        """
        self._tell(str(folder))
        try:
            _write(folder, parts, self._group)
        except CheckpointException as error:
            first, _ = next(iter(error.failures.values()))
            raise first from error

    def dismiss(self) -> None:
        """Ends what `follow` does; for the process of rank 0, however its writing ended."""
        self._tell(None)

    def follow(self, parts: Parts) -> None:
        """Writes this process's part wherever the process of rank 0 says, as often as it does; for the others.

        What goes wrong is told by the process of rank 0, which learns of it.
        """
        while (folder := self._told()) is not None:
            with suppress(CheckpointException):
                _write(Path(folder), parts, self._group)

    def _tell(self, text: str | None) -> None:
        dist.broadcast_object_list([text], group=self._group)

    def _told(self) -> str | None:
        texts: list[str | None] = [None]
        dist.broadcast_object_list(texts, group=self._group)
        return texts[0]


def host_parts(
    model: nn.Module, optimizer: torch.optim.Optimizer, copy: Callable[[Tensor], Tensor], *, weights: bool
) -> Parts:
    """A copy of this process's part of the state in host memory.

    Args:
        model: sharded.
        optimizer: of the model's parameters.
        copy: of a tensor into host memory.
        weights: whether the model's own are part of it.
    """
    found = {f"weights.{name}": value for name, value in model.state_dict().items()} if weights else {}
    for name, moments in _moments(model, optimizer).items():
        found |= {f"optimizer.{name}.{key}": value for key, value in moments.items()}
    return {name: _host_part(value, copy) for name, value in found.items()}


def optimizer_frame(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state dict without what is spread; `read_parts` fills it in."""
    state = optimizer.state_dict()
    own = {
        index: {key: None if isinstance(value, DTensor) else value for key, value in values.items()}
        for index, values in state["state"].items()
    }
    return {**state, "state": own}


def read_parts(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, frame: Mapping[str, Any], *, weights: bool
) -> None:
    """Puts a state that was written in parts back; each process reads what it needs.

    Args:
        folder: as written.
        model: sharded or not.
        optimizer: of the model's parameters.
        frame: of the optimizer, as `optimizer_frame` gave it; tensors in it are on the CPU.
        weights: whether the model's own are to be read.

    Raises:
        CheckpointError: a file is missing or damaged, or it is of another network.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    own = model.state_dict() if weights else {}
    wanted = {f"weights.{name}": value for name, value in own.items()}
    state: dict[int, dict[str, Any]] = {}
    for index, values in frame["state"].items():
        parameter = parameters[index].detach()
        state[index] = {key: torch.zeros_like(parameter) if v is None else v for key, v in values.items()}
        name = names[id(parameters[index])]
        wanted |= {f"optimizer.{name}.{key}": state[index][key] for key, v in values.items() if v is None}
    # Single numbers are spread, and written, with a dimension.
    targets = {name: value.view(1) if value.dim() == 0 else value for name, value in wanted.items()}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load(dict(targets), storage_reader=_Reader(folder), no_dist=True)
    except (CheckpointException, OSError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"cannot read the training state in {folder}: {error}") from error
    optimizer.load_state_dict({**frame, "state": state})


def should_write_parts(model: nn.Module) -> bool:
    """Whether the state of this network's training is written in parts."""
    return process_group.is_connected() and is_sharded(model)


def _write(folder: Path, parts: Parts, group: dist.ProcessGroup | None) -> None:
    save(dict(parts), storage_writer=FileSystemWriter(folder), process_group=group)


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """What the optimizer keeps of each parameter by name, as far as it is spread."""
    model.state_dict()  # has the model's parameters spread again after a forward pass
    return {
        name: {key: value for key, value in optimizer.state[parameter].items() if isinstance(value, DTensor)}
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
    }


def _host_part(value: Tensor, copy: Callable[[Tensor], Tensor]) -> Tensor:
    if not isinstance(value, DTensor):
        return copy(value)
    part = copy(value.to_local())
    return DTensor.from_local(
        part, value.device_mesh, value.placements, run_check=False, shape=value.shape, stride=value.stride()
    )


class _Reader(FileSystemReader):
    """Reads a folder without executing anything that its description of the tensors may ask for."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The description of all tensors."""
        found = _Description(io.BytesIO((Path(self.path) / METADATA).read_bytes())).load()
        if not isinstance(found, Metadata):
            raise pickle.UnpicklingError("no description of tensors")
        found.storage_meta = found.storage_meta or StorageMeta()
        found.storage_meta.load_id = self.load_id
        return found


class _Description(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Only what a description of saved tensors consists of."""
        found = super().find_class(module, name) if "." not in name else None
        own_class = isinstance(found, type) and module.startswith("torch.distributed.checkpoint.")
        if (module, name) in HARMLESS or own_class or isinstance(found, torch.dtype):
            return found
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a description of tensors")
