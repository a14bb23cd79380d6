"""Weights, gradients and optimizer states spread over the processes of a training (FSDP2), and put together again.

Each process keeps its part of every parameter along the first dimension. A unit's parameters are gathered when it runs,
and given up after it. Gathering is a meeting of all processes, so a unit must run equally often in all of them whatever
their images hold: backbone blocks, neck, encoder layers and the dense auxiliary heads do. All else stays with the root,
which is gathered once a step: the decoder, which runs three times a step and whose value projections are used outside
of its layers; heads that are shared; whatever runs on regions, in as many chunks as there are.

Names and shapes of what is saved are those of a training that is not spread. PyTorch does not shard single numbers, so
they have one dimension here.
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
from codetr_cli.models.backbones.swin import Block as SwinBlock
from codetr_cli.models.backbones.vit import Block as ViTBlock
from codetr_cli.models.codetr import CoDETR
from codetr_cli.models.encoder import EncoderLayer


def check_shardable(*, fp16: bool, compiled: bool) -> None:
    """Refuses what a sharded training cannot do.

    Raises:
        ConfigError: fp16, whose scaler would judge overflow in each process by itself, or compiled parts, in which
            parameters cannot be gathered.
    """
    if fp16:
        raise ConfigError("train.fsdp needs bf16 or fp32: use --set train.precision=bf16, or train.fsdp=false")
    if compiled:
        raise ConfigError(
            "train.fsdp gathers weights around each layer, which compiled layers have no room for: use "
            "--set train.compile=false, or train.fsdp=false"
        )


def shard(objective: CollaborativeObjective, device: torch.device) -> nn.Module:
    """Spreads the network's parameters over all processes, in place; a process alone keeps it as it is.

    Args:
        objective: on its device, with the same weights in every process.
        device: of this process.
    """
    if not process_group.is_connected():
        return objective
    single = _give_single_numbers_a_dimension(objective)
    mesh = init_device_mesh(device.type, (process_group.world_size(),))
    for unit in (*units(objective.model), objective):
        fully_shard(unit, mesh=mesh)
        if isinstance(unit, EncoderLayer):  # recomputes one half of itself
            register_fsdp_forward_method(unit, "attend")
            register_fsdp_forward_method(unit, "finish")
        if device.type == "cpu" and isinstance(unit, FSDPModule):
            unit.set_force_sum_reduction_for_comms(True)  # gloo has no mean
    for name in single:
        setattr(objective.get_parameter(name), process_group.SINGLE_NUMBER, True)
    return objective


def units(model: CoDETR) -> list[nn.Module]:
    """The parts whose parameters are gathered one after the other, parts before what they are part of."""
    layers = [m for m in model.modules() if isinstance(m, SwinBlock | ViTBlock | EncoderLayer)]
    heads = [] if model.aux_heads is None else [model.aux_heads.rpn, model.aux_heads.atss]
    return [*layers, model.backbone, model.neck, *heads]


def is_sharded(module: nn.Module) -> bool:
    """Whether parameters of a network are spread over processes."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


@contextmanager
def gathered(objective: nn.Module) -> Iterator[None]:
    """Inside, the model of a sharded objective can be called by itself; all processes must do so alike."""
    if not isinstance(objective, FSDPModule):
        yield
        return
    objective.unshard()
    try:
        yield
    finally:
        objective.reshard()


def whole_weights(model: nn.Module, state: Mapping[str, Tensor] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Entries of a state dict as if the weights were not spread, gathered one by one; every process must ask for all.

    Args:
        model: sharded or not.
        state: one with the names and shapes of the model's, e.g. an average; None: the model's own.
    """
    own = model.state_dict()  # the model's parameters are spread then, also after a forward pass
    single = {name for name, parameter in model.named_parameters() if process_group.is_single_number(parameter)}
    state = own if state is None else state
    for name, value in state.items():
        yield name, _whole(value, name in single)


def load_whole_weights(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Loads a state dict of whole tensors; each process takes its part.

    Raises:
        RuntimeError: names or shapes are not the model's.
    """
    own = model.state_dict()
    parts = {name: part_of(value, own[name]) if name in own else value for name, value in state.items()}
    model.load_state_dict(parts)


def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, spread as `like` is."""
    if not isinstance(like, DTensor):
        return whole
    whole = whole.reshape(1) if whole.dim() == 0 and like.dim() == 1 else whole
    # Every process has read the whole: nothing is sent.
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def whole_optimizer(optimizer: torch.optim.Optimizer, keep: Callable[[Tensor], Tensor | None]) -> dict[str, Any]:
    """An optimizer's state dict as if nothing were spread; every process must ask.

    Args:
        optimizer: over parameters that are spread or not.
        keep: what becomes of each gathered tensor, before the next is.
    """
    state = optimizer.state_dict()
    single = [process_group.is_single_number(p) for group in optimizer.param_groups for p in group["params"]]

    def kept(index: int, value: Any) -> Any:
        return keep(_whole(value, single[index])) if isinstance(value, Tensor) else value

    moments = {index: {key: kept(index, value) for key, value in own.items()} for index, own in state["state"].items()}
    return {**state, "state": moments}


def load_whole_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Loads an optimizer's state dict of whole tensors; each process takes its part."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    spread = {
        index: {
            key: part_of(value, parameters[index]) if isinstance(value, Tensor) and key != "step" else value
            for key, value in own.items()
        }
        for index, own in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": spread})


def own_copy(model: CoDETR, build: Callable[[], CoDETR]) -> CoDETR:
    """A copy of the network that this process can run by itself; every process must ask.

    Args:
        model: sharded or not.
        build: makes a network of the same settings.
    """
    if not is_sharded(model):
        return copy.deepcopy(model)
    device = next(model.parameters()).device
    built = build()
    built.load_state_dict(dict(whole_weights(model)))
    return built.to(device)


def _whole(value: Tensor, single: bool) -> Tensor:
    if not isinstance(value, DTensor):
        return value
    whole: Tensor = value.detach().full_tensor()  # type: ignore[attr-defined]
    return whole.reshape(()) if single else whole


def _give_single_numbers_a_dimension(objective: nn.Module) -> list[str]:
    single = []
    for prefix, module in list(objective.named_modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.dim() == 0:
                trained = parameter.requires_grad
                setattr(module, name, nn.Parameter(parameter.detach().reshape(1), requires_grad=trained))
                single.append(f"{prefix}.{name}")
    return single
