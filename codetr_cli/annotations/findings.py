"""Problems that a data set check has found: how many of each kind and place, and their first names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from codetr_cli.annotations.finding_kinds import KINDS, UNUSABLE_FILES, Severity
from codetr_cli.errors import listed

MAX_SKIPPED_SHARE = 0.1
"""Largest share of images that may be skipped; more mean that something else is wrong."""
SHOWN = 5
"""Names kept for each kind."""
MAX_NAME = 300
"""Characters of a name; files may have names of any length."""
EDGE_TOLERANCE_PX = 2.0
"""Boxes may extend this far beyond the edge without a finding: COCO's own do by rounding."""


@dataclass
class Finding:
    """One kind of finding in one place: how often, and the first few names with details.

    Args:
        is_skipped: whether what was found is skipped, so that an error is none.
    """

    kind: str
    where: str
    count: int = 0
    first: list[str] = field(default_factory=list)
    is_skipped: bool = False

    @property
    def severity(self) -> Severity:
        """How bad it is."""
        return "warning" if self.is_skipped else KINDS[self.kind].severity

    @property
    def fix(self) -> str:
        """What to do; empty when no action is needed."""
        return f"{KINDS[self.kind].fix}{' They are skipped (data.bad_files=skip).' * self.is_skipped}"

    def sentence(self) -> str:
        """The problem, where it is, the first names and the fix, as one paragraph."""
        kind = KINDS[self.kind]
        names = listed(self.first, len(self.first), count=self.count, separator="; ")
        return f"{self.where}: {self.count:,} {kind.text}{f': {names}' if self.first else ''}. {self.fix}".strip()

    def as_json(self) -> dict[str, Any]:
        """Plain values, under the keys of `--json`."""
        kind = KINDS[self.kind]
        return {
            "kind": self.kind,
            "severity": kind.severity,
            "where": self.where,
            "count": self.count,
            "first": self.first,
            "text": kind.text,
            "fix": self.fix,
        }


class Findings:
    """Collects findings: counts all, keeps the first few names of each."""

    def __init__(self) -> None:
        self._by_key: dict[tuple[str, str], Finding] = {}

    def add(self, kind: str, where: str, name: str = "", count: int = 1) -> None:
        """Adds `count` cases of a kind, the first of them named `name`."""
        finding = self._by_key.setdefault((kind, where), Finding(kind, where))
        finding.count += count
        if name and len(finding.first) < SHOWN:
            finding.first.append(name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}...")

    def get(self, kind: str, where: str) -> Finding | None:
        """The finding of a kind in a place, if any."""
        return self._by_key.get((kind, where))

    def skip_unusable(self, images: Mapping[str, int]) -> None:
        """Makes warnings of files that are skipped, but not where they are too many to be.

        Args:
            images: number of images in each place.
        """
        for where, count in images.items():
            found = [self._by_key[kind, where] for kind in UNUSABLE_FILES if (kind, where) in self._by_key]
            if sum(finding.count for finding in found) <= MAX_SKIPPED_SHARE * count:
                for finding in found:
                    finding.is_skipped = True

    def discard(self, kind: str, where: str) -> None:
        """Removes the finding of a kind in a place."""
        self._by_key.pop((kind, where), None)

    def merge(self, other: Findings) -> None:
        """Adds the findings of another collection."""
        for finding in other._by_key.values():
            self.add_finding(finding)

    def add_finding(self, finding: Finding) -> None:
        """Adds one finding of another collection."""
        for name in finding.first:
            self.add(finding.kind, finding.where, name)
        self.add(finding.kind, finding.where, count=finding.count - len(finding.first))

    def sorted(self) -> list[Finding]:
        """All findings, errors first, in the order of `KINDS` within a severity."""
        severities, kinds = ["error", "warning", "info"], list(KINDS)
        return sorted(self._by_key.values(), key=lambda f: (severities.index(f.severity), kinds.index(f.kind)))

    def count(self, severity: Severity) -> int:
        """The number of findings (not cases) of a severity."""
        return sum(finding.severity == severity for finding in self._by_key.values())
