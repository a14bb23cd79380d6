"""The check of a whole data set by `codetr prepare`: layout, list files, annotation files, image files."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from codetr_cli.config.schema import DataConfig, DatasetName
from codetr_cli.data.checks.annotations import check_annotations, check_category_ids, compare_categories
from codetr_cli.data.checks.files import FileRules, check_files, default_workers
from codetr_cli.data.checks.findings import Finding, Findings
from codetr_cli.data.checks.schema import AnnotationSummary
from codetr_cli.data.formats.detect import find_splits
from codetr_cli.data.formats.layouts import LAYOUTS, SplitFiles
from codetr_cli.data.formats.list_files import read_list, write_list
from codetr_cli.data.formats.resolve import convert_unpublished

Progress: TypeAlias = Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]
"""Opens a progress display for a description and a total; yields the function that advances it."""


@dataclass
class DatasetReport:
    """The result of checking a data set.

    Args:
        dataset: the known data set whose rules apply, a key of `LAYOUTS`.
        places: the file or folder that defines each split.
        splits: counts of each readable annotation file, by "train" and "val".
        lists: status of each list file.
    """

    folder: Path
    dataset: DatasetName = "coco"
    layout: str = LAYOUTS["coco"].title
    notes: list[str] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)
    splits: dict[str, AnnotationSummary] = field(default_factory=dict)
    lists: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0

    def layout_sentence(self) -> str:
        """The layout of the folder, and where its splits come from."""
        places = ", ".join(f"{split} from {place}" for split, place in self.places.items())
        return f"{self.folder} is a {self.layout} data set: {places}."

    @property
    def errors(self) -> int:
        """Number of findings that would stop training or make its results wrong."""
        return sum(finding.severity == "error" for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """Plain values, under the keys of `--json`."""
        return {
            "folder": str(self.folder),
            "layout": self.layout,
            "places": self.places,
            "ok": not self.errors,
            "splits": {name: summary.as_json() for name, summary in self.splits.items()},
            "lists": self.lists,
            "notes": self.notes,
            "findings": [finding.as_json() for finding in self.findings],
            "seconds": round(self.seconds, 3),
        }


def check_dataset(
    folder: Path, *, config: DataConfig, progress: Progress, workers: int | None = None, deep: bool = False
) -> DatasetReport:
    """Checks a data set's folder and writes COCO's list files where they are missing.

    Problems within the layout are findings of the report, not errors.

    Args:
        folder: the data set.
        config: its `max_pixels` and `min_side` apply, and its `dataset` where the folder contains several.
        progress: displays the progress.
        workers: threads that read headers, or processes that decode; None: the default for this machine.
        deep: decode every image.

    Raises:
        DatasetError: the folder does not exist, or has another layout.
        ResourceError: a decoding process was killed.
    """
    report, findings = DatasetReport(folder), Findings()
    for split in _splits(report, config, findings):
        summary = _check_split(split, findings, progress)
        if summary is None:
            continue
        report.splits[split.name] = summary
        if split.dataset == "coco" and not split.converted:
            report.lists[split.name] = _check_list(split, summary, findings)
        rules = FileRules(
            images_dir=split.images_dir,
            where=f"{split.images_dir.resolve().name}/",
            max_pixels=config.max_pixels,
            min_side=config.min_side,
            deep=deep,
            shared=split.dataset == "lvis" or split.converted,
        )
        started = time.monotonic()
        with progress(f"{'decoding' if deep else 'reading headers of'} {rules.where}", len(summary.images)) as advance:
            check_files(summary.images, rules, findings, workers=workers or default_workers(deep), advance=advance)
        report.seconds += time.monotonic() - started
    for summary in list(report.splits.values())[:1]:  # the other file has the same, or differs, which is reported
        check_category_ids(summary, findings, "annotations/")
    if len(report.splits) == 2:
        compare_categories(report.splits["train"], report.splits["val"], findings, "annotations/")
    report.findings = findings.sorted()
    return report


def _splits(report: DatasetReport, config: DataConfig, findings: Findings) -> list[SplitFiles]:
    """The splits of the folder in any layout; records the layout in the report."""
    converted = convert_unpublished(report.folder)
    if converted is None:
        splits = list(find_splits(report.folder, config.dataset))
        report.dataset = splits[0].dataset
        report.layout = LAYOUTS[report.dataset].title
        report.places = {split.name: split.where for split in splits if split.annotations_path.is_file()}
        return splits
    report.layout = converted.title
    below = "" if converted.folder == report.folder.resolve() else f"{converted.folder.name}/"
    report.places = {name: f"{below}{split.where}" for name, split in converted.splits.items()}
    report.notes = [f"{note}." for note in converted.notes]
    for finding in converted.findings:
        findings.add_finding(finding)
    for name, kind in (("train", "no_training"), ("val", "no_validation")):
        if name not in converted.splits:
            findings.add(kind, f"{report.folder.name}/")
    return [split for name, split in converted.splits.items() if name in ("train", "val")]


def _check_split(split: SplitFiles, findings: Findings, progress: Progress) -> AnnotationSummary | None:
    where = split.where
    if not (split.annotations_path.exists() or split.images_dir.is_dir()):
        findings.add("no_training" if split.name == "train" else "no_validation", f"{split.images_dir.name}/")
        return None
    if not split.annotations_path.is_file():
        findings.add("no_annotations", where)
        return None
    with progress(f"reading {where}", 1) as advance:
        summary = check_annotations(split.annotations_path, findings, where, training=split.name == "train")
        advance(1)
    if split.converted:
        findings.discard("crowd_without_rle", where)  # objects marked difficult
    return summary


def _check_list(split: SplitFiles, summary: AnnotationSummary, findings: Findings) -> str:
    names = [name for name, _, _ in summary.images]
    status = write_list(split, names)
    if status.startswith("not written"):
        findings.add("list_not_written", split.list_path.name, status.partition(": ")[2])
    elif status == "present":
        try:
            in_list = read_list(split)
        except OSError as error:
            return f"unreadable: {error.strerror}"
        absent, extra = len(set(names) - in_list), len(in_list - set(names))
        if absent or extra:
            findings.add("list_differs", split.list_path.name, f"{absent:,} images not in it, {extra:,} more in it")
            return "differs"
    return status
