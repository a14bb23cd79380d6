from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from codetr_cli.distributed import part_files
from codetr_cli.distributed.part_files import FOLDER, PartFiles, has_parts, output_folder, request_digest
from codetr_cli.distributed.part_frames import MAX_HEADER_BYTES, Part
from codetr_cli.errors import ConfigError, ResourceError
from codetr_cli.locks import FileLock
from codetr_cli.result_files import write_result

Open = Callable[..., PartFiles]


@pytest.fixture
def inputs(tmp_path: Path) -> list[Path]:
    """Files of three units."""
    files = [tmp_path / f"{unit}.jpg" for unit in range(3)]
    for file in files:
        file.write_bytes(b"pixels")
    return files


@pytest.fixture
def opened(inputs: list[Path], tmp_path: Path) -> Iterator[Callable[..., PartFiles]]:
    """Opens the parts of a request."""
    with ExitStack() as stack:

        def opened(request: str = "a") -> PartFiles:
            parts = PartFiles(tmp_path, lambda unit: [inputs[unit]])
            parts.open(request)
            stack.callback(parts.close, remove=False)
            return parts

        yield opened


def units(parts: PartFiles) -> list[list[int]]:
    return [part.units for part in parts.read()]


def test_parts_come_back_in_the_order_of_their_units(opened: Open):
    parts = opened()
    parts.add(Part([2], b"second\nline"))
    parts.add(Part([0, 1], b""))
    assert [(part.units, part.content) for part in parts.read()] == [([0, 1], b""), ([2], b"second\nline")]
    parts.close(remove=True)
    assert not parts.path.exists()


def test_the_files_of_a_long_run_are_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(part_files, "MERGED_FILES", 3)
    parts = PartFiles(tmp_path, lambda unit: [])
    parts.path.mkdir()
    for number in range(40):
        parts.add(Part([2 * number, 2 * number + 100], str(number).encode()))
    assert len(list(parts.path.glob("*.part"))) == 4  # 27, 9, 3 and 1
    assert [part.content for part in parts.read()] == [str(number).encode() for number in range(40)]
    assert sorted(unit for units in parts.units() for unit in units)[:3] == [0, 2, 4]


def test_a_kill_after_files_were_merged_leaves_no_part_twice(opened: Open, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(part_files, "MERGED_FILES", 2)
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok=False: None)
    parts = opened()
    for unit in (1, 0):
        parts.add(Part([unit], b"x"))
    assert len(list(parts.path.glob("*.part"))) == 3
    assert units(parts) == [[0], [1]]


def test_a_file_that_cannot_be_merged_stays(opened: Open, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(part_files, "MERGED_FILES", 2)
    parts = opened()
    parts.add(Part([1], b"x"))

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(part_files.shutil, "copyfileobj", full)
    parts.add(Part([0], b"x"))
    assert units(parts) == [[0], [1]]


def test_only_the_good_parts_of_a_merged_file_are_kept(
    inputs: list[Path], opened: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(part_files, "MERGED_FILES", 3)
    parts = opened()
    for unit in range(3):
        parts.add(Part([unit], b"content %d" % unit))
    parts.close(remove=False)
    inputs[0].write_bytes(b"other pixels")
    assert units(opened()) == [[1], [2]]
    parts.close(remove=False)
    (path,) = parts.path.glob("*.part")
    path.write_bytes(path.read_bytes().replace(b"content 1", b"CONTENT 1"))
    assert units(opened()) == [[2]]
    assert caplog.text.count("is damaged") == 1


def test_the_same_request_continues_and_another_starts_again(tmp_path: Path, opened: Open):
    parts = opened()
    parts.add(Part([1], b"x"))
    parts.close(remove=False)
    assert has_parts(tmp_path, "a")
    assert not has_parts(tmp_path, "b")
    again = opened()
    assert units(again) == [[1]]
    again.close(remove=False)
    assert units(opened("b")) == []


def test_units_that_failed_or_whose_files_have_changed_are_done_again(inputs: list[Path], opened: Open):
    parts = opened()
    parts.add(Part([0], b"x"))
    parts.add(Part([1], b"x", failed=True))
    parts.add(Part([2], b"x"))
    assert units(parts) == [[0], [1], [2]]
    parts.close(remove=False)
    inputs[0].write_bytes(b"other pixels")
    assert units(opened()) == [[2]]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:5],
        lambda content: content[:-1],
        lambda content: content[:-1] + b"\0",
        lambda content: b"[]\n",
        lambda content: content.replace(b"units", b"unit!"),
        lambda content: content.replace(b"size", b"SIZE"),
        lambda content: content.replace(b"[0]", b"[-1]"),
        lambda content: content.replace(b"[0]", b'"0"'),
        lambda content: b"[" * 100_000,
    ],
)
def test_a_part_that_the_disk_has_damaged_is_done_again(opened: Open, damage: Callable[[bytes], bytes]):
    parts = opened()
    parts.add(Part([0], b"x"))
    (path,) = parts.path.glob("*.part")
    path.write_bytes(damage(path.read_bytes()))
    assert units(parts) == []
    parts.close(remove=False)
    assert units(opened()) == []


def _hold(folder: Path) -> None:
    parts = PartFiles(folder, lambda unit: [])
    parts.open("a")
    (folder / "held").touch()
    time.sleep(60)


@pytest.mark.skipif(os.name != "posix", reason="no record locks")
def test_two_commands_do_not_share_a_folder(tmp_path: Path, opened: Open, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(part_files, "LOCK_PATIENCE_S", 0.0)
    holder = multiprocessing.get_context("fork").Process(target=_hold, args=(tmp_path,))
    holder.start()
    try:
        while not (tmp_path / "held").exists():
            time.sleep(0.01)
        with pytest.raises(ConfigError, match="another command is writing into"):
            opened()
    finally:
        holder.kill()
        holder.join()
    opened()


def test_a_folder_where_another_command_has_just_finished_is_not_taken(tmp_path: Path):
    folders = [tmp_path / "out", tmp_path / "out_2"]
    for folder in folders:
        folder.mkdir()

    def choose() -> Path:
        return next(folder for folder in folders if not (folder / "results").exists())

    other = PartFiles(folders[0], lambda unit: [])
    other.open("b")
    other.add(Part([0], b"of another command, stopped"))
    other.close(remove=False)
    chosen: list[Path] = []

    def choose_late() -> Path:
        chosen.append(choose())
        (folders[0] / "results").touch()  # between the choice and the lock
        return chosen[-1]

    parts = PartFiles(tmp_path, lambda unit: [])
    parts.open("a", choose_late)
    assert parts.folder == folders[1]
    assert has_parts(folders[0], "b")
    parts.close(remove=True)
    assert units(other) == [[0]]


def test_a_folder_that_disappears_before_it_is_locked_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    parts = PartFiles(tmp_path / "out", lambda unit: [])
    acquire, removed = FileLock.acquire, []

    def late(lock: FileLock, patience_s: float) -> bool:
        if not removed:
            removed.append(parts.path.rmdir())  # as another command does that has just finished
        return acquire(lock, patience_s)

    monkeypatch.setattr(FileLock, "acquire", late)
    parts.open("a")
    assert has_parts(tmp_path / "out", "a")
    parts.close(remove=True)


def test_a_folder_that_cannot_be_used_is_an_error_of_the_machine(tmp_path: Path):
    (tmp_path / "out").touch()
    with pytest.raises(ResourceError, match=r"cannot use .*out"):
        PartFiles(tmp_path / "out", lambda unit: []).open("a")


def test_a_request_is_named_by_its_values_and_the_state_of_its_files(inputs: list[Path]):
    digest = request_digest(score=0.5, weights=inputs[0])
    assert digest == request_digest(weights=inputs[0], score=0.5)
    assert digest != request_digest(score=0.6, weights=inputs[0])
    inputs[0].write_bytes(b"")
    assert digest != request_digest(score=0.5, weights=inputs[0])


# ---------------------------------------------------------------------------------------------------- the output folder


@pytest.fixture
def stopped(tmp_path: Path) -> Callable[..., Path]:
    """A folder with a part of a request."""

    def stopped(name: str, request: str) -> Path:
        parts = PartFiles(tmp_path / name, lambda unit: [])
        parts.open(request)
        parts.add(Part([0], b"x"))
        parts.close(remove=False)
        return parts.folder

    return stopped


def test_each_request_continues_in_its_folder(tmp_path: Path, stopped: Callable[..., Path]):
    def choose(request: str, force: bool = False) -> str:
        return output_folder(tmp_path / "out", "results", request=request, force=force).name

    assert choose("a") == "out"
    stopped("out", "a")
    assert [choose("a"), choose("b"), choose("b", force=True)] == ["out", "out_2", "out"]
    stopped("out_2", "b")
    (tmp_path / "out" / "results").touch()
    assert [choose("a"), choose("b"), choose("c")] == ["out_3", "out_2", "out_3"]  # results of somebody else
    (tmp_path / "out" / "results").unlink()
    with write_result(tmp_path / "out" / "results", by="eval", request="a"):
        pass
    assert [choose("a"), choose("b"), choose("c")] == ["out", "out_2", "out_3"]
    shutil.rmtree(tmp_path / "out")
    assert choose("b") == "out_2"  # although out is free now


def test_nothing_is_kept_of_a_command_without_results(tmp_path: Path):
    parts = PartFiles(tmp_path, lambda unit: [])
    parts.open("a")
    parts.close(remove=False)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_whose_request_is_deleted_is_complete(tmp_path: Path, stopped: Callable[..., Path]):
    """As after a kill while the parts are deleted."""
    (stopped("out", "a") / FOLDER / "request.json").unlink()
    assert output_folder(tmp_path / "out", request="b", force=False) == tmp_path / "out"


def test_only_parts_are_deleted(tmp_path: Path, stopped: Callable[..., Path]):
    folder = stopped("out", "a")
    (folder / FOLDER / "mine.txt").touch()
    parts = PartFiles(folder, lambda unit: [])
    parts.open("a")
    parts.close(remove=True)
    assert [path.name for path in (folder / FOLDER).iterdir()] == ["mine.txt"]
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "x.part").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / FOLDER).symlink_to(mine)
    with pytest.raises(ConfigError, match="symbolic link"):
        PartFiles(tmp_path / "other", lambda unit: []).open("a")
    assert (mine / "x.part").exists()


@pytest.mark.skipif(os.name != "posix", reason="no named pipes")
@pytest.mark.parametrize("name", ["request.json", ".lock", "x.part"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "link"])
def test_what_others_have_put_into_the_folder_is_in_nobodys_way(
    tmp_path: Path, name: str, kind: str, stopped: Callable[..., Path]
):
    place = stopped("out", "a") / FOLDER / name
    place.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        (place / "x").mkdir(parents=True)
    else:
        place.symlink_to("/dev/zero")
    for _ in range(2):
        parts = PartFiles(tmp_path / "out", lambda unit: [])
        parts.open("a")
        assert units(parts) == ([[0]] if name != "request.json" else [])
        parts.close(remove=False)


@pytest.mark.skipif(os.name != "posix", reason="no named pipes")
def test_a_pipe_in_the_place_of_the_folder_is_in_nobodys_way(tmp_path: Path):
    os.mkfifo(tmp_path / FOLDER)
    parts = PartFiles(tmp_path, lambda unit: [])
    parts.open("a")
    parts.close(remove=True)


def header(**changes: object) -> bytes:
    table = {"units": [0], "failed": False, "inputs": request_digest(files=[]), "size": 1, "checksum": zlib.crc32(b"x")}
    return json.dumps({**table, **changes}).encode() + b"\n"


@pytest.mark.parametrize(
    "content",
    [
        header(units=[1, 0]) + b"x",
        header(units=[0, 0]) + b"x",
        header(units=[True]) + b"x",
        header(units=[9]) + b"x",
        header(units=0) + b"x",
        header(failed=0) + b"x",
        header(inputs=[]) + b"x",
        header(checksum=None) + b"x",
        header(checksum=1.0) + b"x",
        header(size=-1) + b"x",
        header(size=10**30) + b"x",
        header(more=1) + b"x",
        header(),
        header() + b"xx",
        b" " * (MAX_HEADER_BYTES + 1) + header() + b"x",
        header(checksum=zlib.crc32(b"?")) + b"?",
    ],
)
def test_a_part_that_is_none_is_named_once_and_done_again(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture, inputs: list[Path]
):
    def check(part: Part) -> None:
        if part.content != b"x":
            raise RuntimeError

    parts = PartFiles(tmp_path / "out", lambda unit: [[], [], []][unit], check)
    parts.open("a")
    path = parts.path / "z.part"
    path.write_bytes(header() + b"x")
    parts.close(remove=False)
    for damaged in (False, True, False):
        if damaged:
            path.write_bytes(content)
        caplog.clear()
        parts.open("a")
        assert (f"{path} is damaged" in caplog.text) == damaged
        parts.close(remove=False)
    assert not path.exists()


def test_a_part_of_endless_size_is_not_read(tmp_path: Path, opened: Open):
    parts = opened()
    path = parts.path / "z.part"
    path.write_bytes(header(size=1 << 40))
    os.truncate(path, path.stat().st_size + (1 << 40))
    assert units(parts) == []
    parts.close(remove=False)
    opened()
    assert not path.exists()
