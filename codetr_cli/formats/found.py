"""A data set that was found in a folder: its layout, and where the files of each split are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from codetr_cli.annotations.findings import Finding
from codetr_cli.annotations.layouts import SplitFiles
from codetr_cli.config.data_settings import BoxFormat, DataConfig, FormatName, YoloLabels
from codetr_cli.errors import counted, listed
from codetr_cli.formats.intermediate import SHOWN


@dataclass(frozen=True)
class ReadOptions:
    """How a folder is read.

    Args:
        skip_bad: skip unusable images, which would otherwise raise an error.
        allow_outside: follow names that lead out of the folder, which would otherwise raise an error.
        format: the layout that the folder has; None: by its content.
        val_fraction: share of the images reserved for validation where there are neither validation nor test images.
        images: folder of the images of a single annotation file; None: found by the names in the file.
        box_format: what the numbers of boxes are in files that do not state it.
        description: name of the file in the folder that describes it, where there are several; None: by its content.
        yolo_labels: what rows of more than 5 columns in YOLO's label files are; None: see `yolo_labels`.
    """

    skip_bad: bool = False
    allow_outside: bool = False
    format: FormatName | None = None
    val_fraction: float = 0.2
    images: Path | None = None
    box_format: BoxFormat | None = None
    description: str | None = None
    yolo_labels: YoloLabels | None = None

    @classmethod
    def of(cls, config: DataConfig) -> ReadOptions:
        """Those of the settings; nothing is reserved where they name other annotations for validation."""
        return cls(
            skip_bad=config.bad_files == "skip",
            allow_outside=config.allow_outside,
            format=config.format,
            val_fraction=0.0 if config.val_annotations else config.val_fraction,
            images=Path(config.images) if config.images else None,
            box_format=config.box_format,
            yolo_labels=config.yolo_labels,
        )


@dataclass(frozen=True)
class FoundDataset:
    """A data set in a folder.

    Args:
        title: of the layout.
        evidence: what shows the layout, a phrase: "data.yaml".
        folder: of the data set; may be below the folder that was given.
        splits: by "train", "val" and "test", as far as there are any.
        notes: on how it was read, phrases.
        findings: what was found while it was read.
        val_is_test: whether the test images are used for evaluation, because there are no validation images.
        skipped: unusable images with the reason.
        is_published: whether its files have the names of a published data set.
    """

    title: str
    evidence: str
    folder: Path
    splits: Mapping[str, SplitFiles]
    notes: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    val_is_test: bool = False
    skipped: list[str] = field(default_factory=list)
    is_published: bool = False

    def find(self, split: str) -> SplitFiles | None:
        """A split by its name; "test" also where its images are used as "val"."""
        return self.splits.get("val" if split == "test" and self.val_is_test else split)

    def sentences(self) -> tuple[str, ...]:
        """The notes and findings of reading it."""
        notes = [f"{self.folder} ({self.title}): {note}." for note in self.notes]
        return (*notes, *(finding.sentence() for finding in self.findings))

    def warnings(self) -> tuple[str, ...]:
        """The warnings of reading it."""
        if not self.skipped:
            return ()
        return (
            f"{self.folder} ({self.title}): {counted(len(self.skipped), 'image')} cannot be used and "
            f"{'is' if len(self.skipped) == 1 else 'are'} skipped: "
            f"{listed(self.skipped, SHOWN)}",
        )
