"""`report.json`: every number of a report, written beside the page, and read again to compare two evaluations."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codetr_cli.errors import ConfigError, DatasetError
from codetr_cli.reading import open_file, parse_json, read_bytes
from codetr_cli.result_files import ResultRecord, free_file, refuse_taken, write_results

HTML_NAME = "report.html"
JSON_NAME = "report.json"
KIND = "codetr report"
VERSION = 1
MAX_BYTES = 1 << 30
_SHAPE: dict[str, type | tuple[type, ...]] = {
    "facts": dict,
    "metrics": dict,
    "per_class": list,
    "analysis": dict,
}


@dataclass(frozen=True)
class StoredReport:
    """A report that was read.

    Attributes:
        path: of the file.
        facts: see `ReportFacts`.
        metrics: in [0, 1] by name; None where there is nothing to find.
        per_class: name, category_id, objects, AP, AP50, ... of each class.
        analysis: `Analysis` as `analysis.jsonable` writes it.
        resamples: of `stored_numbers.stored_numbers`; empty in reports of earlier versions.
    """

    path: Path
    facts: dict[str, Any]
    metrics: dict[str, float | None]
    per_class: list[dict[str, Any]]
    analysis: dict[str, Any]
    resamples: dict[str, Any] = field(default_factory=dict)

    @property
    def detections_path(self) -> Path | None:
        """The file of detections: where it was, or beside the report after both have moved; None: it is in neither."""
        name = self.facts.get("detections")
        if not isinstance(name, str):
            return None
        places = (Path(name), self.path.parent / name, self.path.parent / Path(name).name)
        return next((place for place in places if os.path.isfile(place)), None)  # noqa: PTH113 (is_file may raise)

    @property
    def detections_sha256(self) -> str | None:
        """Digest of the file of detections; None if it was not written."""
        digest = self.facts.get("detections_sha256")
        return digest if isinstance(digest, str) else None


def report_paths(html: Path, *, is_named: bool, force: bool) -> tuple[Path, Path]:
    """Where a page and its JSON file are written.

    Args:
        html: the page.
        is_named: whether the user has named it; otherwise it gets a number where its name is taken.
        force: replace own files.

    Raises:
        ConfigError: files that are in the way may not be replaced, or the name is no page's.
    """
    other = html.with_suffix(".json")
    if html.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--report {html}: the name of a report ends with .html; report.json is written beside it")
    if is_named:
        refuse_taken((html, other), force=force, record=ResultRecord(html.parent))
        if _has_other_results(other):
            raise ConfigError(
                f"--report {html}: {other}, where the numbers of the report are written, has other results, which are "
                "kept: give another name"
            )
        return html, other
    while True:
        html = free_file(html, force=force)
        other = html.with_suffix(".json")
        if free_file(other, force=force) == other and not _has_other_results(other):
            return html, other
        html = html.with_name(f"{html.stem}_2{html.suffix}")


def _has_other_results(path: Path) -> bool:
    """Whether a file has something else than a report, such as the detections that the report is of."""
    return path.is_file() and path.stat().st_size > 0 and not is_report(path)


def write_report_files(html: Path, page: str, stored: Mapping[str, Any], *, by: str, force: bool = False) -> None:
    """Writes a page and its JSON file, both at once: an interrupted command leaves both of the report before.

    Raises:
        ConfigError: a file that may not be replaced is in the way.
        ResourceError: no space left, or the folder cannot be written.
    """
    text = json.dumps(stored, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"
    with write_results(html, by=by, force=force) as temporary:
        for path, content in ((temporary.with_suffix(".json"), text), (temporary, page)):
            path.write_text(content, encoding="utf-8", errors="backslashreplace")


def stored_table(
    facts: Mapping[str, Any], analysis: Mapping[str, Any], resamples: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The table of a report file.

    Args:
        facts: of `ReportFacts.as_dict`.
        analysis: of `analysis.jsonable`.
        resamples: of `stored_numbers.stored_numbers`; None: there is no object to find.
    """
    others = {name: value for name, value in facts.items() if name not in ("metrics", "per_class")}
    known = {name: None if value < 0 else value for name, value in facts["metrics"].items()}
    per_class = [
        {name: None if isinstance(value, float) and value < 0 else value for name, value in row.items()}
        for row in facts["per_class"]
    ]
    return {
        "kind": KIND,
        "version": VERSION,
        "facts": others,
        "metrics": known,
        "per_class": per_class,
        "analysis": analysis,
        "resamples": resamples or {},
    }


def is_report(path: Path) -> bool:
    """Whether a file is a report's JSON file, by its first bytes."""
    try:
        with open_file(path) as file:
            return file.read(64).replace(b" ", b"").startswith(b'{"kind":"codetrreport"')
    except OSError:
        return False


def read_report(path: Path) -> StoredReport:
    """Reads a report file.

    Args:
        path: of the JSON file, or of the page beside it.

    Raises:
        DatasetError: it is none, is of a later version of codetr, or cannot be read.
    """
    if path.suffix.lower() in (".html", ".htm"):
        path = path.with_suffix(".json")
    again = "write it again: codetr eval CHECKPOINT --report"
    try:
        table = parse_json(read_bytes(path, MAX_BYTES))
    except FileNotFoundError:
        raise DatasetError(f"{path} does not exist: {again}") from None
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read as a report ({error}): {again}") from error
    if not isinstance(table, dict) or table.get("kind") != KIND:
        raise DatasetError(f"{path} is no report of codetr: give the report.json of `codetr eval --report`")
    version = table.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise DatasetError(f"{path} was written by a later version of codetr (report version {version}): {again}")
    for name, kind in _SHAPE.items():
        if not isinstance(table.get(name), kind):
            raise DatasetError(f"{path} is damaged: it has no usable {name!r}; {again}")
    if not all(isinstance(row, dict) and isinstance(row.get("name"), str) for row in table["per_class"]):
        raise DatasetError(f"{path} is damaged: it has classes without a name; {again}")
    resamples = table.get("resamples", {})
    if not isinstance(resamples, dict):
        raise DatasetError(f"{path} is damaged: it has no usable 'resamples'; {again}")
    return StoredReport(path, table["facts"], table["metrics"], table["per_class"], table["analysis"], resamples)
