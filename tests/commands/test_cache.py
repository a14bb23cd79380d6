"""The caches are shown with their sizes; only what codetr made is removed, and only when confirmed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from codetr_cli.receipts import write_receipt
from codetr_cli.weights.remote import doubt_path
from tests.conftest import Ran


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of one converted dataset of 100 bytes and one download of 10, beside a file of the user's."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("CODETR_CACHE", str(folder))
    for name, size in {
        "datasets/voc-1/summary.json": 40,
        "datasets/voc-1/instances_train.json": 60,
        "presets/co_dino_r50/weights.pth": 10,
        "mine/thesis.tex": 5,
    }.items():
        write(folder / name, size)
    return folder


def write(path: Path, size: int = 10) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x80" * size)
    return path


def test_shows_what_the_caches_hold(codetr: Callable[..., Ran], cache: Path):
    shown = codetr("cache", "--json").json
    damaged = [{"path": str(cache / "datasets/voc-1"), "problem": "summary.json: it is not JSON"}]
    datasets = shown["caches"]["datasets"]
    assert [entry["path"] for entry in datasets.pop("damaged")] == [entry["path"] for entry in damaged]
    assert datasets == {"folder": str(cache / "datasets"), "entries": 1, "bytes": 100, "leftovers": []}
    nothing = {"damaged": [], "leftovers": []}
    assert shown["caches"]["downloads"] == {"folder": str(cache), "entries": 1, "bytes": 10, **nothing}
    assert shown["caches"]["kernels"] == {"folder": str(cache), "entries": 0, "bytes": 0, **nothing}
    assert shown["cleared"] == []
    table = codetr("cache").out
    assert "100 B" in table
    assert str(cache / "datasets") in table


def test_clear_removes_converted_datasets(codetr: Callable[..., Ran], cache: Path):
    ran = codetr("cache", "clear", "--yes", "--json")
    assert ran.json["cleared"] == ["datasets"]
    assert ran.json["caches"]["datasets"]["entries"] == 0
    assert not (cache / "datasets/voc-1").exists()
    assert (cache / "presets/co_dino_r50/weights.pth").is_file()
    assert "holds no converted datasets" in codetr("cache", "clear", "--yes").out


def test_downloads_are_removed_on_request_and_other_files_never(codetr: Callable[..., Ran], cache: Path):
    ran = codetr("cache", "clear", "--downloads", "--yes")
    assert ran.code == 0, ran.err
    assert not (cache / "presets/co_dino_r50").exists()
    assert (cache / "mine/thesis.tex").is_file()


@pytest.mark.parametrize("answer", [True, False])
def test_asks_before_it_removes(codetr: Callable[..., Ran], cache: Path, monkeypatch: pytest.MonkeyPatch, answer: bool):
    asked = []
    monkeypatch.setattr(typer, "confirm", lambda text: asked.append(text) or answer)
    assert codetr("cache", "clear").code == 0
    assert "1 converted datasets (100 B)" in asked[0]
    assert (cache / "datasets/voc-1").exists() is not answer


@pytest.mark.parametrize("words", [("--downloads",), ("clear", "--json"), ("purge",)])
def test_wrong_usage(codetr: Callable[..., Ran], cache: Path, words: tuple[str, ...]):
    assert codetr("cache", *words).code == 2
    assert (cache / "datasets/voc-1").exists()


def test_an_empty_cache(codetr: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CODETR_CACHE", str(tmp_path / "none"))
    assert codetr("cache").code == 0
    assert codetr("cache", "clear").code == 0


@pytest.fixture
def littered(cache: Path) -> dict[str, str]:
    """A cache with damaged files and leftovers: the name of each and its problem."""
    changed = write(cache / "urls/0123456789abcdef/weights")
    write_receipt(changed)
    write(changed, 11)
    doubted = write(cache / "backbones/swin.pth")
    write_receipt(doubted)
    write(doubt_path(doubted), 0)
    write(cache / "presets/co_dino_r50/page.pth").write_text("<html>")
    dead = "99999999"  # beyond the largest process id
    for name in ("x.pth.part", "x.pth.part.json", "x.pth.part.lock", f".x.pth.{dead}.tmp", ".gone.pth.receipt"):
        write(cache / "backbones" / name)
    write(cache / "triton" / f".forward-0123456789abcdef.json.{dead}.tmp")
    write(cache / "triton/forward-0123456789abcdef.json")
    write(cache / "compiled/ab/code.so")
    return {
        "urls/0123456789abcdef/weights": "has changed since it was written",
        "backbones/swin.pth": "could not be used",
        "presets/co_dino_r50/page.pth": "is a text and not a file of weights, it starts with '<html>'",
        "backbones/x.pth.part": "an unfinished download",
        "backbones/x.pth.part.json": "an unfinished download",
        "backbones/x.pth.part.lock": "an unfinished download",
        f"backbones/.x.pth.{dead}.tmp": "unfinished",
        "backbones/.gone.pth.receipt": "the file that it describes is missing",
        f"triton/.forward-0123456789abcdef.json.{dead}.tmp": "unfinished",
    }


def problems(shown: dict[str, Any], cache: Path) -> dict[str, str]:
    caches = [shown["caches"][key] for key in ("downloads", "kernels")]
    found = (each for one in caches for each in one["damaged"] + one["leftovers"])
    return {str(Path(each["path"]).relative_to(cache)): each["problem"] for each in found}


def test_damaged_files_and_leftovers_are_shown_and_cleared(
    codetr: Callable[..., Ran], cache: Path, littered: dict[str, str]
):
    assert problems(codetr("cache", "--json").json, cache) == littered
    said = codetr("cache").err
    assert all(f"{cache / name}: {problem}" in said for name, problem in littered.items())
    ran = codetr("cache", "clear", "--yes", "--json")
    assert ran.code == 0
    assert problems(ran.json, cache) == {}
    assert ran.json["cleared"] == ["datasets", "kernels"]
    kept = sorted(str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file())
    assert kept == ["mine/thesis.tex", "presets/co_dino_r50/weights.pth"]


def test_what_others_made_or_are_writing_stays(codetr: Callable[..., Ran], cache: Path, tmp_path: Path):
    outside = [write(tmp_path / "outside" / name) for name in ("model.safetensors", "x.pth.part", "weights.pth")]
    (cache / "presets/linked").symlink_to(tmp_path / "outside")
    (cache / "converted").symlink_to(tmp_path / "outside")
    (cache / "presets/co_dino_r50/link.pth").symlink_to(outside[2])
    mine = [
        write(cache / name)
        for name in ("presets/co_dino_r50/notes.txt", "backbones/paper.pdf", "triton/notes.json", "urls/readme.md")
    ]
    mine += [write(cache / f"backbones/.y.pth.{os.getpid()}.tmp"), write(cache / "presets/co_dino_r50/deep/x.pth")]
    part = write(cache / "backbones/z.pth.part")
    holder = subprocess.Popen(
        [sys.executable, "-c", f"import fcntl; f = open({str(part) + '.lock'!r}, 'a'); fcntl.lockf(f, fcntl.LOCK_EX);"
         "print(1, flush=True); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert codetr("cache", "--json").json["caches"]["downloads"]["leftovers"] == []
        assert codetr("cache", "clear", "--downloads", "--yes").code == 0
        holder.communicate(b"\n")
    assert all(path.is_file() for path in [*outside, *mine, part])
    assert (cache / "presets/co_dino_r50/link.pth").is_symlink()
    assert not (cache / "presets/co_dino_r50/weights.pth").exists()


def test_special_files_in_the_cache_wait_for_nobody(codetr: Callable[..., Ran], cache: Path):
    for name in ("datasets/voc-1/summary.json", "presets/co_dino_r50/weights.pth"):
        (cache / name).unlink()
        os.mkfifo(cache / name)
    os.mkfifo(cache / "presets/co_dino_r50/.weights.pth.receipt")
    (cache / "urls").write_text("a file")
    assert codetr("cache").code == 0
    assert codetr("cache", "clear", "--downloads", "--yes").code == 0
    assert not (cache / "datasets/voc-1").exists()


def test_files_that_cannot_be_deleted(codetr: Callable[..., Ran], cache: Path, monkeypatch: pytest.MonkeyPatch):
    def refused(path: Path, **options: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", refused)
    ran = codetr("cache", "clear", "--downloads", "--yes")
    assert ran.code == 5
    assert "Permission denied" in ran.err
