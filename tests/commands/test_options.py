"""Spellings of options, and arguments that are options too."""

from __future__ import annotations

import re

import pytest

from codetr_cli.commands._options import SYNONYMS, use_shown_spelling


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


@pytest.mark.parametrize(
    "words",
    [
        ("eval", "a.safetensors", "--checkpoint", "b.safetensors"),
        ("prepare", "a", "--data", "b"),
        ("convert-data", "a", "--data", "b", "--out", "c"),
        ("convert", "a.pth", "c.safetensors", "--checkpoint", "b.pth"),
    ],
)
def test_an_argument_and_the_option_for_it_exclude_each_other(codetr, words: tuple[str, ...]):
    ran = codetr(*words)
    assert ran.code == 2
    assert "give one of them" in ran.err


@pytest.mark.parametrize("words", [("prepare",), ("convert-data", "--out", "c"), ("bench", "data")])
def test_one_data_set_where_several_cannot_be_read(codetr, words: tuple[str, ...]):
    ran = codetr(*words, "--data", "a", "--data", "b")
    assert ran.code == 2
    assert "--data is given 2 times (a, b), but this command reads one data set" in " ".join(ran.err.split())
