"""Kills and full disks at every write of what a command leaves: files are whole, and the same command ends alike."""

from __future__ import annotations

import json
import random
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from codetr_cli.cli import main
from codetr_cli.commands import prepare
from codetr_cli.config.schema import Settings
from codetr_cli.data import demo
from codetr_cli.distributed import shared_work
from codetr_cli.distributed.part_files import FOLDER
from codetr_cli.errors import CodetrError
from tests.data.fakes import write_voc, xml
from tests.faults import FULL, FULL_CONTENT, KILL, TORN, Ended, contents, run_with_fault
from tests.inference.fakes import write_run
from tests.weights.published_states import published_state, save_mmengine, small_preset

SOME = {KILL: 3, TORN: 1, FULL: 2, FULL_CONTENT: 1}
"""How many instants of each fault the quick form of a test chooses."""
RESULTS = {"eval": "detections.json", "predict": "predictions.json"}


@pytest.fixture
def commands(tmp_path: Path, tiny_settings: Settings, tiny_coco: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs a command on two images with its results in a folder; each image makes a part."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shared_work, "FLUSH_S", -1.0)
    write_run(tmp_path / "runs/tiny/1", tiny_settings, "last")
    (tmp_path / "photos").mkdir()
    for path in sorted((tiny_coco / "train2017").glob("*.jpg"))[:2]:
        shutil.copy(path, tmp_path / "photos")
    common = ["--device", "cpu", "--out", "out/here"]
    scorer = ["--scorer", "pycocotools"]  # the other has threads, which a forked process would wait for
    words = {
        "eval": [
            "eval",
            "runs/tiny/1",
            "--data",
            str(tiny_coco),
            "--split",
            "train",
            "--max-images",
            "2",
            *common,
            *scorer,
        ],
        "predict": ["predict", "photos", "--score", "0", *common],
    }
    return {verb: (lambda words=words: main(words)) for verb, words in words.items()}


def valid(folder: Path) -> None:
    """Every result is a whole file."""
    for name, content in contents(folder, ignore=("speed.json", "summary.json")).items():
        if FOLDER not in name and name.endswith(".json"):
            json.loads(content)
        elif name.endswith(".jpg"):
            assert content.endswith(b"\xff\xd9")


def check_instants(command: Callable[[], int], name: str, counts: dict[str, int]) -> None:
    """What holds for each fault at so many instants."""
    out = Path("out")
    out.mkdir()
    undisturbed = run_with_fault(command, out)
    assert undisturbed.code == 0, undisturbed.err
    expected = contents(out, ignore=("speed.json", "summary.json"))
    assert f"here/{name}" in expected
    for fault, where, at in faults(undisturbed.writes, counts):
        shutil.rmtree(out)
        out.mkdir()
        ended = run_with_fault(command, out, fault, at)
        valid(out)
        if fault in (FULL, FULL_CONTENT):
            check_full(ended, out, where)
        again = run_with_fault(command, out)
        assert again.code == 0, (where, again.err)
        found = contents(out, ignore=("speed.json", "summary.json"))
        # The first command may have been complete: the second has its results beside it.
        beside = {key.replace("here_2/", "here/"): found.pop(key) for key in list(found) if key.startswith("here_2/")}
        assert beside in ({}, expected), where
        assert found == expected, where


def faults(writes: list[str], counts: dict[str, int]) -> Iterator[tuple[str, str, int]]:
    """Each fault with a description and the number of a write, at so many writes."""
    for fault, count in counts.items():
        opened = fault in (TORN, FULL_CONTENT)
        numbers = [i for i, write in enumerate(writes, 1) if write.startswith("open") or not opened]
        for at in random.Random(count).sample(numbers, min(count, len(numbers))):
            yield fault, f"{fault} at write {at}, {writes[at - 1]}", at


def check_full(ended: Ended, out: Path, where: str) -> None:
    """Exit code 5 and the name of a file, or all was well; no empty or half-written file."""
    assert "Traceback" not in ended.err, where
    if ended.code:
        assert ended.code == 5, (where, ended.err)
        assert re.search("(no space left on the disk while writing|cannot use|cannot write) out", ended.err), (
            where,
            ended.err,
        )
    for path in out.rglob("*"):
        assert path.suffix != ".tmp", where
        assert path.is_dir() or path.stat().st_size or path.name == ".lock", where


@pytest.mark.parametrize("verb", ["eval", "predict"])
def test_a_command_is_killed_or_has_no_space_and_continues(commands: dict[str, Callable[[], int]], verb: str):
    check_instants(commands[verb], RESULTS[verb], SOME)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["eval", "predict"])
def test_at_every_write(commands: dict[str, Callable[[], int]], verb: str):
    check_instants(commands[verb], RESULTS[verb], dict.fromkeys(SOME, 1000))


# ---------------------------------------------------------------------------------------------- commands without parts


@pytest.fixture
def writers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[[], int]]:
    """Commands whose output is in `out`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "source").mkdir()
    source = save_mmengine(tmp_path / "source/published.pth", published_state())
    preset = small_preset(tmp_path)
    voc = write_voc(
        tmp_path / "voc", {name: xml(("ant", 1, 1, 9, 9)) for name in "abc"}, {"train": "a\nb", "test": "c"}
    )
    monkeypatch.setattr(demo, "write_demo", partial(demo.write_demo, train=2, val=1, size=96))

    def write_demo() -> int:
        try:
            prepare._write_demo(Path("out/here"), None)
        except CodetrError as error:
            print(error, file=sys.stderr)  # noqa: T201
            return error.exit_code
        return 0

    return {
        "convert": lambda: main(["convert", str(source), "out/here/x.safetensors", "--preset", str(preset)]),
        "convert-data": lambda: main(["convert-data", str(voc), "--out", "out/here"]),
        "demo": write_demo,
    }


def check_whole(command: Callable[[], int], counts: dict[str, int]) -> None:
    """Files appear whole or not at all; the same command ends alike, unless all was there."""
    out = Path("out")
    out.mkdir()
    undisturbed = run_with_fault(command, out)
    assert undisturbed.code == 0, undisturbed.err
    expected = contents(out)
    assert expected
    for fault, where, at in faults(undisturbed.writes, counts):
        shutil.rmtree(out)
        out.mkdir()
        ended = run_with_fault(command, out, fault, at)
        found = {name: content for name, content in contents(out).items() if not name.endswith(".tmp")}
        found.pop(f"here/{demo.INCOMPLETE_NAME}", None)
        assert found.items() <= expected.items(), where
        if fault in (FULL, FULL_CONTENT):
            check_full(ended, out, where)
        again = run_with_fault(command, out)
        assert again.code == 0 or (again.code == 2 and found == expected), (where, again.err)
        assert contents(out) == expected, where


@pytest.mark.parametrize("name", ["convert", "convert-data", "demo"])
def test_what_is_written_appears_whole_or_not_at_all(writers: dict[str, Callable[[], int]], name: str):
    check_whole(writers[name], {KILL: 2, TORN: 1, FULL: 1, FULL_CONTENT: 1})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convert", "convert-data", "demo"])
def test_the_same_at_every_write(writers: dict[str, Callable[[], int]], name: str):
    check_whole(writers[name], dict.fromkeys(SOME, 1000))
