"""Options and arguments of the verbs, so that each is spelled and explained once, and the panels of the help screens.

A verb writes `preset: PresetOption = None`; the default stands in its signature. Help texts are read as rich markup, so
they hold no square brackets. A help text names the choices of an option; its metavar stays one short word, since a list
of choices would be broken in the middle of a word on a narrow terminal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from codetr_cli.errors import ConfigError

INPUT = "Input"
DETECTIONS = "Detections"
PROTOCOL = "Protocol"
OUTPUT = "Output"
DEVICE = "Device"
MACHINES = "Several machines"
ADVANCED = "Advanced"
MEASUREMENT = "Measurement"

SYNONYMS = {
    "train": {"--fresh": "--restart", "--checkpoint": "--weights"},
    "eval": {"--engine": "--scorer", "--from": "--detections"},
}
"""Verb -> other spellings of its options, e.g. those of former versions -> the spelling that the help shows."""


def option(name: str, metavar: str, text: str, panel: str, **more: Any) -> Any:
    """An option with a value; `more` are further arguments of `typer.Option`."""
    return typer.Option(name, metavar=metavar, help=text, rich_help_panel=panel, **more)


def flag(names: str, text: str, panel: str, **more: Any) -> Any:
    """An option without a value, under one or several names."""
    return typer.Option(*names.split(), help=text, rich_help_panel=panel, **more)


def use_shown_spelling(words: list[str]) -> list[str]:
    """The words of a command with every synonym of an option replaced by the spelling that the help shows."""
    synonyms = SYNONYMS.get(words[0], {}) if words else {}
    shown = []
    for word in words:
        option, equals, value = word.partition("=")
        shown.append(synonyms.get(option, option) + equals + value)
    return shown


def argument_or_option(context: typer.Context, argument: str, option: str) -> Any:
    """The value of an argument that may be given as an option instead; both are names of parameters.

    Raises:
        ConfigError: both are given.
    """
    first, second = context.params[argument], context.params[option]
    if first is not None and second is not None:
        raise ConfigError(
            f"both {first} and --{option.removesuffix('_option')} {second} are given, and they mean the same thing: "
            "give one of them"
        )
    return second if first is None else first


# ------------------------------------------------------------------------------------------------------------ all verbs

CheckpointOption = Annotated[
    str | None, option("--checkpoint", "FILE", "A file, run folder, URL, or downloaded preset.", INPUT)
]
SameCheckpointOption = Annotated[str | None, option("--checkpoint", "FILE", "Same as the argument.", INPUT)]
PresetOption = Annotated[
    str | None, option("--preset", "NAME", "A preset, see `codetr presets`, or a TOML file.", INPUT)
]
SetOption = Annotated[
    list[str] | None, option("--set", "KEY=VALUE", "Override a setting, e.g. train.lr=1e-4.", ADVANCED)
]
DataOption = Annotated[str | None, option("--data", "DIR", "Folder, else CODETR_DATA or data/coco.", INPUT)]
SameDataOption = Annotated[str | None, option("--data", "DIR", "Same as the argument.", INPUT)]
DataSetsOption = Annotated[
    list[str] | None, option("--data", "DIR", "Folder, else CODETR_DATA or data/coco. Repeatable.", INPUT)
]
DeviceOption = Annotated[
    str, option("--device", "NAME", "auto, cpu, cuda, or one GPU as cuda:1.", DEVICE, show_default=False)
]
ThreadsOption = Annotated[
    int | None, option("--threads", "N", "CPU threads. Default: PyTorch's choice.", DEVICE, min=1)
]
DryRunOption = Annotated[bool, flag("--dry-run", "Print the resolved settings and the plan, then stop.", OUTPUT)]
JsonOption = Annotated[bool, flag("--json", "Print one JSON object on stdout, all else on stderr.", OUTPUT)]
QuietOption = Annotated[bool, flag("--quiet -q", "Print only results, warnings and errors.", OUTPUT)]
ReplaceOption = Annotated[bool, flag("--force", "Replace files that already exist.", OUTPUT)]

# -------------------------------------------------------------------------------------------- verbs that detect objects

ForceOption = Annotated[bool, flag("--force", "Overwrite results instead of numbering them.", OUTPUT)]
InferencePrecisionOption = Annotated[
    Literal["auto", "fp32", "bf16", "fp16"],
    option("--precision", "TYPE", "auto (fp32, as published), fp32, bf16 or fp16.", DEVICE, show_default=False),
]
HeadOption = Annotated[
    Literal["decoder", "roi", "atss"] | None,
    option("--head", "NAME", "decoder (default), or auxiliary: roi, atss.", DETECTIONS),
]
TtaOption = Annotated[bool, flag("--tta", "Test-time augmentation: several sizes and flips.", DETECTIONS)]

# -------------------------------------------------------------------------------------------------------------- prepare

DatasetArgument = Annotated[
    str | None,
    typer.Argument(metavar="DIR", help="A COCO, LVIS, Objects365, Pascal VOC or YOLO dataset."),
]
DemoOption = Annotated[
    Path | None, option("--demo", "DIR", "Write a small synthetic dataset there and check it.", INPUT)
]
LinkOption = Annotated[
    Path | None,
    option("--link", "DIR", "Where to link the folder. Default: data/coco, data/lvis_v1 or data/objects365.", OUTPUT),
]
NoLinkOption = Annotated[bool, flag("--no-link", "Check only, make no link.", OUTPUT)]
DeepOption = Annotated[bool, flag("--deep", "Decode every image, not only its header.", ADVANCED)]
WorkersOption = Annotated[int | None, option("--workers", "N", "Parallel readers.", ADVANCED, min=1)]

# ---------------------------------------------------------------------------------------------------------------- train

RunOption = Annotated[Path | None, option("--run", "DIR", "Run folder. Default: runs/PRESET/1, 2, ...", OUTPUT)]
RestartOption = Annotated[bool, flag("--restart", "Start from scratch; move the old run aside.", OUTPUT)]
WeightsOption = Annotated[
    str | None, option("--weights", "FILE", "Fine-tune from this checkpoint. Also: --checkpoint.", INPUT)
]
NoEvalOption = Annotated[bool, flag("--no-eval", "Do not evaluate; needs no validation data.", INPUT)]
GpusOption = Annotated[int | None, option("--gpus", "N", "Train on N GPUs of this machine.", DEVICE, min=1)]
ProcsOption = Annotated[int | None, option("--procs", "N", "Train in N processes on the CPU.", DEVICE, min=1)]
AutoFitOption = Annotated[bool, flag("--auto-fit", "Reduce memory use if it does not fit.", DEVICE)]
NodesOption = Annotated[int | None, option("--nodes", "N", "Train on N machines; run it on each.", MACHINES, min=1)]
EndpointOption = Annotated[
    str | None,
    option("--rdzv-endpoint", "HOST:PORT", "Rendezvous endpoint: one of the nodes and a free port on it.", MACHINES),
]
NodeRankOption = Annotated[
    int | None, option("--node-rank", "N", "Rank of this node; 0: rendezvous node.", MACHINES, min=0)
]
MaxRestartsOption = Annotated[
    int | None,
    option(
        "--max-restarts",
        "N",
        "Restarts from the newest checkpoint after a process died. Default: 3 with several processes, else 0.",
        MACHINES,
        min=0,
    ),
]
SlurmOption = Annotated[bool, flag("--slurm", "Write a SLURM batch script and submit it.", MACHINES)]

# ----------------------------------------------------------------------------------------------------------------- eval

CheckpointArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="CHECKPOINT", help="A .safetensors or published .pth file, URL, run folder, or downloaded preset."
    ),
]
Split = Literal["val", "train", "test"]
SplitOption = Annotated[Split, option("--split", "NAME", "val, train or test.", INPUT)]
ImagesOption = Annotated[str | None, option("--images", "DIR", "With --ann: folder of the images.", INPUT)]
AnnotationsOption = Annotated[
    str | None, option("--ann", "FILE", "COCO annotations and --images, instead of --data.", INPUT)
]
DetectionsOption = Annotated[
    Path | None, option("--detections", "FILE", "Score this COCO file instead of a checkpoint.", INPUT)
]
MaxImagesOption = Annotated[
    int | None, option("--max-images", "N", "Evaluate only the first N images.", ADVANCED, min=1)
]
BatchOption = Annotated[int | None, option("--batch", "N", "Images per batch.", DEVICE, min=1)]
BoxesOnlyOption = Annotated[bool, flag("--boxes-only", "Skip masks, e.g. if the annotations have none.", DETECTIONS)]
ScorerName = Literal["hotcoco", "pycocotools"]
ScorerOption = Annotated[
    ScorerName | None,
    option(
        "--scorer",
        "NAME",
        "Scoring backend. hotcoco is fast, pycocotools is the reference; results are identical.",
        PROTOCOL,
    ),
]
ProtocolOption = Annotated[
    bool,
    flag("--protocol/--no-protocol", "Print the evaluation protocol with the metrics.", PROTOCOL, show_default=False),
]
PerClassOption = Annotated[bool, flag("--per-class", "Print the AP of every class.", PROTOCOL)]
EvalOutOption = Annotated[Path | None, option("--out", "DIR", "Default: eval/SPLIT beside the checkpoint.", OUTPUT)]

# -------------------------------------------------------------------------------------------------------------- predict

ScoreOption = Annotated[float, option("--score", "S", "Lowest score to keep.", DETECTIONS, min=0, max=1)]
MaxDetsOption = Annotated[int | None, option("--max-dets", "N", "Most detections per image.", DETECTIONS, min=1)]
Nms = Literal["none", "hard", "soft"]
NmsOption = Annotated[Nms | None, option("--nms", "KIND", "none, hard or soft. Default: the checkpoint's.", DETECTIONS)]
PredictOutOption = Annotated[Path, option("--out", "DIR", "Folder of the results, or the next free DIR_2.", OUTPUT)]
NoDrawOption = Annotated[bool, flag("--no-draw", "Write predictions.json, no images.", OUTPUT)]

# ---------------------------------------------------------------------------------------------------------------- bench

SizeOption = Annotated[str | None, option("--size", "HxW", "Input in pixels. Default: the preset's.", INPUT)]
WarmupOption = Annotated[int | None, option("--warmup", "N", "Runs before the measurement.", MEASUREMENT, min=0)]
IterationsOption = Annotated[int | None, option("--iterations", "N", "Measured runs.", MEASUREMENT, min=1)]
CompareOption = Annotated[
    Literal["torch"] | None, option("--compare", "torch", "Also measure plain PyTorch, in turn.", MEASUREMENT)
]
ReportOption = Annotated[Path | None, option("--out", "FILE", "Also write the JSON to this file.", OUTPUT)]
