"""The caches are shown with their sizes; only what codetr made is removed, and only when confirmed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import typer

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
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    return folder


def test_shows_what_the_caches_hold(codetr: Callable[..., Ran], cache: Path):
    shown = codetr("cache", "--json").json
    assert shown["caches"]["datasets"] == {"folder": str(cache / "datasets"), "entries": 1, "bytes": 100}
    assert shown["caches"]["downloads"] == {"folder": str(cache), "entries": 1, "bytes": 10}
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
