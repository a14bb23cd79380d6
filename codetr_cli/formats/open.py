"""Opens the folder of a data set, in any layout: the one place that decides what is read, for all verbs.

Published layouts are known by the names of their files and come first. For any other, each parser says what in the
folder shows its layout; if several do, the user has to choose.
"""

from __future__ import annotations

import shlex
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from codetr_cli.annotations.data_files import check_length, is_file
from codetr_cli.annotations.file_names import NameRule
from codetr_cli.annotations.layouts import LAYOUTS, published_split, published_splits
from codetr_cli.annotations.survey import Survey
from codetr_cli.config.data_settings import DatasetName
from codetr_cli.errors import ConfigError, DatasetError, listed
from codetr_cli.files import real_path
from codetr_cli.formats import coco_json, csv_table, cvat, label_studio, labelme, parquet, voc, voc_published, yolo
from codetr_cli.formats.converted import convert
from codetr_cli.formats.divided import reserve_validation
from codetr_cli.formats.found import FoundDataset, ReadOptions
from codetr_cli.formats.intermediate import SHOWN
from codetr_cli.formats.one_file import open_file

PARSERS: tuple[ModuleType, ...] = (coco_json, voc, cvat, yolo, labelme, label_studio, csv_table, parquet)
"""Modules of one layout each: its `KEY` among `FormatName`, its `TITLE`, the `evidence` of it in a survey, the
`files_read`, and either `read`, whose result is converted to COCO's tables, or `open_json` for files of these tables,
which are used where they are."""

DEFAULT = ReadOptions()
MAX_DEPTH = 5
"""Folders that archives add around a data set."""
MAX_VISITED = 200
"""Folders that are looked into."""
DESCRIPTIONS = (".yaml", ".yml")
"""Suffixes of files that describe a YOLO folder."""


def open_dataset(folder: Path, options: ReadOptions = DEFAULT, dataset: DatasetName = "coco") -> FoundDataset | None:
    """The data set of a folder, or of one in it (VOCdevkit/VOC2007) if there is no second one; or that of a file.

    Args:
        folder: the data set's; or an annotation file, see `one_file`, or the description of a YOLO folder.
        options: how it is read.
        dataset: a key of `LAYOUTS`, preferred where the folder has the published files of several.

    Returns:
        None if the folder does not exist, or has no known layout.

    Raises:
        ConfigError: a folder of images that is none, or that is given beside a folder.
        DatasetError: the folder's files are broken, it contains several data sets, its layout is ambiguous, or it is
            a file of another kind.
        ResourceError: the cache cannot be written.
    """
    check_length(folder)
    if folder.suffix.lower() in DESCRIPTIONS and folder.is_file():
        options = replace(options, format=options.format or "yolo", description=folder.name)
        folder = folder.parent
    elif is_file(folder):
        return reserve_validation(open_file(folder, options), options)
    if options.images is not None:
        raise ConfigError(f"--images {options.images} needs the annotations of these images: give --ann FILE too")
    if not folder.is_dir():
        return None
    found = _published(folder, dataset) if options.format in (None, "coco") else None
    if found is not None and not any(split.images_dir.is_dir() for split in found.splits.values()):
        found = _with_images_elsewhere(found, folder) or found
    if found is None:
        match = find_parser(folder, options)
        if match is None:
            return None
        parser, survey = match
        if hasattr(parser, "open_json"):
            rule = NameRule.of(folder, survey.folder, allow_outside=options.allow_outside)
            found = parser.open_json(survey, rule, options)
        else:
            found = convert(parser, folder, survey, options)
    lacks_annotations = found.is_published and published_split("val", folder, _dataset_of(found)).images_dir.is_dir()
    return found if lacks_annotations else reserve_validation(found, options)


def _dataset_of(found: FoundDataset) -> DatasetName:
    return next(iter(found.splits.values())).dataset


def _with_images_elsewhere(found: FoundDataset, folder: Path) -> FoundDataset | None:
    """A data set with COCO's published annotation files whose images are in other folders, if they are there."""
    if any(split.dataset != "coco" for split in found.splits.values()):
        return None
    other = coco_json.find_files(Survey.of(folder), [split.where for split in found.splits.values()])
    return other if other is not None and set(other.splits) == set(found.splits) else None


def find_parser(folder: Path, options: ReadOptions) -> tuple[ModuleType, Survey] | None:
    """The parser that can read a folder or one inside it, at any depth up to `MAX_DEPTH`, and what is in that folder.

    Raises:
        DatasetError: several can, or there are several data sets.
    """
    survey = Survey.of(folder)
    survey.chosen = options.description or ""
    parsers = [parser for parser in PARSERS if options.format in (None, parser.KEY)]
    here = evidence_of(survey, parsers)
    if len(here) > 1:
        raise DatasetError(f"{folder} can be read as {choices(here)}")
    if here:
        own = [] if survey.chosen else _described(survey, [parser for parser in parsers if parser not in here])
        if own:
            raise _several(folder, [*((parser, survey) for parser in here), *own], options)
        return next(iter(here)), survey
    inner = _inner(survey, parsers)
    if len({part.folder for _, part in inner}) == 1 and len(inner) > 1:
        part = inner[0][1]
        raise DatasetError(f"{part.folder} can be read as {choices(evidence_of(part, parsers))}")
    if len(inner) > 1:
        raise _several(folder, inner, options)
    return inner[0] if inner else None


def evidence_of(survey: Survey, parsers: Sequence[ModuleType] = PARSERS) -> dict[ModuleType, str]:
    """The parsers that can read a folder, and what shows it."""
    return {parser: evidence for parser in parsers if (evidence := parser.evidence(survey))}


def choices(evidence: Mapping[ModuleType, str]) -> str:
    """The layouts that a folder can be read in, and the options that choose one, a phrase."""
    shown = ", ".join(f"{parser.TITLE} ({file})" for parser, file in evidence.items())
    return f"{shown}: choose with {' or '.join(f'--format {parser.KEY}' for parser in evidence)}"


def _inner(survey: Survey, parsers: Sequence[ModuleType]) -> list[tuple[ModuleType, Survey]]:
    """The data sets in the folders of a folder that is none itself; none that is in another one."""
    found: list[tuple[ModuleType, Survey]] = []
    pending = deque((survey.below(name), 1) for name in survey.subfolders())
    visited = 0
    while pending and visited < MAX_VISITED:
        (part, depth), visited = pending.popleft(), visited + 1
        if published_splits(part.folder):
            continue
        own = evidence_of(part, parsers)
        found += [(parser, part) for parser in own]
        if not own and depth < MAX_DEPTH:
            pending += [(part.below(name), depth + 1) for name in part.subfolders()]
    return found


def _described(survey: Survey, parsers: Sequence[ModuleType]) -> list[tuple[ModuleType, Survey]]:
    """The data sets below a folder that a description or published names of files show, so that they are no part of it.

    `parsers` are those that cannot read the folder itself: their files are in these data sets only.
    """
    found: list[tuple[ModuleType, Survey]] = []
    if yolo in parsers:
        found += [(yolo, survey.below(name)) for name in yolo.described_folders(survey)]
    if coco_json in parsers:
        found += [
            (coco_json, survey.below(name)) for name in survey.subfolders() if published_splits(survey.folder / name)
        ]
    if voc in parsers:
        found += [(voc, survey.below(root)) for root in voc_published.roots(survey)]
    return found


def _several(folder: Path, found: Sequence[tuple[ModuleType, Survey]], options: ReadOptions) -> DatasetError:
    names = listed([f"{part.folder} ({parser.TITLE})" for parser, part in found], SHOWN)
    places = list(dict.fromkeys(part.folder for _, part in found if part.folder != folder))
    advice = "Give the folder of one of them"
    if len(places) < len(found):
        advice += f", or choose with {' or '.join(f'--format {key}' for key in dict.fromkeys(p.KEY for p, _ in found))}"
    else:
        several = " ".join(f"--data {shlex.quote(str(place))}" for place in places[:SHOWN])
        advice += f", or to train and eval, which merge them, several: {several}"
    return DatasetError(f"{folder} contains several data sets: {names}. {advice}")


def _published(folder: Path, dataset: DatasetName) -> FoundDataset | None:
    """The data set of a folder in one of the published layouts."""
    present = {split.dataset for split in published_splits(folder)}
    if not present:
        return None
    chosen = dataset if dataset in present else next(name for name in LAYOUTS if name in present)
    splits = [published_split(name, folder, chosen) for name in ("train", "val")]
    return FoundDataset(
        title=LAYOUTS[chosen].title,
        evidence=next(split.where for split in splits if split.annotations_path.is_file()),
        folder=real_path(folder),
        splits={split.name: split for split in splits if split.annotations_path.is_file()},
        is_published=True,
    )
