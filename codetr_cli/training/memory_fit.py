"""Settings that fit the memory: proposed before the first step, or applied with `codetr train --auto-fit`.

Tried one after the other, each with those before it, and measured: recomputing encoder, decoder and auxiliary heads,
backbone; fewer images at once, accumulated to the same batch size; bf16; weights spread over the processes. The first
that fits is taken. What was changed lies in the run's memory.json, so that the same command continues with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from codetr_cli.config.overrides import replace_settings
from codetr_cli.config.schema import Settings
from codetr_cli.distributed import process_group
from codetr_cli.errors import ResourceError
from codetr_cli.models.codetr import CoDETR
from codetr_cli.runs.folder import Origin, RunFolder
from codetr_cli.runs.memory_record import read_record, write_record
from codetr_cli.runtime.memory import local_processes
from codetr_cli.runtime.precision import autocast_dtype
from codetr_cli.training.memory_check import Need, Sizes, WorstBatch, measure, worst_batch
from codetr_cli.training.plan import plan_batches
from codetr_cli.training.recomputation import all_checkpointing, set_checkpointing
from codetr_cli.training.reporter import Report

SWITCH_OFF = "`--set train.memory_check=false` leaves this check out"


@dataclass(frozen=True)
class MemoryOption:
    """One way to need less memory.

    Attributes:
        settings: that are tried.
        changes: what they change of the run's, by name, in order.
    """

    settings: Settings
    changes: dict[str, Any]

    @property
    def words(self) -> str:
        """What to type."""
        return " ".join(f"--set {key}={_shown(value)}" for key, value in self.changes.items())


def check_memory(
    model: CoDETR,
    dataset: Sizes,
    settings: Settings,
    *,
    device: torch.device,
    folder: RunFolder,
    origin: Origin,
    auto_fit: bool,
    begun: bool,
    report: Report,
) -> Settings:
    """Makes sure, once for a run on a device, that the worst batch fits; every process must call it.

    Args:
        model: on its device, neither wrapped nor compiled yet; afterwards it recomputes as the settings say.
        dataset: of the training images.
        settings: of the run.
        device: of this process.
        folder: of the run; gets the settings that are changed.
        origin: of the run.
        auto_fit: change settings until it fits.
        begun: the run has a checkpoint: it is checked again only where what it was checked for has changed.
        report: whom to tell.

    Returns:
        the settings, with `auto_fit` perhaps changed ones.

    Raises:
        ResourceError: it does not fit; says with which settings it would.
    """
    world = process_group.world_size()
    facts = _facts(settings, device, world)
    checked = read_record(folder.path).checked
    (known,) = process_group.any_process(checked == facts or (begun and not checked))
    if known or not settings.train.memory_check:
        return settings

    def need_of(candidate: Settings) -> tuple[WorstBatch, Need | None]:
        batches = plan_batches(candidate.train.batch_size, candidate.train.micro_batch, world)
        worst = worst_batch(candidate, dataset, batches.micro_batch, world)
        process_group.barrier()  # memory is shared fairly while nobody measures
        need = measure(model, candidate, worst, device, processes=world, local_processes=local_processes(world))
        return worst, _agreed(need)

    try:
        worst, need = need_of(settings)
        if need is None:
            report.note("memory: this machine does not tell what the worst batch needs")
            return settings
        text = f"memory: the worst batch ({worst}) needs {need}{' in each process' if world > 1 else ''}"
        if need.fits:
            _note(text, folder, report)
            chosen = MemoryOption(settings, {})
        else:
            chosen = _fitting(settings, need, text, lambda tried: need_of(tried)[1], device, auto_fit)
            _note(f"{text}; so that it fits, --auto-fit has chosen {_told(chosen.changes, settings)}", folder, report)
    finally:
        set_checkpointing(model, settings.model)
    set_checkpointing(model, chosen.settings.model)
    if process_group.is_main():
        _record(folder, origin, settings, chosen, _facts(chosen.settings, device, world))
    process_group.barrier()
    return chosen.settings


def ladder(settings: Settings, device: torch.device, world_size: int) -> Iterator[MemoryOption]:
    """Ways to need less memory, each with those before it, from the one that costs least to the one that costs most.

    Args:
        settings: of the run.
        device: bf16 is tried only where it has that in hardware.
        world_size: processes of the training.
    """
    changes: dict[str, Any] = {}

    def rung(**more: Any) -> MemoryOption:
        changes.update({key.replace("__", "."): value for key, value in more.items()})
        return MemoryOption(replace_settings(settings, changes), dict(changes))

    for names in (("encoder",), ("decoder", "aux"), ("backbone",)):
        more = {key: value for key, value in all_checkpointing(settings).items() if any(name in key for name in names)}
        if more:
            yield rung(**{key.replace(".", "__"): value for key, value in more.items()})
    batches = plan_batches(settings.train.batch_size, settings.train.micro_batch, world_size)
    share, micro_batch = batches.micro_batch * batches.accumulation, batches.micro_batch
    while micro_batch > 1:
        micro_batch = max(size for size in range(1, micro_batch // 2 + 1) if share % size == 0)
        yield rung(train__micro_batch=micro_batch)
    if autocast_dtype(settings.train.precision, device) is None and has_fast_bf16(device):
        yield rung(train__precision="bf16")
    shardable = not settings.train.compile and autocast_dtype(settings.train.precision, device) != torch.float16
    if device.type == "cuda" and world_size > 1 and shardable and not settings.train.fsdp:
        yield rung(train__fsdp=True)


def has_fast_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 in hardware; a CPU that does not is several times slower with it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
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
    """The first rung of the ladder that fits.

    Raises:
        ResourceError: none does, or nobody asked to apply one.
    """
    tried = ""
    for rung in ladder(settings, device, process_group.world_size()):
        found = need_of(rung.settings)
        if found is None:
            continue
        need, tried = found, rung.words
        if not need.fits:
            continue
        if auto_fit:
            return rung
        raise ResourceError(
            f"{text}. With {rung.words} it needs {need}: add that to the command, or --auto-fit, which does it by "
            f"itself. {SWITCH_OFF}."
        )
    even = f" Even with {tried} it needs {need}." if tried else ""
    raise ResourceError(
        f"{text}.{even} Use smaller images (data.short_sides, data.long_side, data.canvas), a smaller network, or a "
        f"machine with more memory. {SWITCH_OFF}."
    )


def _agreed(need: Need | None) -> Need | None:
    """The need of the process that has least left; None when any process does not know."""
    needs = process_group.gather_objects(need)
    worst = None
    if process_group.is_main() and None not in needs:
        worst = max(needs, key=lambda item: item.share)
    agreed: Need | None = process_group.from_main(worst)
    return agreed


def _facts(settings: Settings, device: torch.device, world_size: int) -> dict[str, Any]:
    """What decides how much memory a run needs and has, in types that JSON gives back as they are."""
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


def _record(folder: RunFolder, origin: Origin, before: Settings, chosen: MemoryOption, facts: dict[str, Any]) -> None:
    """Writes down what was checked and changed."""
    record = read_record(folder.path)
    record.checked = facts
    for key, value in chosen.changes.items():
        now = _value(before, key)
        said, used = record.fitted.get(key, [now, now])
        record.fitted[key] = [said if used == now else now, value]  # what the command says, unless it was fitted before
    write_record(folder.path, record)
    if chosen.changes:
        folder.open(chosen.settings, origin)


def _note(text: str, folder: RunFolder, report: Report) -> None:
    if process_group.is_main():
        folder.event(text)
    report.note(text)


def _told(changes: Mapping[str, Any], before: Settings) -> str:
    return ", ".join(f"{key}={_shown(value)} (was {_shown(_value(before, key))})" for key, value in changes.items())


def _value(settings: Settings, key: str) -> Any:
    value: Any = settings.model_dump(mode="json")
    for name in key.split("."):
        value = value[name]
    return value


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
