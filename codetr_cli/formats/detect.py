"""Which layout a folder has; for any other folder, an error that names its content and the right folder."""

from __future__ import annotations

import difflib
import os
import re
from collections import Counter
from itertools import islice
from pathlib import Path

from codetr_cli.annotations.layouts import SplitFiles, published_split, published_splits
from codetr_cli.annotations.survey import Survey
from codetr_cli.config.data_settings import DatasetName, FormatName
from codetr_cli.errors import DatasetError, listed
from codetr_cli.files import real_path
from codetr_cli.formats import csv_table
from codetr_cli.formats.coco_json import MAX_DEPTH
from codetr_cli.formats.intermediate import SHOWN
from codetr_cli.formats.one_file import ARCHIVES
from codetr_cli.formats.open import PARSERS, choices, evidence_of
from codetr_cli.formats.yolo_files import find_almost_label

EXPECTED = "annotations/instances_{train,val}2017.json beside the image folders train2017/ and val2017/"
_LVIS_V0 = re.compile(r"lvis_v0.*\.json")


def find_splits(
    folder: Path, dataset: DatasetName = "coco", format: FormatName | None = None
) -> tuple[SplitFiles, SplitFiles]:
    """The train and val splits of a folder in one of the published layouts; at least one has its annotation file.

    Args:
        folder: that was given.
        dataset: a key of `LAYOUTS`, preferred where the folder has the files of several.
        format: the layout that the user chose, which the folder does not have.

    Raises:
        DatasetError: the folder does not exist or has another layout; the error names it, and the right folder if
            it is nearby.
    """
    if not folder.is_dir():
        raise DatasetError(_no_folder(folder))
    present = [split.dataset for split in published_splits(folder)]
    if present:
        chosen = dataset if dataset in present else present[0]
        return published_split("train", folder, chosen), published_split("val", folder, chosen)
    raise DatasetError(why_unknown(folder, format))


def why_unknown(folder: Path, format: FormatName | None = None) -> str:
    """What an existing folder holds instead of a known layout, or of the chosen one, and what to do.

    Or the right folder nearby.
    """
    others = evidence_of(Survey.of(folder)) if format is not None else {}
    if others:
        title = next(parser.TITLE for parser in PARSERS if format == parser.KEY)
        return f"{folder} has nothing of the layout {title} (--format {format}); it can be read as {choices(others)}."
    nearby = _nearby_root(folder)
    if nearby is None:
        return _other_layout(folder)
    first = published_splits(nearby)[0]
    return (
        f"{folder} is not the data set's folder, but {nearby} is (it has {first.where.replace(first.name, '*')}): "
        f"run `codetr prepare {nearby}`."
    )


def similar_folder(folder: Path) -> Path | None:
    """The existing folder with the name closest to that of a missing one, if any is close."""
    parent, names = _existing_parent(folder)
    close = difflib.get_close_matches(folder.absolute().relative_to(parent).parts[0], names, n=1, cutoff=0.6)
    return parent / close[0] if close else None


def _nearby_root(folder: Path) -> Path | None:
    """A folder in a published layout one or two levels above or below the given one."""
    above = list(real_path(folder).parents)[:2]
    children = _folders(real_path(folder))
    below = (grandchild for child in islice(children, 50) for grandchild in islice(_folders(child), 50))
    return next((place for place in (*above, *children, *below) if published_splits(place)), None)


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if entry.is_dir())
    except OSError:
        return []


def _no_folder(folder: Path) -> str:
    if folder.is_symlink():
        return f"{folder} is a link to {folder.readlink()}, which does not exist: fix or remove the link."
    if folder.is_file():
        hint = "unpack it and give" if folder.suffix.lower() in ARCHIVES else "give"
        return f"{folder} is a file: {hint} the folder that holds {EXPECTED}, or {_titles()}."
    parent, names = _existing_parent(folder)
    close = similar_folder(folder)
    if close:
        hint = f"did you mean {close}?"
    elif names:
        hint = f"{parent} contains the folders {listed(names, 6)}."
    else:
        hint = f"{parent} contains no folders."
    return (
        f"there is no folder {folder}: {hint} `codetr prepare` needs the folder that holds {EXPECTED}, the files of "
        f"LVIS or Objects365, {_titles()}."
    )


def _existing_parent(folder: Path) -> tuple[Path, list[str]]:
    """The innermost existing folder above a missing one, and the names of its folders."""
    parent = next(place for place in folder.absolute().parents if place.is_dir())
    return parent, [child.name for child in _folders(parent)]


def _other_layout(folder: Path) -> str:
    expected = f"Expected: {EXPECTED}, or {_titles()}."
    survey = Survey.of(folder)
    old = next((name for name in survey.with_suffix(".json") if _LVIS_V0.fullmatch(name.rpartition("/")[2])), None)
    if old is not None:
        return f"{folder} is an LVIS v0.5 data set ({old}); only LVIS v1 is supported: download that. {expected}"
    packed = [name for name in survey.with_suffix(*ARCHIVES) if "/" not in name]
    if packed and not survey.images:
        return f"{folder} contains {listed(packed, SHOWN)}, still packed: unpack them there. {expected}"
    if not survey.names:
        linked = f" except for links to the folders {listed(survey.linked, SHOWN)}" if survey.linked else ""
        return f"{folder} does not have a known layout: it is empty{linked}. {expected}"
    if (folder / "train2017").is_dir() or (folder / "val2017").is_dir():
        return (
            f"{folder} has the image folders of COCO but no annotation file: unpack annotations_trainval2017.zip "
            f"there, or put your own annotation files into it. {expected}"
        )
    if reason := csv_table.why_none(survey):
        return f"{folder} does not have a known layout: {reason}. {expected}"
    tables = [name for name in survey.with_suffix(".json") if name.count("/") <= MAX_DEPTH]
    if tables:
        return (
            f"{folder} contains {listed(tables, SHOWN)}, but no JSON file there has COCO's tables `images`, "
            f"`annotations` and `categories`{_what_instead(survey, tables)}. {expected}"
        )
    almost = find_almost_label(survey)
    if almost:
        return f"{almost}. Then {folder} is read as YOLO."
    if survey.images:
        return (
            f"{folder} has images, e.g. {survey.images[0]}, but no annotations of a known layout: it contains "
            f"{_content(survey)}. Put the annotations there, or give the folder with both. {expected}"
        )
    return f"{folder} does not have a known layout: it contains {_content(survey)}, no images. {expected}"


def _titles() -> str:
    """The layouts other than COCO's published one, as far as there are parsers of them."""
    titles = list(dict.fromkeys(parser.TITLE for parser in PARSERS if parser.KEY != "coco"))
    return (
        "COCO's JSON files under other names with their images near them, as Roboflow, CVAT, FiftyOne and Label Studio "
        f"export them, or a folder of {', '.join(titles[:-1])} or {titles[-1]}"
    )


def _what_instead(survey: Survey, tables: list[str]) -> str:
    """What JSON files are that have not COCO's tables, a phrase; empty if it is not known."""
    name = survey.first_with_head(tables, lambda head: head.lstrip().startswith("[") and '"score"' in head)
    return f" ({name} looks like a file of detections, which are results)" if name else ""


def _content(survey: Survey) -> str:
    """The kinds of files in a folder, and where the first is."""
    suffixes = Counter(os.path.splitext(name)[1].lower() or "no suffix" for name in survey.names)  # noqa: PTH122
    kinds = [f"{count:,} x {suffix}" for suffix, count in suffixes.most_common(SHOWN)]
    return f"{listed(survey.subfolders() or survey.names, SHOWN)} ({listed(kinds, SHOWN, count=len(suffixes))})"
