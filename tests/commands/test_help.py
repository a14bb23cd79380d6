"""The help screens: equal to docs/help/, readable at 80 columns, with examples that the program understands."""

from __future__ import annotations

import re
import shlex
from importlib.metadata import version

import pytest

from codetr_cli.cli import VERBS
from tests.help_texts import COLUMNS, FOLDER, render, screens

SCREENS = screens()


@pytest.mark.skipif(int(version("rich").split(".")[0]) < 15, reason="tables are as wide as Rich 15 draws them")
@pytest.mark.parametrize("name", SCREENS)
def test_help_is_as_documented(name: str):
    path = FOLDER / f"{name}.txt"
    assert path.is_file(), "write docs/help/ with `make pages`"
    assert render(SCREENS[name]) == path.read_text(encoding="utf-8"), "write docs/help/ again with `make pages`"


def test_no_help_of_a_verb_that_is_gone():
    assert {path.stem for path in FOLDER.glob("*.txt")} == set(SCREENS)


@pytest.mark.parametrize("name", SCREENS)
def test_help_reads_well_at_80_columns(name: str):
    text = render(SCREENS[name])
    assert max(len(line) for line in text.splitlines()) <= COLUMNS
    assert "<bool>" not in text
    assert "…" not in text
    assert re.search(r"<[\w|]+ ", text) is None, "a choice is broken in the middle of a word"


@pytest.mark.parametrize("name", SCREENS)
def test_no_word_is_broken(name: str, monkeypatch: pytest.MonkeyPatch):
    """Every word at 80 columns is a word at 300 columns, where nothing is wrapped."""
    narrow = render(SCREENS[name])
    monkeypatch.setattr("tests.help_texts.COLUMNS", 300)
    words = set(_words(render(SCREENS[name])))
    assert [word for word in _words(narrow) if word not in words] == []


def _words(text: str) -> list[str]:
    return re.sub(r"[╭╮╰╯│─]", " ", text).split()


@pytest.mark.parametrize("name", [name for name in SCREENS if name != "codetr"])
def test_every_verb_has_examples(name: str):
    text = render(SCREENS[name])
    examples = re.findall(r"^ \$ (codetr .*)$", text, re.MULTILINE)
    assert len(examples) >= 2
    options = set(re.findall(r"--[a-z][a-z-]*", text))
    for example in examples:
        words = shlex.split(example.partition(" > ")[0])
        assert words[1] == SCREENS[name][0]
        assert {word for word in words if word.startswith("--")} <= options


def test_verbs_are_in_groups():
    text = render(())
    titles = re.findall(r"^╭─ ([A-Z][a-z ]+) ─", text, re.MULTILINE)
    assert titles == ["Options", "Data", "Train and evaluate", "Use", "Weights", "This machine"]
    for verb in VERBS:
        assert len(re.findall(rf"^│ {verb} +\S", text, re.MULTILINE)) == 1, "one line each"


@pytest.mark.parametrize(
    ("verb", "option"),
    [(verb, option) for verb in ("train", "eval", "predict") for option in ("--device", "--set", "--json", "--quiet")]
    + [
        ("train", "--data"),
        ("train", "--preset"),
        ("train", "--gpus"),
        ("eval", "--data"),
        ("predict", "--checkpoint"),
    ],
)
def test_common_options_take_one_line(verb: str, option: str):
    lines = render((verb,)).splitlines()
    index = next(index for index, line in enumerate(lines) if line.startswith(f"│ {option} "))
    following = lines[index + 1].strip("│ ")
    assert not following or following.startswith(("-", "╰")), following
