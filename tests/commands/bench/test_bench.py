from __future__ import annotations

import pytest

from codetr_cli import result_files
from codetr_cli.commands.bench import COMMANDS, with_command
from codetr_cli.errors import ConfigError, ResourceError
from tests.commands.bench.fakes import SMALL_RUN


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], ["infer"]),
        (["--fps"], ["infer"]),
        (["--fps", "--size", "64x64"], ["infer", "--size", "64x64"]),
        (["--size", "64x64"], ["infer", "--size", "64x64"]),
        (["--ops", "--dtype", "bf16"], ["ops", "--dtype", "bf16"]),
        (["--batch", "1", "--train"], ["train", "--batch", "1"]),
        (["--data", "data/coco", "--workers", "2"], ["data", "data/coco", "--workers", "2"]),
        (["data", "data/coco"], ["data", "data/coco"]),
        (["--help"], ["--help"]),
        (["ops", "--help"], ["ops", "--help"]),
    ],
)
def test_a_command_is_named(words, named):
    assert with_command(words) == named


def test_several_commands_are_refused():
    with pytest.raises(ConfigError, match="`codetr bench infer` and `codetr bench train`"):
        with_command(["--fps", "--train"])


def test_infer_is_the_default(codetr, checkpoint):
    ran = codetr("bench", "--fps", "--checkpoint", checkpoint, *SMALL_RUN, "--json")
    assert ran.code == 0, ran.err
    assert list(ran.json)[-1] == "inference"


def test_a_full_disk_costs_no_measurement(codetr, checkpoint, tmp_path, monkeypatch):
    def full(path, **named):
        raise ResourceError(f"no space left on the disk while writing {path}.")

    monkeypatch.setattr(result_files, "write_result", full)
    ran = codetr("bench", "infer", "--checkpoint", checkpoint, *SMALL_RUN, "--json", "--out", tmp_path / "b.json")
    assert ran.code == 5
    assert f"while writing {tmp_path / 'b.json'}" in ran.err
    assert ran.json["inference"]


def test_unknown_words(codetr):
    ran = codetr("bench", "--fbs")
    assert ran.code == 2
    assert "codetr bench infer --help" in ran.err
    ran = codetr("bench", "--ops", "--train")
    assert (ran.code, "separately" in ran.err) == (2, True)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_80_columns(codetr, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    ran = codetr("bench", *([command] if command else []), "--help")
    assert ran.code == 0
    assert "Examples:" in ran.out
    assert max(map(len, ran.out.splitlines())) <= 80
    assert all(option not in ran.out for option in ("--fps", "--classic"))
