"""Pascal VOC and YOLO folders as COCO annotation files in the cache; nothing is written into the folder itself.

The key of a conversion is the fingerprint of the folder: its path, and path, size and time of every file that is read.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from codetr_cli.data.checks.findings import Finding
from codetr_cli.data.formats.cache import SUMMARY, cache_folder, is_cached, read_summary, write_json, writing_to_cache
from codetr_cli.data.formats.detect import find_parser
from codetr_cli.data.formats.intermediate import SHOWN, ParsedDataset, to_coco
from codetr_cli.data.formats.layouts import SplitFiles
from codetr_cli.errors import listed

FORMAT = "4"
"""Changes whenever the same folder would give a different file."""


@dataclass(frozen=True)
class Converted:
    """A converted folder.

    Args:
        folder: of the data set; may be below the folder that was given.
        val_is_test: whether the test images are used for evaluation, because there are no validation images.
    """

    title: str
    folder: Path
    splits: dict[str, SplitFiles]
    notes: list[str]
    findings: list[Finding]
    val_is_test: bool
    skipped: list[str]

    def find(self, split: str) -> SplitFiles | None:
        """A split by its name; "test" also where its images are used as "val"."""
        return self.splits.get("val" if split == "test" and self.val_is_test else split)

    def sentences(self) -> tuple[str, ...]:
        """The notes and findings of the conversion."""
        notes = [f"{self.folder} ({self.title}): {note}." for note in self.notes]
        return (*notes, *(finding.sentence() for finding in self.findings))

    def warnings(self) -> tuple[str, ...]:
        """The warnings of the conversion."""
        if not self.skipped:
            return ()
        return (
            f"{self.folder} ({self.title}): {len(self.skipped):,} images cannot be used and are skipped: "
            f"{listed(self.skipped, SHOWN)}",
        )


def find_converted(folder: Path, *, skip_bad: bool = False) -> Converted | None:
    """Converts a Pascal VOC or YOLO folder, or finds its conversion in the cache.

    Args:
        folder: the data set's, or one that contains it (VOCdevkit/VOC2007) and no second one.
        skip_bad: skip unusable images, which would otherwise raise an error.

    Returns:
        None if the folder is of neither layout.

    Raises:
        DatasetError: the folder's files are broken, or it contains several data sets.
    """
    match = find_parser(folder)
    if match is None:
        return None
    parser, place = match
    place = place.resolve()
    target = cache_folder() / f"{place.name}-{_fingerprint(parser, place)}{'-skip' if skip_bad else ''}"
    if not is_cached(target):
        parsed: ParsedDataset = parser.read(place, skip_bad=skip_bad)
        with writing_to_cache():
            _convert(parsed, place, target)
    summary = read_summary(target)
    splits = {
        name: SplitFiles(name, Path(summary["images_dir"]), target / f"instances_{name}.json", where, converted=True)
        for name, where in summary["places"].items()
    }
    findings = [Finding(**finding) for finding in summary["findings"]]
    return Converted(
        title=parser.TITLE,
        folder=place,
        splits=splits,
        notes=summary["notes"],
        findings=findings,
        val_is_test=summary["val_is_test"],
        skipped=summary["skipped"],
    )


def _fingerprint(parser: ModuleType, folder: Path) -> str:
    digest = hashlib.sha256(f"{FORMAT}\0{parser.TITLE}\0{folder}".encode(errors="surrogateescape"))
    for path in parser.files_read(folder):
        try:
            stat = path.stat()
        except OSError:
            continue
        digest.update(f"\0{path}\0{stat.st_size}\0{stat.st_mtime_ns}".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _convert(parsed: ParsedDataset, folder: Path, target: Path) -> None:
    """Writes the COCO files, and the summary last; safe when several processes do it at once."""
    target.mkdir(parents=True, exist_ok=True)
    for split in parsed.splits:
        write_json(target / f"instances_{split}.json", to_coco(parsed, split))
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
    write_json(target / SUMMARY, summary)
