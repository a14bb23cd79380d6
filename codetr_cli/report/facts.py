"""What a report is about: the evaluated files, the protocol, the machine, and the command that repeats it."""

from __future__ import annotations

import hashlib
import platform
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from codetr_cli import __version__
from codetr_cli.annotations.cache import content_digest
from codetr_cli.evaluation.protocol import Published
from codetr_cli.reading import open_file
from codetr_cli.runtime.devices import cpu_count, cpu_name, list_gpus
from codetr_cli.weights.urls import has_secrets, shown_url

VERSIONS = ("torch", "numpy", "hotcoco", "pycocotools")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")


@dataclass(frozen=True, kw_only=True)
class ReportFacts:
    """Everything of an evaluation that is no analysis.

    Attributes:
        title: of the page.
        protocol: how detections were made and scored, in a sentence.
        protocol_parts: the same by name, as `Protocol.as_dict` has it; empty: not known.
        metrics: in [0, 1] by name, -1 where there is nothing to find.
        per_class: name, category_id, objects, AP, AP50, ... of each class.
        images: number of scored images.
        objects: number of scored objects, crowds included.
        annotations: path of the annotations.
        images_dir: folder of the images; empty: not found.
        data: digest of the annotations' content.
        detections: path of the file of detections; None: they were not written.
        detections_sha256: of that file.
        checkpoint: as the user has given it; None: the detections are from a file.
        weights: digest of the checkpoint's content; None if it is not known.
        published: the published AP, as `Published.as_dict` has it.
        speed: numbers by name; empty if they are not known.
        command: that makes the report again.
        notes: remarks on the evaluation, sentences.
        written: date and time.
        machine: by name.
        versions: of codetr and of packages, by name.
    """

    title: str
    protocol: str
    metrics: Mapping[str, float]
    per_class: Sequence[Mapping[str, Any]]
    images: int
    objects: int
    annotations: str
    images_dir: str
    data: str
    protocol_parts: Mapping[str, Any] = field(default_factory=dict)
    detections: str | None = None
    detections_sha256: str | None = None
    checkpoint: str | None = None
    weights: str | None = None
    published: Mapping[str, Any] | None = None
    speed: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    notes: Sequence[str] = ()
    written: str = field(default_factory=lambda: datetime.now(UTC).astimezone().isoformat(timespec="seconds"))
    machine: Mapping[str, str] = field(default_factory=lambda: this_machine())
    versions: Mapping[str, str] = field(default_factory=lambda: installed_versions())

    @property
    def published_ap(self) -> Published | None:
        """The published AP; None if there is none."""
        table = self.published
        return None if table is None else Published(table["box_ap"], table["mask_ap"], list(table["differences"]))

    def as_dict(self) -> dict[str, Any]:
        """For `report.json`."""
        return asdict(self)


def this_machine() -> dict[str, str]:
    """Processor, GPUs and system; nothing that names the user or a folder."""
    gpus = [gpu.name for gpu in list_gpus()]
    shown = {name: gpus.count(name) for name in gpus}
    return {
        "processor": f"{cpu_name()}, {cpu_count()} cores",
        "GPU": ", ".join(f"{count} x {name}" if count > 1 else name for name, count in shown.items()) or "none",
        "system": f"{platform.system()} {platform.machine()}",
    }


def installed_versions() -> dict[str, str]:
    """Versions of what numbers depend on; packages that are not installed are not listed."""
    versions = {"codetr": __version__, "python": platform.python_version()}
    for name in VERSIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def data_digest(annotations_path: Path) -> str:
    """Digest of the content of annotations, as run folders record it."""
    return content_digest(annotations_path)


def file_sha256(path: Path) -> str:
    """Digest of a file.

    Raises:
        OSError: it cannot be read.
    """
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def command_text(words: Sequence[str]) -> str:
    """Words after `codetr` as a command that can be given again; credentials in URLs are hidden."""
    return shlex.join(["codetr", *(_URL.sub(_public_url, word) for word in words)])


def _public_url(found: re.Match[str]) -> str:
    return shown_url(found[0]) if has_secrets(found[0]) else found[0]
