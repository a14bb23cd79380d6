"""Plain technical English: words that this project does not use, in code, help, errors and documentation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

# What to write instead stands beside each.
AVOIDED = {
    r"told|tells": "report, print, log, warn",
    r"mend|mends|mended|mending": "fix",
    r"anew": "again, from scratch",
    r"whoever|whomever|whose sake": "the user, the caller",
    r"a person|the person|persons": "the user",
    r"lies|as it lies|as they lie": "is in, in place",
    r"left out|leave out|leaves out|leaving out": "skipped",
    r"carry over|carries over|carried over": "load matching",
    r"noughts?": "zeros",
    r"hand-over": "transfer",
    r"looked at": "processed",
    r"what holds (things|them) up": "bottleneck",
    r"machines meet|meeting point": "rendezvous",
    r"goes on": "continues",
    r"of its own accord|by and by|amidst": "plain words",
}
PATTERN = re.compile(r"(?<![\w-])(" + "|".join(AVOIDED) + r")(?![\w-])", flags=re.IGNORECASE)
TEXTS = sorted(
    [
        *(REPOSITORY / "codetr_cli").rglob("*.py"),
        *(REPOSITORY / "presets").glob("*.toml"),
        *(REPOSITORY / "docs").rglob("*.md"),
        *(REPOSITORY / "docs").rglob("*.txt"),
        *(REPOSITORY / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md")),
    ]
)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_plain_english(path: Path):
    found = [
        f"{number}: {match[0]!r}"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for match in PATTERN.finditer(line)
    ]
    assert found == []
