from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from codetr_cli.data.formats import cache_limits
from codetr_cli.data.formats.cache import SUMMARY
from codetr_cli.data.formats.cache_limits import hold, limit_cache
from codetr_cli.data.formats.converted import find_converted

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="nothing is taken away there")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Five conversions of 1000 bytes, a newer than b than c ..., all used by processes that have ended."""
    held: dict[Path, int] = {}
    monkeypatch.setattr(cache_limits, "_held", held)
    for age, name in enumerate("abcde"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "instances_train.json").write_bytes(bytes(1000))
        lock = tmp_path / f"{name}.lock"
        lock.touch()
        os.utime(lock, (1e9 - age, 1e9 - age))
    yield tmp_path
    for descriptor in held.values():
        os.close(descriptor)


def names(cache: Path) -> str:
    return "".join(sorted(path.name for path in cache.iterdir() if path.is_dir()))


def test_what_was_not_used_for_longest_goes_first(cache: Path) -> None:
    assert [path.name for path in limit_cache(cache, max_sets=3)] == ["e", "d"]
    assert names(cache) == "abc"
    assert not (cache / "e.lock").exists()
    assert [path.name for path in limit_cache(cache, max_bytes=1999)] == ["c", "b"]
    assert limit_cache(cache, max_sets=1, max_bytes=1000) == []
    assert limit_cache(cache / "nowhere") == []


def test_use_makes_young_and_what_this_process_uses_stays(cache: Path) -> None:
    hold(cache / "e")
    limit_cache(cache, max_sets=2)
    assert names(cache) == "ae"
    limit_cache(cache, max_sets=0)
    assert names(cache) == "e"


def test_what_another_process_uses_stays_until_it_ends(cache: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from codetr_cli.data.formats.cache_limits import hold\n"
        "hold(Path(sys.argv[1])); hold(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(cache / "e")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as user:
        assert user.stdout is not None
        assert user.stdout.readline() == "held\n"
        os.utime(cache / "e.lock", (1, 1))  # used long ago, and still in use
        limit_cache(cache, max_sets=0)
        assert names(cache) == "e"
        user.communicate("")
    limit_cache(cache, max_sets=0)
    assert names(cache) == ""


def test_a_conversion_that_is_not_there_yet_can_be_held(cache: Path) -> None:
    hold(cache / "new" / "set")
    assert (cache / "new" / "set.lock").exists()
    limit_cache(cache / "new", max_sets=0)
    assert (cache / "new" / "set.lock").exists()


def test_what_is_taken_away_halfway_is_no_conversion_any_more(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / "e" / SUMMARY).touch()

    def killed(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cache_limits.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        limit_cache(cache, max_sets=4)
    assert names(cache) == "abcde"
    assert not (cache / "e" / SUMMARY).exists()


def test_converting_a_folder_keeps_the_limits(
    cache: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODETR_CACHE", str(cache))
    monkeypatch.setattr(cache_limits.limit_cache, "__kwdefaults__", {"max_sets": 1, "max_bytes": 10**9})
    (cache / "datasets").mkdir()
    (cache / "e").rename(cache / "datasets" / "e")
    folder = tmp_path_factory.mktemp("yolo")
    for part in ("images", "labels"):
        (folder / part / "train").mkdir(parents=True)
    cv2.imwrite(str(folder / "images" / "train" / "a.jpg"), np.zeros((20, 30, 3), np.uint8))
    (folder / "labels" / "train" / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (folder / "data.yaml").write_text("path: .\ntrain: images/train\nval: images/train\nnames: [thing]\n")
    converted = find_converted(folder)
    assert converted is not None
    (entry,) = [path for path in (cache / "datasets").iterdir() if path.is_dir()]
    assert entry == converted.splits["train"].annotations_path.parent
