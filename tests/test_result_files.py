"""Only results that codetr has made itself are ever replaced."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from codetr_cli.errors import ConfigError, ResourceError
from codetr_cli.result_files import (
    RECORD_NAME,
    OwnResults,
    ResultRecord,
    folded,
    free_file,
    free_folder,
    numbered,
    refuse_taken,
    write_result,
    write_results,
)


def test_a_file_that_exists_gets_a_number_before_its_suffix(tmp_path: Path):
    file = tmp_path / "detections.json"
    assert free_file(file, force=False) == file
    file.touch()
    (tmp_path / "detections_2.json").touch()
    assert free_file(file, force=False) == tmp_path / "detections_3.json"
    assert free_file(file, force=True) == tmp_path / "detections_3.json"  # neither was written by codetr
    file.unlink()
    with write_result(file, by="eval"):
        pass
    assert free_file(file, force=False) == tmp_path / "detections_3.json"
    assert free_file(file, force=True) == file


def test_a_folder_is_free_without_its_marker(tmp_path: Path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "notes.txt").touch()
    assert free_folder(folder, "results.json", force=False) == folder
    (folder / "results.json").touch()
    assert free_folder(folder, "results.json", force=False) == tmp_path / "out_2"
    assert free_folder(folder, "results.json", force=True) == tmp_path / "out_2"  # it is the user's
    (folder / "results.json").unlink()
    with write_result(folder / "results.json", by="eval") as temporary:
        temporary.write_text("{}")
    assert free_folder(folder, "results.json", force=True) == folder
    taken = tmp_path / "out_2"
    assert free_folder(folder, "results.json", force=False, taken=lambda path: path == taken) == tmp_path / "out_3"
    (tmp_path / "out_3").mkdir()
    (tmp_path / "out_3/results.json").symlink_to("gone")
    assert free_folder(folder, "results.json", force=False, taken=lambda path: path == taken) == tmp_path / "out_4"


def test_numbered_folders_come_in_their_order(tmp_path: Path):
    for name in ("out_10", "out_2", "out", "out_x", "output", "out_2b"):
        (tmp_path / name).mkdir()
    assert [path.name for path in numbered(tmp_path / "out")] == ["out", "out_2", "out_10"]
    assert numbered(tmp_path / "none" / "out") == []
    (tmp_path / "loop").symlink_to("loop")
    assert numbered(tmp_path / "loop") == [tmp_path / "loop"]


def test_a_folder_that_cannot_be_looked_into_is_not_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "out")
    assert free_folder(tmp_path / "out", "x", force=False) == tmp_path / "out_2"
    assert free_folder(tmp_path / "out", "x", force=True) == tmp_path / "out"


def written(path: Path, content: bytes = b"a result", **how: object) -> Path:
    with write_result(path, **{"by": "predict", **how}) as temporary:
        temporary.write_bytes(content)
    return path


def test_own_results_are_replaced_only_with_force(tmp_path: Path):
    path = written(tmp_path / "a.json")
    with pytest.raises(ConfigError, match="already exists: give another name, or replace it with --force"):
        written(path)
    with pytest.raises(ConfigError, match=r"a\.json, .*b\.json already exist: .* replace them with --force"):
        refuse_taken([path, written(tmp_path / "b.json")], force=False)
    assert written(path, b"new", force=True).read_bytes() == b"new"
    assert ResultRecord(tmp_path).is_own(path)
    assert ResultRecord(tmp_path).is_own(path, quick=True)


@pytest.mark.parametrize("change", ["other", "edited", "link", "moved", "folder", "emptied record", "same size"])
def test_what_codetr_did_not_make_is_never_replaced(tmp_path: Path, change: str):
    path = tmp_path / "a.json"
    if change != "other":
        written(path)
    if change == "link":
        path.rename(tmp_path / "b.json")
        path.symlink_to("b.json")
    elif change == "folder":
        path.unlink()
        path.mkdir()
    elif change == "moved":
        path = path.rename(tmp_path / "b.json")
    elif change == "emptied record":
        (tmp_path / RECORD_NAME).write_bytes(b"")
    else:
        path.write_bytes({"other": b"mine", "edited": b"mine", "same size": b"A RESULT"}[change])
    before = path.is_symlink() or path.is_dir() or path.read_bytes()
    with pytest.raises(ConfigError, match="not as codetr has written it, and is never replaced"):
        written(path, force=True)
    assert (path.is_symlink() or path.is_dir() or path.read_bytes()) == before


def test_a_request_continues_with_its_own_results_only(tmp_path: Path):
    path = written(tmp_path / "a.json", request="r")
    assert written(path, b"newer", request="r").read_bytes() == b"newer"
    with pytest.raises(ConfigError, match="--force"):
        written(path, request="q")
    path.write_bytes(b"edited")
    with pytest.raises(ConfigError, match="never replaced"):
        written(path, request="r")
    refuse_taken([tmp_path / "free.json"], force=False)


def test_threads_write_results_through_one_scratch_folder(tmp_path: Path):
    """Files of one name in several folders, replaced by another request while the record grows."""
    (tmp_path / "scratch").mkdir()
    record = ResultRecord(tmp_path)
    paths = [tmp_path / f"{folder}" / f"{'x' * 240}{name}.bin" for folder in range(8) for name in range(6)]

    def write(task: tuple[Path, str]) -> None:
        path, request = task
        path.parent.mkdir(exist_ok=True)
        how = {"scratch": tmp_path / "scratch", "record": record, "sync": False, "force": True}
        with write_result(path, by="predict", request=request, **how) as temporary:
            temporary.write_bytes(f"{path}{request}".encode() * 50)

    for request in ("first", "second"):
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, [(path, request) for path in paths]))
        for path in paths:
            assert path.read_bytes() == f"{path}{request}".encode() * 50
            assert record.is_own(path, request=request)
    assert not list((tmp_path / "scratch").iterdir())
    assert {len(record.of(path.relative_to(tmp_path).as_posix())) for path in paths} == {2}


def test_a_record_that_cannot_be_trusted(tmp_path: Path):
    """Lines that were cut short, that are something else, and a record that is a link or a pipe."""
    path = written(tmp_path / "a.json")
    record = tmp_path / RECORD_NAME
    lines = record.read_bytes()
    record.write_bytes(lines + b'{"name": "b.json", "si')
    other = written(tmp_path / "b.json", b"")
    record.write_bytes(record.read_bytes() + b'[]\n{}\n\xff\n{"name": 1}\n{"name": "c", "size": "1"}\n' + b"[" * 9999)
    assert ResultRecord(tmp_path).is_own(path)
    assert ResultRecord(tmp_path).is_own(other)
    assert not ResultRecord(tmp_path).is_own(tmp_path / "c")
    record.rename(tmp_path / "moved")
    record.symlink_to("moved")
    assert not ResultRecord(tmp_path).is_own(path)
    with pytest.raises(ResourceError, match=r"c\.json"):
        written(tmp_path / "c.json")
    assert not (tmp_path / "c.json").exists()
    record.unlink()
    os.mkfifo(record)
    assert not ResultRecord(tmp_path).is_own(path)


def test_names_in_a_record_are_any_bytes(tmp_path: Path):
    path = written(tmp_path / os.fsdecode(b"caf\xe9\n.jpg"))
    (tmp_path / RECORD_NAME).read_bytes().decode("ascii")
    assert ResultRecord(tmp_path).is_own(path)


def test_own_results_in_a_folder_that_is_searched(tmp_path: Path):
    record = ResultRecord(tmp_path / "out")
    for name in ("a.jpg", "deep/b.jpg"):
        written(tmp_path / "out" / name, record=record, parents=True)
    written(tmp_path / "out/tile.jpg", record=record, by="convert-data")
    above = OwnResults(tmp_path)
    assert not above.holds("out/a.jpg")
    above.enter("out/")
    assert [above.holds(f"out/{name}") for name in ("a.jpg", "deep/b.jpg", "tile.jpg", "c.jpg")] == [
        *(True, True, False, False)
    ]
    assert OwnResults(tmp_path / "out").holds("a.jpg")
    assert OwnResults(tmp_path / "out/deep").holds("b.jpg")


def test_names_that_some_file_system_takes_for_one():
    assert folded("A.JPG") == folded("a.jpg")
    assert folded("caf\u00e9") == folded("CAFE\u0301")


def test_own_results_that_are_read_only_are_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = written(tmp_path / "out" / "a.json", parents=True)
    path.chmod(0o444)
    with pytest.raises(ConfigError, match="read-only and is not replaced"):
        written(path, b"new", force=True)
    assert ResultRecord(path.parent).is_own(path)  # and thus no input
    assert free_folder(path.parent, path.name, force=True) == tmp_path / "out_2"
    assert "a.json is not as codetr has written it, or read-only, and is kept" in caplog.text
    assert free_file(path, force=True) == path.with_name("a_2.json")


def test_forced_results_elsewhere_are_explained(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = written(tmp_path / "out" / "a.json", parents=True)
    assert free_folder(path.parent, path.name, force=True) == path.parent
    assert not caplog.text
    path.write_bytes(b"edited")
    assert free_folder(path.parent, path.name, force=True) == tmp_path / "out_2"
    assert f"{path} is not as codetr" in caplog.text
    assert str(tmp_path / "out_2") in caplog.text


def test_files_that_belong_together_are_replaced_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page, table = tmp_path / "report.html", tmp_path / "report.json"

    def write(text: str, *, fail: bool = False) -> None:
        with write_results(page, by="eval", force=True, request=text) as temporary:
            temporary.with_suffix(".json").write_text(text)
            if fail:
                raise KeyboardInterrupt
            temporary.write_text(text)

    write("old")
    with pytest.raises(KeyboardInterrupt):
        write("new", fail=True)
    assert (page.read_text(), table.read_text()) == ("old", "old")
    # The slow part, until the content is on the disk, is over before the first file is replaced.
    done: list[str] = []
    sync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (done.append("sync"), sync(descriptor)))
    monkeypatch.setattr(Path, "replace", lambda self, to: (done.append(f"replace {to.name}"), replace(self, to))[1])
    write("new")
    assert done == ["sync", "sync", "replace report.json", "replace report.html", "sync"]
    assert (page.read_text(), table.read_text()) == ("new", "new")
    record = ResultRecord(tmp_path)
    assert record.is_own(page, request="new")
    assert record.is_own(table, request="new")
    assert not record.is_own(table, request="old")
