"""Options and arguments of the verbs, so that each is spelled and explained once, and the panels of the help screens.

A verb writes `preset: PresetOption = None`; the default stands in its signature. Help texts are read as rich markup, so
they hold no square brackets. A help text names the choices of an option; its metavar stays one short word, since a list
of choices would be broken in the middle of a word on a narrow terminal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

INPUT = "Input"
DETECTIONS = "Detections"
LABELS = "Labels"
VIDEOS = "Videos"
PROTOCOL = "Protocol"
OUTPUT = "Output"
DRAWING = "Drawn images"
SERVER = "Server"
LIMITS = "Limits"
DEVICE = "Device"
MACHINES = "Several machines"
ADVANCED = "Advanced"
MEASUREMENT = "Measurement"

SYNONYMS = {
    "train": {"--fresh": "--restart", "--checkpoint": "--weights"},
    "eval": {"--engine": "--scorer", "--from": "--detections"},
    "label": {"--images": "--save-images"},
}
"""Verb -> other spellings of its options, e.g. those of former versions -> the spelling that the help shows."""


OPTIONAL_VALUES = {"eval": {"--report": (".html", ".htm")}}
"""Verb -> options whose value may be missing -> how a value ends: the next word may be anything else."""


def option(name: str, metavar: str, text: str, panel: str, **more: Any) -> Any:
    """An option with a value; `more` are further arguments of `typer.Option`."""
    return typer.Option(name, metavar=metavar, help=text, rich_help_panel=panel, **more)


def flag(names: str, text: str, panel: str, **more: Any) -> Any:
    """An option without a value, under one or several names."""
    return typer.Option(*names.split(), help=text, rich_help_panel=panel, **more)


def use_shown_spelling(words: list[str]) -> list[str]:
    """The words of a command as the help shows them.

    Every synonym of an option is replaced by the spelling of the help, and an option whose value is missing gets an
    empty one.
    """
    synonyms = SYNONYMS.get(words[0], {}) if words else {}
    optional = OPTIONAL_VALUES.get(words[0], {}) if words else {}
    shown = []
    for word, following in zip(words, [*words, ""][1:], strict=True):
        option, equals, value = word.partition("=")
        if word in optional and not following.lower().endswith(optional[word]):
            equals = "="
        shown.append(synonyms.get(option, option) + equals + value)
    return shown


# ------------------------------------------------------------------------------------------------------------ all verbs

CheckpointOption = Annotated[
    str | None, option("--checkpoint", "FILE", "A file, run folder, URL, hf://ORG/NAME, or preset.", INPUT)
]
SameCheckpointOption = Annotated[str | None, option("--checkpoint", "FILE", "Same as the argument.", INPUT)]
PresetOption = Annotated[
    str | None, option("--preset", "NAME", "A preset, see `codetr presets`, or a TOML file.", INPUT)
]
SetOption = Annotated[
    list[str] | None, option("--set", "KEY=VALUE", "Override a setting, e.g. train.lr=1e-4.", ADVANCED)
]
DataOption = Annotated[list[str] | None, option("--data", "DIR", "Else CODETR_DATA or data/coco.", INPUT)]
SameDataOption = Annotated[list[str] | None, option("--data", "DIR", "Same as the argument.", INPUT)]
FormatOption = Annotated[
    str | None, option("--format", "NAME", "Layout of the data, if several are possible, e.g. voc.", INPUT)
]
ValFractionOption = Annotated[
    float | None,
    option("--val-fraction", "SHARE", "Reserved for validation where no part is for it. Default: 0.2.", INPUT),
]
AnnotationsOption = Annotated[
    str | None, option("--ann", "FILE", "One COCO annotation file of any name, instead of --data.", INPUT)
]
ImagesOption = Annotated[
    str | None, option("--images", "DIR", "With --ann: its images. Default: found by their names.", INPUT)
]
DataSetsOption = Annotated[
    list[str] | None, option("--data", "DIR", "Else CODETR_DATA or data/coco. Repeatable.", INPUT)
]
DeviceOption = Annotated[
    str, option("--device", "NAME", "auto, cpu, cuda, cuda:1, mps or xpu.", DEVICE, show_default=False)
]
ThreadsOption = Annotated[
    int | None, option("--threads", "N", "CPU threads. Default: PyTorch's choice.", DEVICE, min=1)
]
DryRunOption = Annotated[bool, flag("--dry-run", "Print the resolved settings and the plan, then stop.", OUTPUT)]
JsonOption = Annotated[bool, flag("--json", "Print one JSON object on stdout, all else on stderr.", OUTPUT)]
QuietOption = Annotated[bool, flag("--quiet -q", "Print only results, warnings and errors.", OUTPUT)]
ReplaceOption = Annotated[bool, flag("--force", "Replace files that codetr has made.", OUTPUT)]

# ---------------------------------------------------------------------------------- verbs that run in several processes

GpusOption = Annotated[int | None, option("--gpus", "N", "Use N GPUs of this machine.", DEVICE, min=1)]
ProcsOption = Annotated[int | None, option("--procs", "N", "Use N processes on the CPU.", DEVICE, min=1)]
NodesOption = Annotated[int | None, option("--nodes", "N", "Use N machines; run it on each.", MACHINES, min=1)]
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
        "Restarts after a process died; what was saved is kept. Default: 3 with several processes, else 0.",
        MACHINES,
        min=0,
    ),
]
SlurmOption = Annotated[bool, flag("--slurm", "Write a SLURM batch script and submit it.", MACHINES)]

# -------------------------------------------------------------------------------------------- verbs that detect objects

ForceOption = Annotated[bool, flag("--force", "Replace own results instead of numbering them.", OUTPUT)]
InferencePrecisionOption = Annotated[
    Literal["auto", "fp32", "tf32", "bf16", "fp16"],
    option("--precision", "TYPE", "auto (fp32, as published), fp32, tf32, bf16 or fp16.", DEVICE, show_default=False),
]
HeadOption = Annotated[
    Literal["decoder", "roi", "atss"] | None,
    option("--head", "NAME", "decoder (default), or auxiliary: roi, atss.", DETECTIONS),
]
TtaOption = Annotated[bool, flag("--tta", "Test-time augmentation: several sizes and flips.", DETECTIONS)]
TilesOption = Annotated[
    str | None,
    option("--tiles", "WxH", "Cut large images into tiles of this size, in pixels, auto, or none.", DETECTIONS),
]
OverlapOption = Annotated[
    float | None, option("--overlap", "SHARE", "Of a tile, repeated in the next one. Default: 0.2.", DETECTIONS)
]

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

TrainPrecisionOption = Annotated[
    Literal["auto", "fp32", "tf32", "bf16", "fp16"] | None,
    option("--precision", "TYPE", "auto (bf16 on GPUs with it, else fp32), fp32, tf32, bf16 or fp16.", DEVICE),
]
RunOption = Annotated[Path | None, option("--run", "DIR", "Run folder. Default: runs/PRESET/1, 2, ...", OUTPUT)]
RestartOption = Annotated[bool, flag("--restart", "Start from scratch; move the old run aside.", OUTPUT)]
WeightsOption = Annotated[
    str | None, option("--weights", "FILE", "Fine-tune from this checkpoint. Also: --checkpoint.", INPUT)
]
NoEvalOption = Annotated[bool, flag("--no-eval", "Do not evaluate; needs no validation data.", INPUT)]
AutoFitOption = Annotated[bool, flag("--auto-fit", "Reduce memory use if it does not fit.", DEVICE)]

# ----------------------------------------------------------------------------------------------------------------- eval

CheckpointArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="CHECKPOINT",
        help="A .safetensors, published .pth or exported file, run folder, URL, hf://ORG/NAME, or downloaded preset.",
    ),
]
Split = Literal["val", "train", "test"]
SplitOption = Annotated[Split, option("--split", "NAME", "val, train or test.", INPUT)]
EvalAnnotationsOption = Annotated[
    str | None,
    option(
        "--ann",
        "FILE",
        "One COCO annotation file, instead of --data: all of it, unless the checkpoint was trained on a part of it or "
        "--split chooses one.",
        INPUT,
    ),
]
DetectionsOption = Annotated[
    Path | None, option("--detections", "FILE", "Score this JSON file of any detector.", INPUT)
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
EvalReportOption = Annotated[
    str | None,
    option("--report", "FILE", "Write a report. Default: report.html.", OUTPUT),
]
EvalOutOption = Annotated[Path | None, option("--out", "DIR", "Default: eval/SPLIT beside the checkpoint.", OUTPUT)]

# -------------------------------------------------------------------------------------------------------------- predict

ScoreOption = Annotated[
    list[str] | None,
    option(
        "--score", "S", "Lowest score to keep; of one class: --score person=0.5. Repeatable. Default: 0.3.", DETECTIONS
    ),
]
MaxDetsOption = Annotated[int | None, option("--max-dets", "N", "Most detections per image.", DETECTIONS, min=1)]
Nms = Literal["none", "hard", "soft"]
NmsOption = Annotated[Nms | None, option("--nms", "KIND", "none, hard or soft. Default: the checkpoint's.", DETECTIONS)]
PredictOutOption = Annotated[Path, option("--out", "DIR", "Folder of the results, or the next free DIR_2.", OUTPUT)]
NoDrawOption = Annotated[bool, flag("--no-draw", "Draw no images.", OUTPUT)]
ResultFormatOption = Annotated[
    list[str] | None,
    option(
        "--format",
        "FMT",
        "coco (predictions.json, default), yolo, voc, labelme, cvat or label-studio (folders of labels), csv, jsonl or "
        "parquet (files of --shard-size images). Several: coco,yolo.",
        OUTPUT,
    ),
]
ClassMapOption = Annotated[
    str | None,
    option("--class-map", "MAP", "Other names of classes: car=vehicle,bus=vehicle,dog= (dropped), or a file.", LABELS),
]
ReviewOption = Annotated[
    str | None,
    option("--review", "LOW:HIGH", "List images with a detection whose score is in this band.", LABELS),
]
OutlinesOption = Annotated[bool, flag("--outlines", "Masks as polygons in files of labels, not boxes.", LABELS)]
CropsOption = Annotated[bool, flag("--crops", "Write each detection's part of the image: crops/CLASS/.", LABELS)]
ColumnOption = Annotated[
    str | None, option("--column", "NAME", "Of a CSV or Parquet list: names the images. Default: path, url, ...", INPUT)
]
ShardSizeOption = Annotated[
    int, option("--shard-size", "N", "Images in each file of jsonl and parquet.", ADVANCED, min=1)
]
LabelsOption = Annotated[
    Literal["none", "class", "score"],
    option("--labels", "WHAT", "none, class or score (name and score).", DRAWING, show_default=False),
]
ThicknessOption = Annotated[
    int | None, option("--thickness", "PX", "Of lines. Default: by the size of the image.", DRAWING, min=1, max=1000)
]
FontSizeOption = Annotated[
    int | None, option("--font-size", "PX", "Of labels. Default: by the size of the image.", DRAWING, min=1, max=1000)
]
ImageFormatOption = Annotated[
    Literal["same", "jpg", "png", "webp"],
    option("--image-format", "TYPE", "same as the image (else png), jpg, png or webp.", DRAWING, show_default=False),
]
GridOption = Annotated[
    str | None, option("--grid", "N", "Also a montage of the first N images, or RxC: rows and columns.", DRAWING)
]
AgainstOption = Annotated[
    Path | None,
    option("--against", "PATH", "Compare with annotations, a file or data set: hits, misses, false alarms.", DRAWING),
]
AgainstViewOption = Annotated[
    Literal["side", "overlay"],
    option("--against-view", "HOW", "side by side with the annotations, or overlay.", DRAWING, show_default=False),
]
QualityOption = Annotated[int, option("--quality", "Q", "Of JPEG and WebP, up to 100.", DRAWING, min=1, max=100)]

StrideOption = Annotated[int, option("--stride", "N", "Use every N-th frame of a video.", VIDEOS, min=1)]
StartOption = Annotated[str | None, option("--start", "TIME", "Begin there: seconds, m:ss or h:mm:ss.", VIDEOS)]
EndOption = Annotated[str | None, option("--end", "TIME", "End there.", VIDEOS)]
TrackOption = Annotated[bool, flag("--track", "Follow objects through a video: each gets an id.", VIDEOS)]
FpsOption = Annotated[
    str | None, option("--fps", "RATE", "Frames per second of an image sequence. Default: 25.", VIDEOS)
]

PredictBatchOption = Annotated[
    str,
    option(
        "--batch",
        "N",
        "Images at once: a number, or auto: 1 on a CPU, by memory on a GPU. Batches round differently: in float32 "
        "boxes are within 1e-3 pixels of those of each image alone.",
        DEVICE,
    ),
]
ExactOption = Annotated[
    bool, flag("--exact", "Each image alone: its detections are the same whatever the other images are.", DEVICE)
]
PredictWorkersOption = Annotated[
    int | None,
    option(
        "--workers", "N", "Threads that read, and as many that draw. Default: by the cores.", DEVICE, min=1, max=256
    ),
]


# ----------------------------------------------------------------------------------------------------------------- demo

ExamplesOption = Annotated[
    Path | None, option("--examples", "DIR", "Pictures and videos to click on, the first 24.", INPUT)
]
HostOption = Annotated[
    str, option("--host", "ADDRESS", "To listen on; 0.0.0.0: reachable from other machines.", SERVER)
]
DemoPortOption = Annotated[
    int | None,
    option("--port", "N", "Default: 7860, or the next free one. 0: any free one.", SERVER, min=0, max=65535),
]
ShareOption = Annotated[bool, flag("--share", "Also at a public address, through a tunnel of Gradio's makers.", SERVER)]
MaxUploadOption = Annotated[int, option("--max-upload", "MB", "Largest file that is taken.", SERVER, min=1)]

# ---------------------------------------------------------------------------------------------------------------- serve

PortOption = Annotated[int, option("--port", "N", "Port to listen on; 0: one that is free.", SERVER, min=0, max=65535)]
ApiKeyOption = Annotated[
    str | None,
    option(
        "--api-key",
        "KEY",
        "Key that requests must have. Better in the environment, where other users do not see it.",
        SERVER,
        envvar="CODETR_API_KEY",
    ),
]
CorsOption = Annotated[
    list[str] | None,
    option("--cors-origin", "URL", "Let web pages of this origin ask, e.g. https://example.org. Repeatable.", SERVER),
]
ServeBatchOption = Annotated[
    str, option("--batch", "N", "Images at once: a number, or auto: 1 on a CPU, by memory on a GPU.", DEVICE)
]
MaxWaitOption = Annotated[
    float, option("--max-wait-ms", "MS", "How long an image waits for others of its batch.", DEVICE, min=0, max=10_000)
]
QueueOption = Annotated[
    int,
    option("--queue", "N", "Images that are accepted and not answered yet; more get 429.", LIMITS, min=1, max=100_000),
]
TimeoutOption = Annotated[
    float, option("--timeout", "S", "Seconds from the end of a request to its answer.", LIMITS, min=0.1, max=86_400)
]
ReadTimeoutOption = Annotated[
    float, option("--read-timeout", "S", "Seconds for a client to send a request.", LIMITS, min=0.1, max=86_400)
]
MaxRequestImagesOption = Annotated[
    int, option("--max-images", "N", "Images of one request.", LIMITS, min=1, max=10_000)
]
MaxPixelsOption = Annotated[
    int, option("--max-pixels", "N", "Pixels of one image, width times height.", LIMITS, min=1, max=10_000_000_000)
]
MaxBodyOption = Annotated[int, option("--max-body", "MB", "Megabytes of one request.", LIMITS, min=1, max=10_000)]
MaxTilesOption = Annotated[int, option("--max-tiles", "N", "Tiles of one image.", LIMITS, min=1, max=100_000)]
ServeWorkersOption = Annotated[
    int | None,
    option("--workers", "N", "Processes on the port, each with the model. Default: one for each GPU.", DEVICE, min=1),
]
LogRequestsOption = Annotated[bool, flag("--log-requests", "Log a line for each request.", OUTPUT)]

# ---------------------------------------------------------------------------------------------------------- model cards

LicenseOption = Annotated[
    str | None, option("--license", "SPDX", "Of the weights, e.g. Apache-2.0. Default: if it is known.", INPUT)
]
CardEvaluationOption = Annotated[
    Path | None,
    option("--evaluation", "PATH", "Folder of `codetr eval`, or a run, for the card. Default: found beside it.", INPUT),
]

# ---------------------------------------------------------------------------------------------------------------- bench

SizeOption = Annotated[str | None, option("--size", "HxW", "Input in pixels. Default: the preset's.", INPUT)]
WarmupOption = Annotated[int | None, option("--warmup", "N", "Runs before the measurement.", MEASUREMENT, min=0)]
IterationsOption = Annotated[int | None, option("--iterations", "N", "Measured runs.", MEASUREMENT, min=1)]
CompareOption = Annotated[
    Literal["torch"] | None, option("--compare", "torch", "Also measure plain PyTorch, in turn.", MEASUREMENT)
]
ReportOption = Annotated[Path | None, option("--out", "FILE", "Also write the JSON to this file.", OUTPUT)]
