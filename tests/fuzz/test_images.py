"""Whatever an image file holds, it is read or refused as bad data, soon and within little memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, Ran
from tests.fuzz.image_variants import samples, variants


def sweep(folder: Path, seed: int, count: int) -> dict[str, int]:
    """In a process of its own: its memory is limited, and a decoder that crashes does not end the tests."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.image_variants", str(seed), str(count)],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=300,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    endings: dict[str, int] = json.loads(done.stdout)
    return endings


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited as on Linux")
@pytest.mark.parametrize(
    ("seed", "count"), [(0, 16), *(pytest.param(n, 250, marks=pytest.mark.slow) for n in (1, 2, 3))]
)
def test_variants_are_decoded_or_refused(tmp_path: Path, seed: int, count: int) -> None:
    endings = sweep(tmp_path, seed, count)
    assert min(endings[kind] for kind in ("refused", "damaged", "decoded")) > count


@pytest.mark.slow
@pytest.mark.parametrize("deep", [[], ["--deep", "--workers", "1"]])
def test_prepare_reports_all_variants(tmp_path: Path, codetr: Callable[..., Ran], deep: list[str]) -> None:
    sound = samples()
    broken = [
        variant for name, content in sound.items() for variant in variants(content, list(sound.values()), 8, name)
    ]
    for split in ("train", "val"):
        folder = tmp_path / f"{split}2017"
        folder.mkdir()
        for index, content in enumerate(broken):
            (folder / f"{index}.jpg").write_bytes(content)
        (folder / "pipe.jpg").unlink(missing_ok=True)
        os.mkfifo(folder / "pipe.jpg")
        names = [*(f"{index}.jpg" for index in range(len(broken))), "pipe.jpg"]
        images = [{"id": i, "file_name": name, "height": 40, "width": 60} for i, name in enumerate(names)]
        boxes = [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [5, 5, 20, 20], "area": 400, "iscrowd": 0}
            for i in range(1, len(names))
        ]
        content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "a"}]}
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / f"annotations/instances_{split}2017.json").write_text(json.dumps(content))
    ran = codetr("prepare", tmp_path, "--no-link", *deep)
    assert ran.code == 3
    assert "it is a named pipe, not a regular file" in ran.out + ran.err
    assert "Traceback" not in ran.err
