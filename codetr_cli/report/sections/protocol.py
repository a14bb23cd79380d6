"""How the numbers were made: protocol, speed, files, machine, versions, and the command that repeats them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from codetr_cli.report.facts import ReportFacts
from codetr_cli.report.markup import element
from codetr_cli.report.page import Column, Section, Table

LEAD = (
    "Two APs can be compared if their protocols are the same: the same images, size of input, suppression and scorer."
)
SPEEDS = {
    "images_per_second": ("images per second", "of all processes"),
    "data_ms": ("waiting for data, ms", "per image: a large part means that reading images is the bottleneck"),
    "model_ms": ("network, ms", "per image, with the transfer to the device"),
    "postprocess_ms": ("post-processing, ms", "per image"),
    "seconds": ("detection, s", "of all images"),
    "scoring_seconds": ("scoring, s", "from detections to metrics"),
    "analysis_seconds": ("analysis, s", "from metrics to this report"),
    "batch": ("batch", "images that the network sees at once"),
    "device": ("device", ""),
    "processes": ("processes", ""),
}


def protocol_section(facts: ReportFacts) -> Section:
    """The section of protocol, speed and command."""
    parts: list[Table | Markup] = [element("p", facts.protocol + ".")]
    parts += [element("p", note, class_="hint") for note in facts.notes]
    if facts.command:
        parts += [element("h3", "The command that repeats this"), element("pre", element("code", facts.command))]
    speed = _speed_rows(facts.speed)
    if speed:
        parts.append(Table("Speed", [Column("what"), Column("value", "number"), Column("meaning")], speed))
    rows = [
        ("checkpoint", facts.checkpoint),
        ("sha256 of its content", facts.weights),
        ("annotations", facts.annotations),
        ("sha256 of the annotations, first 16 digits", facts.data),
        ("images", facts.images_dir),
        ("detections", facts.detections),
        ("sha256 of the detections", facts.detections_sha256),
        *facts.machine.items(),
        *((f"version of {name}", version) for name, version in facts.versions.items()),
        ("written", facts.written),
    ]
    known = [row for row in rows if row[1]]
    parts.append(Table("Files, machine and versions", [Column("what"), Column("value")], known))
    return Section("protocol", "Protocol and command", LEAD, parts)


def _speed_rows(speed: Mapping[str, Any]) -> list[tuple[str, Any, str]]:
    if not speed.get("images", 1):
        speed = {name: value for name, value in speed.items() if name in ("scoring_seconds", "analysis_seconds")}
    return [
        (title, round(speed[name], 3) if isinstance(speed[name], float) else speed[name], what)
        for name, (title, what) in SPEEDS.items()
        if name in speed
    ]
