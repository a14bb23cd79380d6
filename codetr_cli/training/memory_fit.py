"""Settings that fit the memory: proposed before the first step, or applied with `codetr train --auto-fit`.

Options are measured in this order, each on top of those before it: activation checkpointing of encoder, decoder and
auxiliary heads, backbone; smaller micro batches, accumulated to the same batch size; bf16; FSDP. The first that fits
is used. The changes are stored in the run's memory.json, so that the same command continues with them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from codetr_cli.config.overrides import replace_settings
from codetr_cli.config.schema import Settings
from codetr_cli.data.coco import CocoDataset
from codetr_cli.distributed import process_group
from codetr_cli.distributed.fsdp import why_not_shard
from codetr_cli.errors import ResourceError
from codetr_cli.models.codetr import CoDETR
from codetr_cli.runs.folder import RunFolder, RunInputs
from codetr_cli.runs.memory_record import flatten, read_record, write_record
from codetr_cli.runtime.devices import has_bf16
from codetr_cli.runtime.memory import local_processes
from codetr_cli.runtime.precision import autocast_dtype
from codetr_cli.training.memory_check import Need, WorstBatch, measure, worst_batch
from codetr_cli.training.plan import batch_sizes
from codetr_cli.training.recomputation import all_checkpointing, set_checkpointing

logger = logging.getLogger(__name__)

SWITCH_OFF = "`--set train.memory_check=false` skips this check"


@dataclass(frozen=True)
class MemoryOption:
    """One way to need less memory: changes of the run's settings by name, and the settings with them."""

    settings: Settings
    changes: dict[str, Any]

    @property
    def flags(self) -> str:
        """The changes as command-line options."""
        return " ".join(f"--set {key}={_shown(value)}" for key, value in self.changes.items())


def check_memory(
    model: CoDETR,
    dataset: CocoDataset,
    settings: Settings,
    *,
    device: torch.device,
    folder: RunFolder,
    inputs: RunInputs,
    auto_fit: bool,
    started: bool,
) -> Settings:
    """Checks, once for a run on a device, that the worst batch fits into memory; every process must call it.

    A run that has a checkpoint (`started`) is checked again only when the conditions have changed.

    The model is on its device, neither wrapped nor compiled yet; its activation checkpointing follows the result.

    Returns:
        the settings, with `auto_fit` changed until the batch fits; the run folder gets them.

    Raises:
        ResourceError: it does not fit; the message has the settings with which it would.
    """
    world = process_group.world_size()
    conditions = _conditions(settings, device, world)
    checked = read_record(folder.path).checked
    (known,) = process_group.any_process(checked == conditions or (started and not checked))
    if known or not settings.train.memory_check:
        return settings

    def need_of(candidate: Settings) -> tuple[WorstBatch, Need | None]:
        batches = batch_sizes(candidate.train.batch_size, candidate.train.micro_batch, world)
        worst = worst_batch(candidate, dataset, batches.micro_batch, world)
        process_group.barrier()  # no process measures while another one allocates
        need = measure(model, candidate, worst, device, processes=world, local_processes=local_processes(world))
        return worst, _agreed(need)

    try:
        worst, need = need_of(settings)
        if need is None:
            logger.info("memory: this system does not report what the worst batch needs")
            return settings
        text = f"memory: the worst batch ({worst}) needs {need}{' in each process' if world > 1 else ''}"
        if need.fits:
            logger.info("%s", text)
            chosen = MemoryOption(settings, {})
        else:
            chosen = _fitting(settings, need, text, lambda tried: need_of(tried)[1], device, auto_fit)
            logger.info("%s; to make it fit, --auto-fit sets %s", text, _changes_text(chosen.changes, settings))
    finally:
        set_checkpointing(model, settings.model)
    set_checkpointing(model, chosen.settings.model)
    if process_group.is_main():
        _record(folder, inputs, settings, chosen, _conditions(chosen.settings, device, world))
    process_group.barrier()
    return chosen.settings


def memory_options(settings: Settings, device: torch.device, world_size: int) -> Iterator[MemoryOption]:
    """Ways to need less memory, each on top of those before it, in the order of their cost."""
    changes: dict[str, Any] = {}

    def option(more: Mapping[str, Any]) -> MemoryOption:
        changes.update(more)
        return MemoryOption(replace_settings(settings, changes), dict(changes))

    for names in (("encoder",), ("decoder", "aux"), ("backbone",)):
        more = {key: value for key, value in all_checkpointing(settings).items() if any(name in key for name in names)}
        if more:
            yield option(more)
    batches = batch_sizes(settings.train.batch_size, settings.train.micro_batch, world_size)
    share, micro_batch = batches.micro_batch * batches.accumulation, batches.micro_batch
    while micro_batch > 1:
        micro_batch = max(size for size in range(1, micro_batch // 2 + 1) if share % size == 0)
        yield option({"train.micro_batch": micro_batch})
    if autocast_dtype(settings.train.precision, device) is None and has_fast_bf16(device):
        yield option({"train.precision": "bf16"})
    shardable = not settings.train.compile and autocast_dtype(settings.train.precision, device) != torch.float16
    if device.type == "cuda" and world_size > 1 and shardable and not settings.train.fsdp and why_not_shard() is None:
        yield option({"train.fsdp": True})


def has_fast_bf16(device: torch.device) -> bool:
    """Whether a device has bfloat16 arithmetic in hardware; bf16 is several times slower on a CPU without it."""
    if device.type == "cuda":
        return has_bf16(device)
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)


def _fitting(
    settings: Settings,
    need: Need,
    text: str,
    need_of: Callable[[Settings], Need | None],
    device: torch.device,
    auto_fit: bool,
) -> MemoryOption:
    """The first memory option that fits.

    Raises:
        ResourceError: none fits, or one fits and `auto_fit` is off.
    """
    tried = ""
    for option in memory_options(settings, device, process_group.world_size()):
        found = need_of(option.settings)
        if found is None:
            continue
        need, tried = found, option.flags
        if not need.fits:
            continue
        if auto_fit:
            return option
        raise ResourceError(
            f"{text}. With {option.flags} it needs {need}: add that to the command, or --auto-fit to have it set "
            f"automatically. {SWITCH_OFF}."
        )
    even = f" Even with {tried} it needs {need}." if tried else ""
    raise ResourceError(
        f"{text}.{even} Use smaller images (data.short_sides, data.long_side, data.canvas), a smaller network, or a "
        f"machine with more memory. {SWITCH_OFF}."
    )


def _agreed(need: Need | None) -> Need | None:
    """The need of the process with the least memory left; None when it is unknown in any process."""
    needs = process_group.gather_objects(need)
    known = process_group.is_main() and None not in needs
    agreed: Need | None = process_group.from_main(max(needs, key=lambda item: item.share) if known else None)
    return agreed


def _conditions(settings: Settings, device: torch.device, world_size: int) -> dict[str, Any]:
    """What determines how much memory a run needs and has, in types that JSON keeps."""
    train, data = settings.train, settings.data
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return {
        "device": "cpu" if gpu is None else f"{gpu.name}, {gpu.total_memory}",
        "processes": world_size,
        "model": json.loads(settings.model.model_dump_json()),
        "images": [train.batch_size, train.micro_batch, data.augmentation, list(data.short_sides), data.long_side,
                   data.canvas, data.max_images],
        "arithmetic": [train.precision, train.fsdp, train.ema_momentum],
    }  # fmt: skip


def _record(
    folder: RunFolder, inputs: RunInputs, before: Settings, chosen: MemoryOption, conditions: dict[str, Any]
) -> None:
    """Stores what was checked and changed."""
    record = read_record(folder.path)
    record.checked = conditions
    values = flatten(before.model_dump(mode="json"))
    for key, value in chosen.changes.items():
        now = values[key]
        requested, used = record.fitted.get(key, [now, now])
        # The value of the command, also when the current one was fitted before.
        record.fitted[key] = [requested if used == now else now, value]
    write_record(folder.path, record)
    if chosen.changes:
        folder.open(chosen.settings, inputs)


def _changes_text(changes: Mapping[str, Any], before: Settings) -> str:
    values = flatten(before.model_dump(mode="json"))
    return ", ".join(f"{key}={_shown(value)} (was {_shown(values[key])})" for key, value in changes.items())


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
