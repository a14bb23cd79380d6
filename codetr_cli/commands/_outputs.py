"""What the verbs that detect share: their options, and where results go without overwriting anything unasked."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Annotated, Literal

import typer

ForceOption = Annotated[
    bool, typer.Option("--force", help="Overwrite earlier results instead of taking the next free name.")
]
InferencePrecisionOption = Annotated[
    Literal["auto", "fp32", "bf16", "fp16"],
    typer.Option(
        "--precision", help="Arithmetic of the network. auto: fp32, as published; bf16 is faster on new GPUs."
    ),
]
HeadOption = Annotated[
    Literal["decoder", "roi", "atss"] | None,
    typer.Option("--head", help="Whose detections: the decoder's, or those of an auxiliary head."),
]
TtaOption = Annotated[
    bool,
    typer.Option(
        "--tta",
        help="Look at each image in several sizes and mirrored (test.tta_scales, test.tta_flip), merged by soft-NMS.",
    ),
]


def free_folder(folder: Path, marker: str, *, force: bool) -> Path:
    """The folder, or the first of folder_2, folder_3, ... that does not hold results yet.

    Args:
        folder: where results are wanted.
        marker: the file that tells results of an earlier run.
        force: take the folder whatever is in it.
    """
    return _first_free(folder, lambda candidate: force or not (candidate / marker).exists())


def free_file(file: Path, *, force: bool) -> Path:
    """The file, or the first of file_2, file_3, ... with the same ending that does not exist."""
    return _first_free(file, lambda candidate: force or not candidate.exists())


def _first_free(path: Path, is_free: Callable[[Path], bool]) -> Path:
    names = (path if number == 1 else path.with_name(f"{path.stem}_{number}{path.suffix}") for number in count(1))
    return next(name for name in names if is_free(name))
