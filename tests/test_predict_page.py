"""Commands and programs of docs/predict.md, section by section."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import REPOSITORY
from tests.document_blocks import blocks
from tests.inference.fakes import write_checkpoint, write_run

PAGE = "docs/predict.md"
ELSEWHERE = {
    "A million images": "prediction/test_million.py",
    "Videos and streams": "commands/test_predict_video.py",
    "Labels": "commands/test_label.py",
    "How it works": "inference/test_given_images.py",
}
"""Sections with tests of their own, which read the page."""
HERE = ("Speed", "Large images and small objects", "Drawn images", "From Python")


def of_section(title: str, language: str) -> list[str]:
    """The texts of the fenced blocks of a section."""
    text = (REPOSITORY / PAGE).read_text(encoding="utf-8")
    lines = text.splitlines()
    start = lines.index(f"## {title}") + 1
    end = next((n + 1 for n, line in enumerate(lines) if n >= start and line.startswith("## ")), len(lines) + 1)
    return [block.text for block in blocks(PAGE) if start < block.line < end and block.language == language]


@pytest.fixture
def place(tmp_path: Path, tiny_settings, tiny_coco: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small stand-in for every file that the page names."""
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "co_dino_r50.safetensors", tiny_settings)
    for name in ("co_dino_r50", "aerial"):
        write_run(tmp_path / f"runs/{name}/1", tiny_settings, "last")
    for name in ("images", "aerial", "photos"):
        Path(name).symlink_to(tiny_coco / "train2017")
    Path("annotations.json").write_bytes((tiny_coco / "annotations/instances_train2017.json").read_bytes())
    Path("data").mkdir()
    Path("data/coco").symlink_to(tiny_coco)
    pixels = np.random.default_rng(0).integers(0, 255, (180, 240, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("scene.tif")
    Image.fromarray(pixels[:96, :128]).save("street.jpg")
    return tmp_path


def test_every_section_is_run():
    text = (REPOSITORY / PAGE).read_text(encoding="utf-8")
    assert set(re.findall(r"^## (.+)$", text, flags=re.MULTILINE)) == {*ELSEWHERE, *HERE}
    for file in ELSEWHERE.values():
        assert "predict.md" in (REPOSITORY / "tests" / file).read_text(encoding="utf-8"), file


@pytest.mark.parametrize("title", HERE)
def test_commands_run(codetr, place: Path, title: str):
    quick = {"bench": "", "predict": "--max-dets 3", "eval": "--max-images 2"}
    for line in "".join(of_section(title, "bash")).splitlines():
        _, *words = shlex.split(line, comments=True) or [""]
        if not line.startswith("codetr "):
            assert line.startswith("pip install"), line
            continue
        ran = codetr(*words, *quick[words[0]].split(), "--device", "cpu")
        assert ran.code == 0, f"{line}\n{ran.err}"


@pytest.mark.parametrize("title", HERE)
def test_programs_run(place: Path, title: str):
    for text in of_section(title, "python"):
        present = [line for line in text.splitlines() if not _needs_missing_package(line)]
        exec(compile("\n".join(present), PAGE, "exec"), {})
    assert title != "From Python" or Path("drawn.png").is_file()


def _needs_missing_package(line: str) -> bool:
    found = re.search(r"\.to_(supervision|fiftyone|pandas)\(", line)
    return found is not None and importlib.util.find_spec(found[1]) is None
