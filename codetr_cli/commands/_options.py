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

SYNONYMS = {
    "train": {"--fresh": "--restart", "--checkpoint": "--weights"},
    "eval": {"--engine": "--scorer", "--from": "--detections"},
}
"""Verb -> other spellings of its options, e.g. those of former versions -> the spelling that the help shows."""


def use_shown_spelling(words: list[str]) -> list[str]:
    """The words of a command with every synonym of an option replaced by the spelling that the help shows."""
    synonyms = SYNONYMS.get(words[0], {}) if words else {}
    shown = []
    for word in words:
        option, equals, value = word.partition("=")
        shown.append(synonyms.get(option, option) + equals + value)
    return shown


def argument_or_option(context: typer.Context, argument: str, option: str) -> Any:
    """The value of an argument that may be given as an option instead.

    Args:
        context: of the verb.
        argument: name of its parameter.
        option: name of its parameter.

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
    str | None,
    typer.Option(
        "--checkpoint",
        metavar="FILE",
        help="A file, run folder, URL, or downloaded preset.",
        rich_help_panel=INPUT,
    ),
]
SameCheckpointOption = Annotated[
    str | None,
    typer.Option("--checkpoint", metavar="FILE", help="Same as the argument.", rich_help_panel=INPUT),
]
PresetOption = Annotated[
    str | None,
    typer.Option(
        "--preset", metavar="NAME", help="A preset, see `codetr presets`, or a TOML file.", rich_help_panel=INPUT
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a setting, e.g. train.lr=1e-4.",
        rich_help_panel=ADVANCED,
    ),
]
DataOption = Annotated[
    str | None,
    typer.Option("--data", metavar="DIR", help="Folder, else CODETR_DATA or data/coco.", rich_help_panel=INPUT),
]
SameDataOption = Annotated[
    str | None, typer.Option("--data", metavar="DIR", help="Same as the argument.", rich_help_panel=INPUT)
]
DataSetsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="Folder, else CODETR_DATA or data/coco. Repeatable.",
        rich_help_panel=INPUT,
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="NAME",
        help="auto, cpu, cuda, or one GPU as cuda:1.",
        show_default=False,
        rich_help_panel=DEVICE,
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads", metavar="N", min=1, help="CPU threads. Default: PyTorch's choice.", rich_help_panel=DEVICE
    ),
]
DryRunOption = Annotated[
    bool,
    typer.Option("--dry-run", help="Print the resolved settings and the plan, then stop.", rich_help_panel=OUTPUT),
]
JsonOption = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object on stdout, all else on stderr.", rich_help_panel=OUTPUT),
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print only results, warnings and errors.", rich_help_panel=OUTPUT)
]
ReplaceOption = Annotated[
    bool, typer.Option("--force", help="Replace files that already exist.", rich_help_panel=OUTPUT)
]

# -------------------------------------------------------------------------------------------- verbs that detect objects

ForceOption = Annotated[
    bool,
    typer.Option("--force", help="Overwrite results instead of numbering them.", rich_help_panel=OUTPUT),
]
InferencePrecisionOption = Annotated[
    Literal["auto", "fp32", "bf16", "fp16"],
    typer.Option(
        "--precision",
        metavar="TYPE",
        help="auto (fp32, as published), fp32, bf16 or fp16.",
        show_default=False,
        rich_help_panel=DEVICE,
    ),
]
HeadOption = Annotated[
    Literal["decoder", "roi", "atss"] | None,
    typer.Option(
        "--head",
        metavar="NAME",
        help="decoder (default), or auxiliary: roi, atss.",
        rich_help_panel=DETECTIONS,
    ),
]
TtaOption = Annotated[
    bool,
    typer.Option(
        "--tta",
        help="Test-time augmentation: several sizes and flips.",
        rich_help_panel=DETECTIONS,
    ),
]

# -------------------------------------------------------------------------------------------------------------- prepare

DatasetArgument = Annotated[
    str | None,
    typer.Argument(metavar="DIR", help="A COCO, LVIS, Objects365, Pascal VOC or YOLO dataset."),
]
DemoOption = Annotated[
    Path | None,
    typer.Option(
        "--demo", metavar="DIR", help="Write a small synthetic dataset there and check it.", rich_help_panel=INPUT
    ),
]
LinkOption = Annotated[
    Path | None,
    typer.Option(
        "--link",
        metavar="DIR",
        help="Where to link the folder. Default: data/coco, data/lvis_v1 or data/objects365.",
        rich_help_panel=OUTPUT,
    ),
]
NoLinkOption = Annotated[bool, typer.Option("--no-link", help="Check only, make no link.", rich_help_panel=OUTPUT)]
DeepOption = Annotated[
    bool, typer.Option("--deep", help="Decode every image, not only its header.", rich_help_panel=ADVANCED)
]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", metavar="N", min=1, help="Parallel readers.", rich_help_panel=ADVANCED)
]

# ---------------------------------------------------------------------------------------------------------------- train

RunOption = Annotated[
    Path | None,
    typer.Option("--run", metavar="DIR", help="Run folder. Default: runs/PRESET/1, 2, ...", rich_help_panel=OUTPUT),
]
RestartOption = Annotated[
    bool,
    typer.Option(
        "--restart",
        help="Start from scratch; move the old run aside.",
        rich_help_panel=OUTPUT,
    ),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="FILE",
        help="Fine-tune from this checkpoint. Also: --checkpoint.",
        rich_help_panel=INPUT,
    ),
]
NoEvalOption = Annotated[
    bool,
    typer.Option("--no-eval", help="Do not evaluate; needs no validation data.", rich_help_panel=INPUT),
]
GpusOption = Annotated[
    int | None,
    typer.Option("--gpus", metavar="N", min=1, help="Train on N GPUs of this machine.", rich_help_panel=DEVICE),
]
ProcsOption = Annotated[
    int | None,
    typer.Option("--procs", metavar="N", min=1, help="Train in N processes on the CPU.", rich_help_panel=DEVICE),
]
AutoFitOption = Annotated[
    bool,
    typer.Option(
        "--auto-fit",
        help="Reduce memory use if it does not fit.",
        rich_help_panel=DEVICE,
    ),
]
NodesOption = Annotated[
    int | None,
    typer.Option("--nodes", metavar="N", min=1, help="Train on N machines; run it on each.", rich_help_panel=MACHINES),
]
EndpointOption = Annotated[
    str | None,
    typer.Option(
        "--rdzv-endpoint",
        metavar="HOST:PORT",
        help="Rendezvous endpoint: one of the nodes and a free port on it.",
        rich_help_panel=MACHINES,
    ),
]
NodeRankOption = Annotated[
    int | None,
    typer.Option(
        "--node-rank",
        metavar="N",
        min=0,
        help="Rank of this node; 0: rendezvous node.",
        rich_help_panel=MACHINES,
    ),
]
MaxRestartsOption = Annotated[
    int | None,
    typer.Option(
        "--max-restarts",
        metavar="N",
        min=0,
        help="Restarts from the newest checkpoint after a process died. Default: 3 with several processes, else 0.",
        rich_help_panel=MACHINES,
    ),
]
SlurmOption = Annotated[
    bool,
    typer.Option("--slurm", help="Write a SLURM batch script and submit it.", rich_help_panel=MACHINES),
]

# ----------------------------------------------------------------------------------------------------------------- eval

CheckpointArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="CHECKPOINT", help="A .safetensors or published .pth file, URL, run folder, or downloaded preset."
    ),
]
Split = Literal["val", "train", "test"]
SplitOption = Annotated[
    Split,
    typer.Option("--split", metavar="NAME", help="val, train or test.", rich_help_panel=INPUT),
]
ImagesOption = Annotated[
    str | None,
    typer.Option("--images", metavar="DIR", help="With --ann: folder of the images.", rich_help_panel=INPUT),
]
AnnotationsOption = Annotated[
    str | None,
    typer.Option(
        "--ann", metavar="FILE", help="COCO annotations and --images, instead of --data.", rich_help_panel=INPUT
    ),
]
DetectionsOption = Annotated[
    Path | None,
    typer.Option(
        "--detections",
        metavar="FILE",
        help="Score this COCO file instead of a checkpoint.",
        rich_help_panel=INPUT,
    ),
]
MaxImagesOption = Annotated[
    int | None,
    typer.Option(
        "--max-images", metavar="N", min=1, help="Evaluate only the first N images.", rich_help_panel=ADVANCED
    ),
]
BatchOption = Annotated[
    int | None,
    typer.Option("--batch", metavar="N", min=1, help="Images per batch.", rich_help_panel=DEVICE),
]
BoxesOnlyOption = Annotated[
    bool,
    typer.Option("--boxes-only", help="Skip masks, e.g. if the annotations have none.", rich_help_panel=DETECTIONS),
]
ScorerName = Literal["hotcoco", "pycocotools"]
ScorerOption = Annotated[
    ScorerName | None,
    typer.Option(
        "--scorer",
        metavar="NAME",
        help="Scoring backend. hotcoco is fast, pycocotools is the reference; results are identical.",
        rich_help_panel=PROTOCOL,
    ),
]
ProtocolOption = Annotated[
    bool,
    typer.Option(
        "--protocol/--no-protocol",
        help="Print the evaluation protocol with the metrics.",
        show_default=False,
        rich_help_panel=PROTOCOL,
    ),
]
PerClassOption = Annotated[
    bool, typer.Option("--per-class", help="Print the AP of every class.", rich_help_panel=PROTOCOL)
]
EvalOutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="Default: eval/SPLIT beside the checkpoint.",
        rich_help_panel=OUTPUT,
    ),
]

# -------------------------------------------------------------------------------------------------------------- predict

ScoreOption = Annotated[
    float,
    typer.Option("--score", metavar="S", min=0, max=1, help="Lowest score to keep.", rich_help_panel=DETECTIONS),
]
MaxDetsOption = Annotated[
    int | None,
    typer.Option("--max-dets", metavar="N", min=1, help="Most detections per image.", rich_help_panel=DETECTIONS),
]
Nms = Literal["none", "hard", "soft"]
NmsOption = Annotated[
    Nms | None,
    typer.Option(
        "--nms", metavar="KIND", help="none, hard or soft. Default: the checkpoint's.", rich_help_panel=DETECTIONS
    ),
]
PredictOutOption = Annotated[
    Path,
    typer.Option("--out", metavar="DIR", help="Folder of the results, or the next free DIR_2.", rich_help_panel=OUTPUT),
]
NoDrawOption = Annotated[
    bool, typer.Option("--no-draw", help="Write predictions.json, no images.", rich_help_panel=OUTPUT)
]
