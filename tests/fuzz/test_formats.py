"""Whatever a Pascal VOC or YOLO folder holds, it is read or refused as bad data, soon and within little memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from codetr_cli.config.data_settings import DataConfig
from codetr_cli.config.overrides import parse_settings
from codetr_cli.data.checks.dataset import check_dataset
from codetr_cli.data.coco import build_dataset
from codetr_cli.errors import DatasetError
from tests.conftest import REPOSITORY
from tests.fuzz.format_variants import (
    CVAT_BOMBS,
    VOC_BOMBS,
    YOLO_BOMBS,
    Variant,
    cvat_variants,
    voc_variants,
    write_sound_cvat,
    write_sound_voc,
    write_sound_yolo,
    yolo_variants,
)

LAYOUTS: dict[str, tuple[Callable[[Path], Path], Callable[[], Iterator[Variant]]]] = {
    "voc": (write_sound_voc, voc_variants),
    "yolo": (write_sound_yolo, yolo_variants),
    "cvat": (write_sound_cvat, cvat_variants),
}


@contextmanager
def silent(*_: Any) -> Iterator[Callable[[int], None]]:
    yield lambda _: None


def prepare(root: Path) -> None:
    check_dataset(root, config=DataConfig(), progress=silent)


def train(root: Path) -> None:
    settings = parse_settings({"name": "x", "data": {"root": str(root), "min_side": 16}}, where="t")
    for split in ("train", "val"):
        build_dataset(settings, split=split, training=split == "train")[0]  # type: ignore[arg-type]


def sweep(root: Path, variants: Iterator[Variant]) -> dict[str, int]:
    """Reads every variant as `prepare` and `train` do; returns how often each ended how."""
    outcomes = {"read": 0, "refused": 0}
    for name, content in variants:
        path = root / name
        sound = path.read_bytes()
        path.write_bytes(content)
        for read in (prepare, train):
            start = time.process_time()
            try:
                read(root)
                outcomes["read"] += 1
            except DatasetError as error:
                outcomes["refused"] += 1
                assert len(str(error)) < 4000, f"{name}: {content[:1000]!r}"  # noqa: PT017
            except Exception as error:
                raise AssertionError(f"{read.__name__}, {name}: {content[:1000]!r}") from error
            assert time.process_time() - start < 3, f"{name}: {content[:1000]!r}"
        path.write_bytes(sound)
    return outcomes


@pytest.mark.parametrize("layout", LAYOUTS)
def test_some_variants_are_read_or_refused(tmp_path: Path, layout: str) -> None:
    write, variants = LAYOUTS[layout]
    outcomes = sweep(write(tmp_path / "set"), islice(variants(), 0, None, 9))
    assert min(outcomes.values()) > 5


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_variants_are_read_or_refused(tmp_path: Path, layout: str) -> None:
    write, variants = LAYOUTS[layout]
    outcomes = sweep(write(tmp_path / "set"), variants())
    assert min(outcomes.values()) > 100


SPECIAL: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "kernel": lambda path: path.symlink_to("/proc/self/pagemap"),
    "folder": Path.mkdir,
    "loop": lambda path: path.symlink_to(path.name),
}
PLACES = {
    "cvat": ("annotations.xml", "other.xml", "images/a.jpg"),
    "voc": ("Annotations/a.xml", "Annotations/z.xml", "JPEGImages/a.jpg", "ImageSets/Main/train.txt",
            "ImageSets/Main/test.txt"),
    "yolo": ("data.yaml", "a.yaml", "train.txt", "labels/train/a.txt", "images/train/a.jpg", "images/val/z.png"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize(("layout", "name"), [(layout, name) for layout in PLACES for name in PLACES[layout]])
def test_what_is_no_file_never_waits(tmp_path: Path, layout: str, name: str, kind: str) -> None:
    root = LAYOUTS[layout][0](tmp_path / "set")
    (root / name).unlink(missing_ok=True)
    SPECIAL[kind](root / name)
    old = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("waits for ever"))
    signal.alarm(20)
    try:
        for read in (prepare, train):
            with suppress(DatasetError):
                read(root)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


BOMBS = {"voc": VOC_BOMBS, "yolo": YOLO_BOMBS, "cvat": CVAT_BOMBS}
MEASURED = """
import json, resource, sys, time
from codetr_cli.formats.open import open_dataset
from codetr_cli.errors import DatasetError
from pathlib import Path
start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    open_dataset(Path(sys.argv[1]))
    message = ""
except DatasetError as error:
    message = str(error)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([time.process_time() - start, (after - before) / 1024, message]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "kind"), [(layout, kind) for layout in BOMBS for kind in BOMBS[layout]])
def test_a_hostile_file_costs_little(tmp_path: Path, layout: str, kind: str) -> None:
    root = LAYOUTS[layout][0](tmp_path / "set")
    path = BOMBS[layout][kind].write(root)
    words = [sys.executable, "-c", MEASURED, str(root)]
    ran = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=100, check=False)
    path.unlink()
    assert ran.returncode == 0, ran.stderr
    seconds, megabytes, message = json.loads(ran.stdout)
    assert seconds < 8
    assert megabytes < 700
    assert len(message) < 4000
