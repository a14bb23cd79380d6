"""Help of every verb as text files in docs/help/, 80 columns wide and without colour; `make pages` writes them.

`python -m tests.help_texts` writes the files again after a change of an option.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from codetr_cli.cli import VERBS, main
from codetr_cli.commands import bench

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDER = REPOSITORY / "docs" / "help"
COLUMNS = 80
BENCHMARKS: tuple[str, ...] = getattr(bench, "COMMANDS", ())


def screens() -> dict[str, tuple[str, ...]]:
    """Name of the file -> the words that print it."""
    verbs = [(verb,) for verb in VERBS] + [("bench", kind) for kind in BENCHMARKS]
    return {"codetr": (), **{"-".join(words): words for words in verbs}}


def render(words: tuple[str, ...]) -> str:
    """What `codetr WORDS --help` prints, without spaces at the ends of lines and empty lines at both ends."""
    out = io.StringIO()
    terminal = {"COLUMNS": str(COLUMNS), "NO_COLOR": "1", "TERM": "dumb"}
    with mock.patch.dict(os.environ, terminal), _without_colors(), contextlib.redirect_stdout(out):
        code = main([*words, "--help"])
    if code != 0:
        raise RuntimeError(f"codetr {' '.join(words)} --help ended with exit code {code}")
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    return "\n".join(lines).strip("\n") + "\n"


@contextlib.contextmanager
def _without_colors() -> Iterator[None]:
    """No colours, also where the environment of a continuous integration forces them."""
    forced = ("GITHUB_ACTIONS", "FORCE_COLOR", "PY_COLORS")
    saved = {name: os.environ.pop(name) for name in forced if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(saved)


def write() -> None:
    """Writes all files and removes those of verbs that are gone."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    texts = {f"{name}.txt": render(words) for name, words in screens().items()}
    for path in FOLDER.glob("*.txt"):
        if path.name not in texts:
            path.unlink()
    for name, text in texts.items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(write())
