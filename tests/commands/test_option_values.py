"""Arguments that are options too, and options that exclude each other."""

from __future__ import annotations

import pytest


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
