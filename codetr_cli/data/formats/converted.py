"""Pascal VOC and YOLO folders as COCO annotation files in the cache, so that nothing is written into the folder itself.

A conversion is kept under the fingerprint of the folder: its path, and name, size and time of every file that counts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from codetr_cli.data.checks.findings import Finding
from codetr_cli.data.formats import voc, yolo
from codetr_cli.data.formats.cache import SUMMARY, cache_folder, filling_cache, write_json
from codetr_cli.data.formats.cache_limits import hold, limit_cache
from codetr_cli.data.formats.detect import Split
from codetr_cli.data.formats.intermediate import Contents, listed, to_coco
from codetr_cli.errors import DatasetError

FORMAT = "3"
"""Changes whenever the same folder would give another file."""


@dataclass(frozen=True)
class Kind:
    """A layout that is converted: how it is called, told, read, and which files decide what is read."""

    title: str
    recognises: Callable[[Path], bool]
    read: Callable[..., Contents]
    sources: Callable[[Path], Iterable[Path]]


KINDS = (
    Kind(voc.TITLE, voc.is_voc, voc.read_voc, voc.sources),
    Kind(yolo.TITLE, yolo.is_yolo, yolo.read_yolo, yolo.sources),
)


@dataclass(frozen=True, kw_only=True)
class ConvertedSplit(Split):
    """A split of such a folder.

    Args:
        images: the folder of the images.
        table: the COCO file in the cache.
        place: what stands for the split in the folder.
    """

    images: Path
    table: Path
    place: str

    @property
    def images_dir(self) -> Path:
        """The folder of the split's images."""
        return self.images

    @property
    def annotations_path(self) -> Path:
        """The COCO file in the cache."""
        return self.table

    @property
    def where(self) -> str:
        """What stands for the split's annotations in the folder."""
        return self.place


@dataclass(frozen=True)
class Converted:
    """A converted folder.

    Args:
        title: of its layout.
        folder: where it was found; perhaps below the folder that was given.
        splits: "train", "val" and perhaps "test".
        notes: sentences about choices that were made.
        findings: what was odd about boxes.
        val_is_test: whether the test images serve for evaluation, for want of others.
        left_out: images that cannot be used, with the reason, where that is allowed.
    """

    title: str
    folder: Path
    splits: dict[str, ConvertedSplit]
    notes: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    val_is_test: bool = False
    left_out: list[str] = field(default_factory=list)

    def find(self, split: str) -> ConvertedSplit | None:
        """A split by its name; "test" also where its images serve as "val"."""
        return self.splits.get("val" if split == "test" and self.val_is_test else split)

    def sentences(self) -> tuple[str, ...]:
        """Everything that a person should know of the conversion."""
        notes = [f"{self.folder} ({self.title}): {note}." for note in self.notes]
        return (*notes, *(finding.sentence() for finding in self.findings))

    def warnings(self) -> tuple[str, ...]:
        """What may go wrong, in sentences."""
        if not self.left_out:
            return ()
        return (
            f"{self.folder} ({self.title}): {len(self.left_out):,} images cannot be used and are left out: "
            f"{listed(self.left_out)}",
        )


def find_converted(folder: Path, *, skip_bad: bool = False) -> Converted | None:
    """Converts a Pascal VOC or YOLO folder, or finds the earlier conversion.

    Args:
        folder: the data set's, or one that holds it (VOCdevkit/VOC2007), if it holds no second.
        skip_bad: leave out images without which there would be no conversion.

    Returns:
        None if the folder is of neither layout.

    Raises:
        DatasetError: the folder has a layout but its files are broken, or it holds several data sets.
    """
    found = _recognise(folder)
    if found is None:
        return None
    kind, place = found
    place = place.resolve()
    target = cache_folder() / f"{place.name}-{_fingerprint(kind, place)}{'-skip' if skip_bad else ''}"
    hold(target)
    if not (target / SUMMARY).is_file():
        contents = kind.read(place, skip_bad=skip_bad)
        with filling_cache():
            _convert(contents, place, target)
        limit_cache(target.parent)
    summary = json.loads((target / SUMMARY).read_text(encoding="utf-8"))
    splits = {
        name: ConvertedSplit(
            name=name,
            root=place,
            images=Path(summary["images_dir"]),
            table=target / f"instances_{name}.json",
            place=where,
        )
        for name, where in summary["places"].items()
    }
    findings = [Finding(**finding) for finding in summary["findings"]]
    return Converted(kind.title, place, splits, summary["notes"], findings, summary["val_is_test"], summary["left_out"])


def _recognise(folder: Path) -> tuple[Kind, Path] | None:
    if not folder.is_dir():
        return None
    for kind in KINDS:
        if kind.recognises(folder):
            return kind, folder
    places = [place for depth in ("*", "*/VOC*") for place in islice(sorted(folder.glob(depth)), 50)]
    inner = [(kind, place) for place in places for kind in KINDS if place.is_dir() and kind.recognises(place)]
    if len(inner) > 1:
        listed = ", ".join(str(place) for _, place in inner[:5])
        raise DatasetError(f"{folder} holds several data sets: {listed}. Give the folder of one of them")
    return inner[0] if inner else None


def _fingerprint(kind: Kind, folder: Path) -> str:
    digest = hashlib.sha256(f"{FORMAT}\0{kind.title}\0{folder}".encode(errors="surrogateescape"))
    for path in kind.sources(folder):
        try:
            stat = path.stat()
        except OSError:
            continue
        digest.update(f"\0{path}\0{stat.st_size}\0{stat.st_mtime_ns}".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _convert(contents: Contents, folder: Path, target: Path) -> None:
    """Writes the tables, and the summary last; several processes may do so at once."""
    target.mkdir(parents=True, exist_ok=True)
    for split in contents.splits:
        write_json(target / f"instances_{split}.json", to_coco(contents, split))
    summary = {
        "images_dir": str(contents.images_dir),
        "folders": [str(folder)],
        "names": {split: f"{folder} ({contents.title}, {contents.places[split]})" for split in contents.splits},
        "places": {split: contents.places[split] for split in contents.splits},
        "val_is_test": contents.val_is_test,
        "left_out": contents.left_out,
        "notes": contents.notes,
        "findings": [
            {"kind": finding.kind, "where": finding.where, "count": finding.count, "first": finding.first}
            for finding in contents.findings.sorted()
        ],
    }
    write_json(target / SUMMARY, summary)
