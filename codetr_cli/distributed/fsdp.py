"""FSDP2: weights, gradients and optimizer states sharded over the processes of a training, and gathered again.

Each process keeps its shard of every parameter along the first dimension. The parameters of a unit are gathered when it
runs and freed after it. Gathering is a collective, so a unit must run equally often in all processes whatever their
images hold: see `units`. Everything else belongs to the root, which is gathered once per step: the decoder, which runs
three times per step and whose value projections are used outside its layers; shared heads; what runs on regions.
Saved names and shapes are those of an unsharded training. PyTorch shards no scalars: they get one dimension here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from codetr_cli.distributed import process_group
from codetr_cli.errors import ConfigError
from codetr_cli.losses.collaborative import CollaborativeObjective
from codetr_cli.models.backbones.resnet import FrozenBatchNorm2d
from codetr_cli.models.backbones.swin import Block as SwinBlock
from codetr_cli.models.backbones.vit import Block as ViTBlock
from codetr_cli.models.codetr import CoDETR
from codetr_cli.models.encoder import EncoderLayer


def check_shardable(*, fp16: bool, compiled: bool) -> None:
    """Refuses settings that sharding does not support.

    Raises:
        ConfigError: a PyTorch that cannot; fp16, whose scaler would detect overflow in each process separately; or
            compiled parts, in which parameters cannot be gathered.
    """
    reason = why_not_shard()
    if reason is not None:
        raise ConfigError(f"{reason} Use train.fsdp=false, or install a newer PyTorch")
    if fp16:
        raise ConfigError("train.fsdp needs bf16 or fp32: use --set train.precision=bf16, or train.fsdp=false")
    if compiled:
        raise ConfigError(
            "train.fsdp gathers weights around each layer, which does not work in compiled layers: use "
            "--set train.compile=false, or train.fsdp=false"
        )


def why_not_shard() -> str | None:
    """Why this PyTorch cannot shard a training, one sentence; None where it can."""
    if hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        return None
    return f"train.fsdp needs the FSDP2 of a newer PyTorch than {torch.__version__}: 2.11 and later are tested."


def shard(objective: CollaborativeObjective, device: torch.device) -> nn.Module:
    """Shards the network's parameters over all processes, in place; does nothing without a process group.

    Args:
        objective: on its device, with the same weights in every process.
        device: of this process.
    """
    if not process_group.is_connected():
        return objective
    scalars = _reshape_scalars(objective)
    for module in objective.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.keeps_folded = False  # gathered weights do not show that they changed
    mesh = init_device_mesh(device.type, (process_group.world_size(),))
    for unit in (*units(objective.model), objective):
        fully_shard(unit, mesh=mesh)
        if isinstance(unit, EncoderLayer):  # its halves are recomputed separately
            register_fsdp_forward_method(unit, "attend")
            register_fsdp_forward_method(unit, "finish")
        if device.type == "cpu" and isinstance(unit, FSDPModule):
            unit.set_force_sum_reduction_for_comms(True)  # gloo has no mean reduction
    for name in scalars:
        setattr(objective.get_parameter(name), process_group.SCALAR, True)
    return objective


def units(model: CoDETR) -> list[nn.Module]:
    """The modules whose parameters are gathered one after the other, children before their parents."""
    layers = [m for m in model.modules() if isinstance(m, SwinBlock | ViTBlock | EncoderLayer)]
    heads = [] if model.aux_heads is None else [model.aux_heads.rpn, model.aux_heads.atss]
    return [*layers, model.backbone, model.neck, *heads]


def is_sharded(module: nn.Module) -> bool:
    """Whether parameters of a network are sharded."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


@contextmanager
def gathered(objective: nn.Module) -> Iterator[None]:
    """A context in which the model of a sharded objective can be called directly; every process must enter it."""
    if not isinstance(objective, FSDPModule):
        yield
        return
    objective.unshard()
    try:
        yield
    finally:
        objective.reshard()


def full_weights(model: nn.Module, state: Mapping[str, Tensor] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Entries of the unsharded state dict, gathered one by one; every process must iterate over all of them.

    Args:
        model: sharded or not.
        state: a state dict with the names and shapes of the model's, e.g. an average; None: the model's own.
    """
    own = model.state_dict()  # reshards the parameters after a forward pass
    scalars = {name for name, parameter in model.named_parameters() if process_group.is_scalar(parameter)}
    state = own if state is None else state
    for name, value in state.items():
        yield name, _full(value, name in scalars)


def load_full_weights(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Loads an unsharded state dict; each process keeps its shard.

    Raises:
        RuntimeError: names or shapes are not the model's.
    """
    own = model.state_dict()
    shards = {name: shard_like(value, own[name]) if name in own else value for name, value in state.items()}
    model.load_state_dict(shards)


def shard_like(full: Tensor, like: Tensor) -> Tensor:
    """A full tensor, sharded like another one."""
    if not isinstance(like, DTensor):
        return full
    full = full.reshape(1) if full.dim() == 0 and like.dim() == 1 else full
    # Every process has the full tensor: nothing is sent.
    return distribute_tensor(full.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def full_optimizer_state(optimizer: torch.optim.Optimizer, keep: Callable[[Tensor], Tensor | None]) -> dict[str, Any]:
    """An optimizer's unsharded state dict; every process must call it.

    Args:
        optimizer: of sharded or unsharded parameters.
        keep: maps each gathered tensor to what is returned, before the next is gathered.
    """
    state = optimizer.state_dict()
    scalars = [process_group.is_scalar(p) for group in optimizer.param_groups for p in group["params"]]

    def kept(index: int, value: Any) -> Any:
        return keep(_full(value, scalars[index])) if isinstance(value, Tensor) else value

    moments = {index: {key: kept(index, value) for key, value in own.items()} for index, own in state["state"].items()}
    return {**state, "state": moments}


def load_full_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Loads an optimizer's unsharded state dict; each process keeps its shard."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    sharded = {
        index: {
            key: shard_like(value, parameters[index]) if isinstance(value, Tensor) and key != "step" else value
            for key, value in own.items()
        }
        for index, own in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": sharded})


def local_copy(model: CoDETR, build: Callable[[], CoDETR]) -> CoDETR:
    """An unsharded copy of the network for this process; every process must call it.

    Args:
        model: sharded or not.
        build: builds a network with the same settings.
    """
    if not is_sharded(model):
        return copy.deepcopy(model)
    device = next(model.parameters()).device
    built = build()
    built.load_state_dict(dict(full_weights(model)))
    return built.to(device)


def _full(value: Tensor, scalar: bool) -> Tensor:
    if not isinstance(value, DTensor):
        return value
    full: Tensor = value.detach().full_tensor()  # type: ignore[attr-defined]
    return full.reshape(()) if scalar else full


def _reshape_scalars(objective: nn.Module) -> list[str]:
    """Gives scalar parameters one dimension; returns their names."""
    scalars = []
    for prefix, module in list(objective.named_modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.dim() == 0:
                trained = parameter.requires_grad
                setattr(module, name, nn.Parameter(parameter.detach().reshape(1), requires_grad=trained))
                scalars.append(f"{prefix}.{name}")
    return scalars
