"""Folders of any layout as COCO annotation files in the cache; nothing is written into the folder itself.

The key of a conversion is the fingerprint of the folder: its path, and path, size and time of every file that is read.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from codetr_cli.annotations.cache import (
    cache_folder,
    find_conversion,
    finish_conversion,
    write_pieces,
    writing_to_cache,
)
from codetr_cli.annotations.file_names import NameRule
from codetr_cli.annotations.finding_kinds import KINDS
from codetr_cli.annotations.findings import Finding
from codetr_cli.annotations.layouts import SplitFiles
from codetr_cli.annotations.survey import Survey
from codetr_cli.files import real_path
from codetr_cli.formats.found import FoundDataset, ReadOptions
from codetr_cli.formats.intermediate import ParsedDataset, coco_text
from codetr_cli.formats.reserved import reserve

FORMAT = "13"
"""Changes whenever the same folder would give a different file."""
SHAPE = {
    "places": {str: str},
    "val_is_test": bool,
    "skipped": [str],
    "notes": [str],
    "findings": [{"kind": str, "where": str, "count": int, "first": [str]}],
}
"""The shape of a summary, see `cache.has_shape`."""


def convert(parser: ModuleType, given: Path, survey: Survey, options: ReadOptions) -> FoundDataset:
    """Converts the folder of a survey, or finds its conversion in the cache.

    Args:
        parser: see `open.PARSERS`.
        given: the folder that the user named, the survey's or one that contains it.
        survey: of the data set's folder.
        options: how it is read.

    Raises:
        DatasetError: the folder's files are broken.
        ResourceError: the cache cannot be written.
    """
    place = real_path(survey.folder)
    survey = replace(survey, folder=place)
    names = NameRule.of(given, place, allow_outside=options.allow_outside)
    choices = f"{'-skip' if options.skip_bad else ''}{'-outside' if options.allow_outside else ''}"
    target = cache_folder() / f"{place.name}-{_fingerprint(parser, survey, place, names, options)}{choices}"
    summary = find_conversion(target, SHAPE)
    if summary is None or _are_deleted(Path(summary["images_dir"])):
        parsed: ParsedDataset = parser.read(survey, names, options)
        reserve(parsed, options.val_fraction)
        with writing_to_cache():
            summary = _convert(parsed, place, target)
    splits = {
        name: SplitFiles(name, Path(summary["images_dir"]), target / f"instances_{name}.json", where, converted=True)
        for name, where in summary["places"].items()
    }
    findings = [
        Finding(each["kind"], each["where"], each["count"], each["first"])
        for each in summary["findings"]
        if each["kind"] in KINDS
    ]
    return FoundDataset(
        title=parser.TITLE,
        evidence=parser.evidence(survey),
        folder=place,
        splits=splits,
        notes=summary["notes"],
        findings=findings,
        val_is_test=summary["val_is_test"],
        skipped=summary["skipped"],
    )


def _are_deleted(images_dir: Path) -> bool:
    """Whether images that were written to the cache are there no longer."""
    return images_dir.is_relative_to(cache_folder()) and not images_dir.is_dir()


def _fingerprint(parser: ModuleType, survey: Survey, place: Path, names: NameRule, options: ReadOptions) -> str:
    choices = (options.val_fraction, options.box_format, options.yolo_labels, survey.chosen)
    text = "\0".join(map(str, (FORMAT, parser.TITLE, *choices, place)))
    digest = hashlib.sha256(text.encode(errors="surrogateescape"))
    for path in parser.files_read(survey, names):
        try:
            stat = path.stat()
        except OSError:
            continue
        digest.update(f"\0{path}\0{stat.st_size}\0{stat.st_mtime_ns}".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _convert(parsed: ParsedDataset, folder: Path, target: Path) -> dict[str, Any]:
    """Writes the COCO files, and the summary last; safe when several processes do it at once."""
    target.mkdir(parents=True, exist_ok=True)
    names = [f"instances_{split}.json" for split in parsed.splits]
    for split, name in zip(parsed.splits, names, strict=True):
        write_pieces(target / name, coco_text(parsed, split))
    summary = {
        "images_dir": str(parsed.images_dir),
        "folders": [str(folder)],
        "names": {split: f"{folder} ({parsed.title}, {parsed.places[split]})" for split in parsed.splits},
        "places": {split: parsed.places[split] for split in parsed.splits},
        "val_is_test": parsed.val_is_test,
        "skipped": parsed.skipped,
        "notes": parsed.notes,
        "findings": [vars(finding) for finding in parsed.findings.sorted()],
    }
    return finish_conversion(target, names, summary)
