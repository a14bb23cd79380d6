"""The report on this machine, at the end of `codetr prepare` and alone in `codetr doctor`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from codetr_cli import console

if TYPE_CHECKING:
    from codetr_cli.runtime.environment import MachineReport


def show_machine(environment: MachineReport) -> None:
    """Prints the table of this machine and warns of what should be fixed."""
    console.table("This machine", ["what", "found"], machine_rows(environment))
    for remark in environment.remarks:
        console.warn(remark)


def machine_rows(environment: MachineReport) -> list[tuple[str, object]]:
    """The machine as pairs of a heading and a value."""
    size = console.bytes_text
    rows: list[tuple[str, object]] = [
        ("Python", f"{environment.python} on {environment.system}"),
        ("PyTorch", f"{environment.torch}, built for {environment.built_for}"),
        ("GPU driver", environment.driver or "none visible"),
    ]
    for index, gpu in enumerate(environment.gpus):
        free = f" ({size(gpu.free_bytes)} free)" if gpu.free_bytes is not None else ""
        bf16 = "bf16" if gpu.bf16 else "no bf16"
        rows.append((f"GPU {index}", f"{gpu.name}, {size(gpu.memory_bytes)}{free}, {gpu.capability}, {bf16}"))
    if environment.no_gpu:
        rows.append(("GPU", f"none: {environment.no_gpu}"))
    rows.append(("communication", _choices(environment.transports)))
    rows += [(f"attention on {kind}", note) for kind, note in environment.attention_notes.items()]
    memory = "unknown" if environment.memory_bytes is None else size(environment.memory_bytes)
    free = "" if environment.free_memory_bytes is None else f" ({size(environment.free_memory_bytes)} free)"
    rows += [("processors", environment.cpus), ("RAM", memory + free)]
    if environment.shared_memory_bytes is not None:
        rows.append(("/dev/shm", size(environment.shared_memory_bytes)))
    rows += [(f"disk of {disk.path}", f"{size(disk.free_bytes)} free") for disk in environment.disks]
    packages = [f"{name} {version}" for name, version in environment.packages.items() if version]
    rows.append(("packages", ", ".join(packages)))
    return rows


def _choices(known: Mapping[str, str | None]) -> str:
    return ", ".join(name if why is None else f"no {name} ({why})" for name, why in known.items())
