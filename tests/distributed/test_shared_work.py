"""Work that is divided among processes: stopped, continued, and with processes that die."""

from __future__ import annotations

import json
import os
import re
import signal
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from codetr_cli.config.schema import Settings
from codetr_cli.distributed import process_group, shared_work
from codetr_cli.distributed.part_files import FOLDER, PartFiles
from codetr_cli.distributed.part_frames import Part
from codetr_cli.distributed.shared_work import SharedWork, agree_on_weights
from codetr_cli.distributed.worker_errors import EVALUATION
from codetr_cli.errors import CheckpointError, ResourceError, StoppedError
from codetr_cli.evaluation import job
from codetr_cli.inference import loading
from codetr_cli.result_files import RECORD_NAME
from codetr_cli.runtime.signals import StopRequest
from tests.conftest import Ran
from tests.distributed.fake_store import KeyValueStore
from tests.distributed.forked_commands import run_forked
from tests.inference.fakes import write_run

IMAGES = 4  # of the training split
Run = Callable[..., Ran]


@pytest.fixture
def commands(tmp_path: Path, tiny_settings: Settings, tiny_coco: Path, monkeypatch: pytest.MonkeyPatch):
    """Words of commands on the images of the training split, by verb, with an output folder."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs/tiny/1", tiny_settings, "last")
    common = ["--device", "cpu", "--out"]
    return {
        "eval": lambda out: ["eval", "runs/tiny/1", "--data", str(tiny_coco), "--split", "train", *common, out],
        "predict": lambda out: ["predict", str(tiny_coco / "train2017"), "--score", "0", *common, out],
    }


def contents(folder: str) -> dict[str, bytes]:
    """Every file except those with times."""
    with_times = ("speed.json", "summary.json", RECORD_NAME)
    files = (path for path in Path(folder).rglob("*") if path.is_file() and path.name not in with_times)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_processes_that_die_change_no_byte(codetr: Run, commands):
    for verb, words in commands.items():
        ran = codetr(*words(f"{verb}-alone"))
        assert ran.code == 0, ran.err
    shared = [[*words(f"{verb}-killed"), "--procs", "2", "--quiet"] for verb, words in commands.items()]
    killed = run_forked(*shared, DYING="1")
    assert killed.returncode == 0, killed.stderr
    assert "Traceback" not in killed.stderr
    for name, verb in (("evaluation", "eval"), ("prediction", "predict")):
        assert re.search(
            rf"{name} process 1 was ended by SIGKILL.*which continue with the images that are not done \(restart 1 of",
            killed.stderr,
        )
        assert contents(f"{verb}-killed") == contents(f"{verb}-alone")
    assert json.loads(Path("eval-killed/speed.json").read_text())["images"] < IMAGES  # the others were done before


@pytest.mark.parametrize("verb", ["eval", "predict"])
def test_a_stopped_command_continues(codetr: Run, commands, verb: str, monkeypatch: pytest.MonkeyPatch):
    words = commands[verb]
    assert codetr(*words("alone")).code == 0
    add = SharedWork.add

    def add_and_stop(work: SharedWork, unit: int, *arguments: Any, **named: Any) -> None:
        monkeypatch.setattr(work._stop, "number", int(signal.SIGTERM))
        add(work, unit, *arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(SharedWork, "add", add_and_stop)
        ran = codetr(*words("stopped"))
    assert ran.code == 143
    assert f"stopped: 1 of {IMAGES} images are done and kept in stopped. The same command continues" in ran.err
    assert (Path("stopped") / FOLDER).is_dir()
    if verb == "predict":  # can be used as they are
        assert len({record["image_id"] for record in json.loads(Path("stopped/predictions.json").read_bytes())}) == 1
    ran = codetr(*words("stopped"), "--set", "data.workers=1")  # which changes no result
    assert ran.code == 0, ran.err
    assert f"1 of {IMAGES} images were done before" in ran.err
    assert contents("stopped") == contents("alone")


@pytest.mark.parametrize("verb", ["eval", "predict"])
def test_parts_of_somebody_else_are_named_once_and_computed_again(
    codetr: Run, commands, verb: str, monkeypatch: pytest.MonkeyPatch
):
    """Their headers and checksums are right."""
    words, close = commands[verb], PartFiles.close
    with monkeypatch.context() as patched:
        patched.setattr(PartFiles, "close", lambda parts, remove: close(parts, remove=False))
        assert codetr(*words("out")).code == 0
    expected = contents("out")
    parts = list(Path("out", FOLDER).glob("*.part"))
    for path in parts:
        head, _, content = path.read_bytes().partition(b"\n")
        header = json.loads(head)
        content = content.replace(b'"number"', b'"NUMBER"').replace(b'"F64"', b'"F16"')
        path.write_bytes(json.dumps({**header, "checksum": zlib.crc32(content)}).encode() + b"\n" + content)
    Path("out", FOLDER, "z.part").mkdir()
    ran = codetr(*words("out"))
    assert ran.code == 0, ran.err
    assert ran.err.count("is damaged") == len(parts) + 1
    assert "were done before" not in ran.err
    assert contents("out") == {name: content for name, content in expected.items() if not name.startswith(FOLDER)}


def test_an_evaluation_whose_images_were_all_done_has_no_speed(codetr: Run, commands, monkeypatch: pytest.MonkeyPatch):
    def fail(*arguments: Any, **named: Any) -> None:
        raise ResourceError("no space")

    words = commands["eval"]("out")
    with monkeypatch.context() as patched:
        patched.setattr(job, "_write", fail)
        assert codetr(*words).code == 5
    assert "Speed: all images were done before; scoring" in codetr(*words).out


@pytest.mark.parametrize("verb", ["eval", "predict"])
@pytest.mark.parametrize("content", [b"[{}]", b"PK\x03\x04", b"[" * 100_000], ids=["table", "zip", "deep"])
def test_parts_with_a_content_of_somebody_else_are_named(
    codetr: Run, commands, verb: str, content: bytes, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shared_work.SharedWork, "start", lambda work, *arguments: work.parts.open("a") or set(range(4)))
    monkeypatch.setattr(shared_work.SharedWork, "finish", lambda work: [Part([0], content)])
    ran = codetr(*commands[verb]("out"))
    assert ran.code == 3, ran.err
    assert "out/.parts has results that codetr has not written" in ran.err


@pytest.mark.parametrize("verb", ["eval", "predict"])
def test_another_command_keeps_the_results_of_a_stopped_one(codetr: Run, commands, tmp_path: Path, verb: str):
    words = commands[verb]("out")
    parts = PartFiles(tmp_path / "out", lambda unit: [])
    parts.path.mkdir(parents=True)
    parts.open("another request")
    parts.add(Part([0], b"[]"))
    parts.close(remove=False)
    name = "predictions.json" if verb == "predict" else "detections.json"
    ran = codetr(*words)
    assert ran.code == 0
    assert "out has the results so far of a stopped command with other options or weights" in ran.err
    assert [part.units for part in parts.read()] == [[0]]
    assert (tmp_path / "out_2" / name).is_file()
    assert not (tmp_path / "out" / name).exists()
    ran = codetr(*words, "--force")
    assert "starting again" in ran.err
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "out_2" / name).read_bytes()
    assert not parts.path.exists()


# ------------------------------------------------------------------------------------------------- several processes


@pytest.fixture
def main_of_two(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The work of the process of rank 0 of two, with three units, and the store that both share."""
    monkeypatch.setattr(process_group, "world_size", lambda: 2)
    store, stop, seen = KeyValueStore(), StopRequest(lambda number: None, lambda: None), []
    parts = PartFiles(tmp_path, lambda unit: [])
    work = SharedWork(
        parts, [2, 2, 1], lambda results: json.dumps(results).encode(), work=EVALUATION, stop=stop, store=store
    )
    work.progress = seen.append
    monkeypatch.setattr(shared_work, "STOP_S", 0.0)
    assert work.start("request") == set()
    yield work, parts, store, seen
    work.close(complete=True)


def test_the_results_and_the_progress_of_other_processes_count(main_of_two):
    work, parts, store, seen = main_of_two
    work.add(0, "a")
    store.add("done", 3)  # by the other process
    work.add(2, "b")
    parts.add(Part([1], b'["c"]'))
    store.add("finished/1", 1)
    assert [(part.units, json.loads(part.content)) for part in work.finish()] == [([0, 2], ["a", "b"]), ([1], ["c"])]
    assert seen == [2, 4]
    assert work.images == 5


def test_results_are_written_from_a_number_on_those_that_failed_apart(main_of_two, monkeypatch: pytest.MonkeyPatch):
    work, parts, *_ = main_of_two
    monkeypatch.setattr(shared_work, "FLUSH_UNITS", 2)
    work.add(0, "a")
    assert list(parts.read()) == []
    work.add(2, "b", failed=True)
    assert [(part.units, part.failed) for part in parts.read()] == [([0], False), ([2], True)]


def test_a_part_that_is_lost_while_parts_are_read_is_an_error(main_of_two):
    work, parts, store, _ = main_of_two
    for unit in range(3):
        work.add(unit, "a")
        work.flush()
    store.add("finished/1", 1)
    found = work.finish()
    assert len(list(found)) == len(list(found)) == 3  # as often as they are asked for
    next(parts.path.glob("*.part")).unlink()
    with pytest.raises(ResourceError, match=r"1 results in .* can no longer be read"):
        list(found)


@pytest.mark.parametrize("stopped", [False, True])
def test_the_other_processes_stay_until_the_results_are_written(
    main_of_two, monkeypatch: pytest.MonkeyPatch, stopped: bool
):
    work, _, store, _ = main_of_two
    waited: list[float] = []

    def main_closes(seconds: float) -> None:
        assert store.add("closed", 0) == 0
        waited.append(seconds)
        with monkeypatch.context() as main:
            main.setattr(process_group, "is_main", lambda: True)
            work.close(complete=False)  # as when it fails
            assert store.add("closed", 0) == 0
            if stopped:
                store.add("stop", int(signal.SIGTERM))
                with pytest.raises(StoppedError):
                    work._check_stop()
            else:
                work.close(complete=True)

    monkeypatch.setattr(process_group, "is_main", lambda: False)
    monkeypatch.setattr(shared_work.time, "sleep", main_closes)
    assert work.finish() == []
    assert len(waited) == 1


def test_a_process_stops_with_the_others(main_of_two):
    work, parts, store, _ = main_of_two
    store.add("stop", int(signal.SIGTERM))
    with pytest.raises(StoppedError, match="2 of 5 images are done"):
        work.add(0, "a")
    assert [part.units for part in parts.read()] == [[0]]


def test_a_process_that_hangs_is_named(main_of_two, monkeypatch: pytest.MonkeyPatch):
    work, *_ = main_of_two
    monkeypatch.setattr(shared_work, "STALL_S", 0.0)
    with pytest.raises(ResourceError, match="evaluation process 1 has done nothing"):
        work.finish()


def test_results_on_another_disk_are_missed(main_of_two, monkeypatch: pytest.MonkeyPatch):
    work, _, store, _ = main_of_two
    store.add("finished/1", 1)
    work.add(0, "a")
    monkeypatch.setattr(shared_work, "VISIBLE_S", 0.0)
    with pytest.raises(ResourceError, match=r"the results of 3 images are not in .* on a disk that all nodes see"):
        work.finish()


def test_all_processes_use_the_same_weights(monkeypatch: pytest.MonkeyPatch):
    agree_on_weights("a", "a")
    with pytest.raises(CheckpointError, match="was replaced"):
        agree_on_weights("a", "b")
    monkeypatch.setattr(process_group, "from_main", lambda item: ("b", "b"))
    agree_on_weights("b", "b")
    with pytest.raises(CheckpointError, match="was replaced"):
        agree_on_weights("a", "a")
    monkeypatch.setattr(process_group, "from_main", lambda item: ("a", "b"))
    with pytest.raises(CheckpointError, match="was replaced"):
        agree_on_weights("b", "b")


@pytest.mark.parametrize("verb", ["eval", "predict"])
def test_weights_that_are_replaced_while_they_are_loaded_are_not_used(
    codetr: Run, commands, verb: str, monkeypatch: pytest.MonkeyPatch
):
    build = loading.build_model

    def replacing(*arguments: Any, **named: Any) -> Any:
        (weights,) = Path("runs/tiny/1/checkpoints/last").glob("*.safetensors")
        os.utime(weights, (1, 1))
        return build(*arguments, **named)

    monkeypatch.setattr(loading, "build_model", replacing)
    ran = codetr(*commands[verb]("out"))
    assert ran.code == 4
    assert "was replaced" in ran.err
