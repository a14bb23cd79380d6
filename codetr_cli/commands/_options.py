"""Options and arguments that several verbs share, so that each is spelled and explained once.

A verb writes `preset: PresetOption = None`; the default stands in its signature. Help texts are read as rich markup: no
square brackets.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

CheckpointOption = Annotated[
    str | None,
    typer.Option(
        "--checkpoint", metavar="FILE", help="Weights to use: a file, run folder, address, or downloaded preset."
    ),
]
PresetOption = Annotated[
    str | None,
    typer.Option("--preset", metavar="NAME", help="A preset, see `codetr presets`, or the path of a TOML file."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one setting, e.g. train.lr=1e-4. May be repeated."),
]
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="Folder in COCO's, VOC's or YOLO's layout. Without it: CODETR_DATA, else data/coco.",
    ),
]
DataSetsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="Folder in COCO's, VOC's or YOLO's layout; several, each with --data, are merged by the names of their "
        "classes. Without it: CODETR_DATA, else data/coco.",
    ),
]
RunOption = Annotated[
    Path | None, typer.Option("--run", metavar="DIR", help="Run folder. Without it: runs/PRESET/1, 2, ...")
]
DeviceOption = Annotated[
    str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda, or one GPU as cuda:1. auto: a GPU if any.")
]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", metavar="N", min=1, help="CPU threads. Without it: PyTorch's choice.")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print the resolved settings as TOML and what would be done, then stop.")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout; text for people goes to stderr.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Show results, warnings and errors only.")]
