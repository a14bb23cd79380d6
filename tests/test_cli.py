"""The command line: every verb has help, a wrong word gets the nearest one suggested, `--json` prints one object."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from codetr_cli import __version__
from codetr_cli.cli import VERBS
from codetr_cli.commands.bench import SELECTORS
from codetr_cli.commands.train import FIRST_PRESETS
from codetr_cli.config.presets import preset_names
from tests.conftest import REPOSITORY

# Options that users rely on: removing or renaming one is a decision, not an accident.
OPTIONS = {
    "prepare": {"--data", "--demo", "--deep", "--no-link", "--json"},
    "browse": {"--data", "--ann", "--split", "--detections", "--port", "--no-open", "--set", "--json"},
    "stats": {"--data", "--ann", "--preset", "--no-images", "--html", "--force", "--set", "--json"},
    "train": {
        "--preset",
        "--data",
        "--weights",
        "--restart",
        "--run",
        "--gpus",
        "--procs",
        "--device",
        "--no-eval",
        "--set",
        "--dry-run",
    },
    "eval": {"--checkpoint", "--data", "--set", "--device", "--detections", "--scorer", "--report", "--json"},
    "review": {"--data", "--split", "--detections", "--folds", "--kinds", "--suspicion", "--limit", "--json"},
    "compare": {"--data", "--ann", "--samples", "--html", "--per-class", "--device", "--json"},
    "bench": {"--fps", "--train", "--preset", "--checkpoint", "--size", "--device", "--precision", "--json"},
    "predict": {"--score", "--max-dets", "--nms", "--device", "--json"},
    "label": {"--score", "--format", "--out", "--save-images", "--class-map", "--review", "--device", "--json"},
    "serve": {"--host", "--port", "--api-key", "--queue", "--timeout", "--batch", "--gpus", "--device", "--json"},
    "demo": {"--examples", "--host", "--port", "--share", "--max-upload", "--device", "--json"},
    "convert": {"--checkpoint", "--json"},
    "convert-data": {"--data", "--out", "--split", "--force", "--json"},
    "download": {"--url", "--force", "--dry-run", "--json"},
    "export": {"--format", "--size", "--batch", "--out", "--force", "--json"},
    "presets": {"--set", "--json"},
    "card": {"--license", "--evaluation", "--name", "--out", "--force", "--json"},
    "push": {"--license", "--evaluation", "--private", "--out", "--dry-run", "--force", "--json"},
    "runs": {"--json"},
    "watch": {"--every", "--once", "--json"},
    "cache": {"--downloads", "--yes", "--json"},
    "doctor": {"--json"},
}


def plain(text: str) -> str:
    """Help without colours and box lines, spaces collapsed."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|[╭╮╰╯│─]", " ", text).split())


def test_help_lists_every_verb(codetr):
    ran = codetr("--help")
    assert ran.code == 0
    for verb in VERBS:
        assert re.search(rf"\b{verb} +\S", plain(ran.out)), verb


def test_every_verb_is_listed_with_its_options():
    assert set(OPTIONS) == set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_each_verb(codetr, verb: str, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    ran = codetr(verb, "--help")
    assert ran.code == 0
    text = plain(ran.out)
    assert f"codetr {verb}" in text
    if verb == "bench":  # without a command it means infer; other former options name a command
        text = " ".join([text, plain(codetr("bench", "infer", "--help").out), *SELECTORS])
    assert set(re.findall(r"--[a-z][a-z-]*", text)) >= OPTIONS[verb]
    assert "Args:" not in text


def test_no_words_is_help(codetr):
    ran = codetr()
    assert ran.code == 2
    assert "presets" in ran.out + ran.err


def test_version(codetr):
    assert codetr("--version").out == f"codetr {__version__}\n"
    versions = codetr("--version", "--json").json
    assert set(versions) == {"codetr", "python", "torch", "platform"}
    assert versions["codetr"] == __version__
    assert versions["torch"] == metadata.version("torch")


def test_options_without_a_verb_are_help(codetr):
    ran = codetr("--json")
    assert ran.code == 2
    assert "presets" in ran.out


def test_train_without_a_preset_names_some_to_start_with(codetr):
    ran = codetr("train")
    assert ran.code == 2
    assert set(re.findall(r"--preset (\w+)", ran.err)) == set(FIRST_PRESETS)
    assert set(FIRST_PRESETS) <= set(preset_names())
    assert len(FIRST_PRESETS) == 3


def test_log_messages_go_to_stderr(codetr, monkeypatch):
    def names() -> list[str]:
        logger = logging.getLogger("codetr_cli.config.presets")
        logger.debug("hidden")
        logger.info("a note: %d", 1)
        logger.warning("careful")
        return []

    monkeypatch.setattr("codetr_cli.config.presets.preset_names", names)
    ran = codetr("presets", "--json")
    assert ran.json == {"presets": []}
    assert ran.err == "a note: 1\nwarning: careful\n"


@pytest.mark.parametrize("verb", VERBS)
def test_wrong_option_suggests_the_right_one(codetr, verb: str):
    ran = codetr(verb, "--jso")
    assert (ran.code, ran.out) == (2, "")
    assert "did you mean" in ran.err
    assert "--json" in ran.err


def test_wrong_verb_suggests_the_right_one(codetr):
    ran = codetr("trian")
    assert ran.code == 2
    assert "'train'" in ran.err


def test_unknown_preset_suggests_the_right_one(codetr):
    ran = codetr("train", "--preset", "co_dino_r5")
    assert ran.code == 2
    assert "did you mean 'co_dino_r50'?" in ran.err
    assert "Traceback" not in ran.err


def test_mistyped_setting_suggests_the_right_one(codetr):
    ran = codetr("train", "--preset", "co_dino_r50", "--set", "train.lrr=1", "--dry-run")
    assert ran.code == 2
    assert "train.lr" in ran.err


def test_wrong_value_names_the_setting(codetr):
    ran = codetr("train", "--preset", "co_dino_r50", "--set", "train.epochs=-1", "--dry-run")
    assert ran.code == 2
    assert "train.epochs" in ran.err
    assert "-1" in ran.err


def test_wrong_usage_under_json_is_one_object(codetr):
    ran = codetr("presets", "--jso", "--json")
    assert ran.code == 2
    assert ran.json["exit_code"] == 2


def test_reader_that_leaves_early():
    """`codetr presets NAME | head -1` ends quietly."""
    script = f"{sys.executable} -m codetr_cli presets co_dino_r50 | head -n 1"
    done = subprocess.run(["bash", "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.stdout == 'name = "co_dino_r50"\n'
    assert done.stderr == ""


def test_without_standard_streams_it_works_too():
    """As a service starts it, with nothing to read from and nothing to write to."""
    script = f"{sys.executable} -m codetr_cli presets <&- >&- 2>&-; echo $?"
    done = subprocess.run(["bash", "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("0\n", "")


@pytest.mark.parametrize(
    "words", [["\x1b[2J"], ["predict", "--\x1b[2J"], ["presets", "\x1b[2Jx"], ["eval", "\x1b[2J\nx.pth"]]
)
def test_wrong_words_cannot_command_the_terminal(codetr, words: list[str]):
    ran = codetr(*words)
    assert ran.code in (2, 4)
    assert "\\x1b[2J" in ran.err
    assert "\x1b" not in ran.err
    assert len(ran.err.splitlines()) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's device that is always full")
@pytest.mark.parametrize("json_option", [(), ("--json",)])
def test_full_streams(json_option: tuple[str, ...]):
    command = [sys.executable, "-m", "codetr_cli", "presets", *json_option]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert done.returncode == 5
        assert "<stdout>" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, text=True, check=False)
    assert done.returncode == 0
    assert "co_dino_r50" in done.stdout
