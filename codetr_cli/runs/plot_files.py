"""The pictures in the folder plots/ of a run, for those who show or link them."""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

PLOTS = "plots"
VAL_IMAGES = "val_images"
"""Folder in plots/ of the validation images that are drawn at each evaluation; its sheet has this name, too."""
SHEET_NAME = f"{VAL_IMAGES}.webp"
_NAME = re.compile(r"(?P<image>\d{1,18})_(?P<step>\d{1,16})\.webp")
MAX_FILES = 10_000


@dataclass(frozen=True)
class ValPicture:
    """A validation image with the detections after a step; `image` counts the images that are drawn, from 0."""

    path: Path
    image: int
    step: int


@dataclass(frozen=True)
class PlotFiles:
    """Pictures of a run.

    Attributes:
        plots: losses.png, learning_rate.png, ap.png, pr_curves.png and val_images.webp, as far as they exist, by name.
        val_pictures: by image, and then by step.
        written: time when the newest of `plots` was written, seconds since 1970; None without one.
    """

    plots: list[Path] = field(default_factory=list)
    val_pictures: list[ValPicture] = field(default_factory=list)
    written: float | None = None

    @property
    def newest_pictures(self) -> list[ValPicture]:
        """Those of the newest step."""
        newest = max((picture.step for picture in self.val_pictures), default=None)
        return [picture for picture in self.val_pictures if picture.step == newest]


def plot_files(run: Path) -> PlotFiles:
    """The pictures of a run folder; none where there are none, or they cannot be read."""
    plots = {path: status for path, status in _files(run / PLOTS) if path.suffix in (".png", ".webp")}
    pictures = []
    for path, _ in _files(run / PLOTS / VAL_IMAGES):
        if match := _NAME.fullmatch(path.name):
            pictures.append(ValPicture(path, int(match["image"]), int(match["step"])))
    return PlotFiles(
        sorted(plots),
        sorted(pictures, key=lambda picture: (picture.image, picture.step)),
        max((status.st_mtime for status in plots.values()), default=None),
    )


def picture_name(image: int, step: int) -> str:
    """File name of a validation image after a step."""
    return f"{image}_{step:08d}.webp"


def _files(folder: Path) -> list[tuple[Path, os.stat_result]]:
    """The regular files of a folder that are complete."""
    found = []
    with suppress(OSError), os.scandir(folder) as entries:
        for _, entry in zip(range(MAX_FILES), entries, strict=False):
            with suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(status.st_mode) and not entry.name.startswith("."):
                    found.append((Path(entry.path), status))
    return found
