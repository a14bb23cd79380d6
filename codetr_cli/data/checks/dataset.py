"""The check of a whole data set by `codetr prepare`: layout, list files, annotation files, image files."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from codetr_cli.annotations.annotation_json import read_json_file
from codetr_cli.annotations.file_names import NameRule
from codetr_cli.annotations.findings import Finding, Findings
from codetr_cli.annotations.image_folder import ImageFolder
from codetr_cli.annotations.json_text import UnusableFileError
from codetr_cli.annotations.layouts import LAYOUTS, SplitFiles
from codetr_cli.config.data_settings import DataConfig, DatasetName
from codetr_cli.data.checks.annotations import check_annotations, check_category_ids, check_kinds, compare_categories
from codetr_cli.data.checks.files import FileRules, ImageRecord, check_files, default_workers
from codetr_cli.data.checks.image_copies import ImageCopies
from codetr_cli.data.checks.leftovers import Leftovers
from codetr_cli.data.checks.schema import AnnotationSummary
from codetr_cli.errors import DatasetError, counted
from codetr_cli.files import real_path
from codetr_cli.formats.coco_json import sample_of
from codetr_cli.formats.detect import find_splits
from codetr_cli.formats.found import ReadOptions
from codetr_cli.formats.list_files import read_list, write_list
from codetr_cli.formats.open import open_dataset

Progress: TypeAlias = Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]
"""Opens a progress display for a description and a total; yields the function that advances it."""


@dataclass
class DatasetReport:
    """The result of checking a data set.

    Args:
        dataset: the known data set whose names its files have, a key of `LAYOUTS`.
        rules: the data set whose rules apply to the annotations.
        is_published: whether it has the files of a published data set.
        evidence: what shows the layout, a phrase; empty for a published one.
        places: the file or folder that defines each split.
        splits: counts of each readable annotation file, by "train", "val" and "test".
        lists: status of each list file.
    """

    folder: Path
    dataset: DatasetName = "coco"
    rules: DatasetName = "coco"
    is_published: bool = False
    layout: str = LAYOUTS["coco"].title
    evidence: str = ""
    notes: list[str] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)
    splits: dict[str, AnnotationSummary] = field(default_factory=dict)
    lists: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0

    def layout_sentence(self) -> str:
        """The layout of the folder, and where its splits come from."""
        places = ", ".join(f"{split} from {place}" for split, place in self.places.items())
        because = f" (it has {self.evidence})" if self.evidence else ""
        return f"{self.folder} is a {self.layout} data set{because}: {places}."

    @property
    def errors(self) -> int:
        """Number of findings that would stop training or make its results wrong."""
        return sum(finding.severity == "error" for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """Plain values, under the keys of `--json`."""
        return {
            "folder": str(self.folder),
            "layout": self.layout,
            "evidence": self.evidence,
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
    report, findings, copies, leftovers = DatasetReport(folder), Findings(), ImageCopies(), Leftovers()
    checked: Counter[str] = Counter()
    workers = workers or default_workers(deep)
    for split in _splits(report, config, findings):
        if split.name == "test" and sample_of(split.annotations_path).kind == "images":
            _add_unchecked(split, report, leftovers)
            continue
        summary = _check_split(split, config, findings, progress)
        if summary is None:
            continue
        report.splits[split.name] = summary
        if report.is_published and split.dataset == "coco" and split.part_of is None:
            report.lists[split.name] = _check_list(split, summary, findings)
        names = [name for name, _, _ in summary.images]
        rule = NameRule.of(folder, split.images_dir, allow_outside=config.allow_outside)
        rules = FileRules(
            folder=ImageFolder(split.images_dir, names, rule),
            where=f"{real_path(split.images_dir).name}/",
            max_pixels=config.max_pixels,
            min_side=config.min_side,
            deep=deep,
            shared=split.dataset == "lvis" or split.converted,
        )
        images = _inside(report, split, summary, rules.folder, findings)
        checked[rules.where] += len(images)
        started = time.monotonic()
        with progress(f"{'decoding' if deep else 'reading headers of'} {rules.where}", len(images)) as advance:
            check_files(images, rules, findings, copies, leftovers, workers=workers, advance=advance)
        report.seconds += time.monotonic() - started
    report.rules = check_kinds(report.splits, config.dataset, findings, report.places)
    if (report.rules, report.dataset) == ("lvis", "coco"):
        report.notes.append("the annotations are LVIS's by their content: they are read, and scored, by its rules.")
    if config.bad_files == "skip":
        findings.skip_unusable(checked)
    copies.report(findings, workers)
    leftovers.report(findings)
    if folder.is_dir():
        leftovers.report_beside(folder, findings)
    for summary in list(report.splits.values())[:1]:  # the other file has the same, or differs, which is reported
        check_category_ids(summary, findings, "annotations/")
    if report.splits.keys() >= {"train", "val"}:
        compare_categories(report.splits["train"], report.splits["val"], findings, "annotations/")
    report.findings = findings.sorted()
    return report


def _splits(report: DatasetReport, config: DataConfig, findings: Findings) -> list[SplitFiles]:
    """The splits of the folder in any layout; records the layout in the report."""
    found = open_dataset(report.folder, ReadOptions.of(config), config.dataset)
    if found is None or found.is_published:
        splits = list(find_splits(report.folder, config.dataset, config.format))
        if found is not None:
            splits = [found.splits.get(split.name, split) for split in splits]
            report.notes = [f"{note}." for note in found.notes]
        report.dataset, report.is_published = splits[0].dataset, True
        report.layout = LAYOUTS[report.dataset].title
        report.places = {split.name: split.where for split in splits if split.annotations_path.is_file()}
        return splits
    report.layout, report.evidence = found.title, found.evidence
    below = f"{found.folder.name}/" if real_path(report.folder) in found.folder.parents else ""
    report.places = {name: f"{below}{split.where}" for name, split in found.splits.items()}
    report.notes = [f"{note}." for note in found.notes]
    for finding in found.findings:
        findings.add_finding(finding)
    for name, kind in (("train", "no_training"), ("val", "no_validation")):
        if name not in found.splits:
            findings.add(kind, f"{report.folder.name}/")
    return list(found.splits.values())


def _check_split(
    split: SplitFiles, config: DataConfig, findings: Findings, progress: Progress
) -> AnnotationSummary | None:
    where = split.where
    if not (split.annotations_path.exists() or split.images_dir.is_dir()):
        findings.add("no_training" if split.name == "train" else "no_validation", f"{split.images_dir.name}/")
        return None
    if not split.annotations_path.is_file():
        findings.add("no_annotations", where)
        return None
    with progress(f"reading {where}", 1) as advance:
        is_training = split.name == "train"
        summary = check_annotations(
            split.annotations_path, findings, where, training=is_training, min_side=config.min_side
        )
        advance(1)
    if split.converted:
        for kind in ("crowd", "crowd_without_rle", "excluded_objects"):  # objects marked difficult
            findings.discard(kind, where)
        if any(finding.kind == "alike_class_names" and finding.where != where for finding in findings.sorted()):
            findings.discard("alike_class_names", where)  # the parser reported it
    return summary


def _add_unchecked(split: SplitFiles, report: DatasetReport, leftovers: Leftovers) -> None:
    """Adds the images of a list of test images without annotations, with a note: nothing is evaluated on them."""
    try:
        entries = read_json_file(split.annotations_path)["images"]
        names = [entry["file_name"] for entry in entries if isinstance(entry.get("file_name"), str)]
    except (UnusableFileError, KeyError, TypeError, AttributeError):
        names = None
    number = "test images" if names is None else counted(len(names), "test image")
    report.notes.append(f"{split.where}: a list of {number} without annotations, which are not checked.")
    leftovers.add(split.images_dir, split.where, names or (), is_complete=names is not None)


def _inside(
    report: DatasetReport, split: SplitFiles, summary: AnnotationSummary, folder: ImageFolder, findings: Findings
) -> list[ImageRecord]:
    """The images whose files may be read; adds a finding or, where the others may be read too, a note."""
    rule = folder.rule
    outside = set(rule.outside((name for name, _, _ in summary.images), split.images_dir))
    if not outside:
        return summary.images
    if rule.allow_outside:
        report.notes.append(f"{split.where}: {rule.note(len(outside))}.")
        return summary.images
    images = []
    for image in summary.images:
        name = image[0]
        found = folder.find(name) if name in outside else name
        if found is None:
            findings.add("outside_file", split.where, name)
            continue
        if found != name:
            findings.add("renamed_file", f"{folder.folder.name}/", f"{name} (on disk it is {found})")
        images.append((found, *image[1:]))
    return images


def _check_list(split: SplitFiles, summary: AnnotationSummary, findings: Findings) -> str:
    names = [name for name, _, _ in summary.images]
    status = write_list(split, names)
    if status.startswith("not written"):
        findings.add("list_not_written", split.list_path.name, status.partition(": ")[2])
    elif status == "present":
        try:
            in_list = read_list(split)
        except DatasetError as error:
            findings.add("list_unreadable", split.list_path.name, str(error))
            return f"unreadable: {error}"
        absent, extra = len(set(names) - in_list), len(in_list - set(names))
        if absent or extra:
            findings.add("list_differs", split.list_path.name, f"{absent:,} images not in it, {extra:,} more in it")
            return "differs"
    return status
