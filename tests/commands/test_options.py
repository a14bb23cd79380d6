"""Spellings of options, and that each option is used."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from codetr_cli import commands
from codetr_cli.commands._options import SYNONYMS, use_shown_spelling

COMMANDS = Path(commands.__file__).parent


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["train", "--fresh", "--checkpoint=a.pth"], ["train", "--restart", "--weights=a.pth"]),
        (["eval", "x", "--engine", "hotcoco"], ["eval", "x", "--scorer", "hotcoco"]),
        (["eval", "--from=d.json"], ["eval", "--detections=d.json"]),
        (["predict", "--checkpoint", "x"], ["predict", "--checkpoint", "x"]),
        ([], []),
    ],
)
def test_other_spellings_of_options_are_understood(words: list[str], shown: list[str]):
    assert use_shown_spelling(words) == shown


def test_every_synonym_stands_for_an_option_of_its_verb(codetr, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for verb, synonyms in SYNONYMS.items():
        assert set(synonyms.values()) <= set(re.findall(r"--[a-z-]+", codetr(verb, "--help").out))


@cache
def verbs() -> dict[str, tuple[Path, ast.FunctionDef]]:
    """The functions that typer calls: those with a context or an option in their signature."""
    found = {}
    for path in sorted(COMMANDS.rglob("[!_]*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and "opt." in ast.unparse(node.args):
                found[f"{path.relative_to(COMMANDS)}::{node.name}"] = (path, node)
    return found


def helpers(path: Path) -> set[Path]:
    """A module of commands and those with an underscore that it imports, which read options by their names."""
    found, new = {path}, [path]
    while new:
        names = re.findall(
            r"\b_[a-z]\w+", " ".join(re.findall(r"^from codetr_cli\.commands.*", new.pop().read_text(), re.M))
        )
        more = {file for name in names for file in COMMANDS.rglob(f"{name}.py")} - found
        found |= more
        new += more
    return found


@cache
def texts(path: Path) -> set[str]:
    """The strings in a module."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


@pytest.mark.parametrize("verb", verbs())
def test_every_option_is_used(verb: str):
    """One that is accepted and has no effect would be a silent error."""
    path, function = verbs()[verb]
    used = {node.id for statement in function.body for node in ast.walk(statement) if isinstance(node, ast.Name)}
    for file in helpers(path):
        used |= texts(file)
    parameters = {argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)}
    assert parameters - used == set()
