"""Commands and programs of docs/export.md that need no library of another runtime; others test their own sections."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from codetr_cli.export import job
from codetr_cli.export.request import WriteRequest
from codetr_cli.inference.exported import load
from codetr_cli.inference.exported.metadata import parse_metadata
from codetr_cli.inference.loading import load_detector
from tests.conftest import REPOSITORY
from tests.document_blocks import blocks
from tests.inference.exported.fake_engine import FakeEngine
from tests.inference.fakes import write_run

PAGE = "docs/export.md"
FIRST_OF_OTHERS = "## Proof"


def blocks_here(language: str) -> list[str]:
    """The texts of the fenced blocks before the sections of others."""
    lines = (REPOSITORY / PAGE).read_text(encoding="utf-8").splitlines()
    end = lines.index(FIRST_OF_OTHERS) + 1
    return [block.text for block in blocks(PAGE) if block.line < end and block.language == language]


@pytest.fixture
def place(tmp_path: Path, tiny_settings, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a stand-in for every file that the page names, and for conversion and runtime."""
    monkeypatch.chdir(tmp_path)
    (checkpoint,) = write_run(tmp_path / "runs/co_dino_r50/1", tiny_settings, "last")
    pixels = np.random.default_rng(0).integers(0, 255, (180, 240, 3), dtype=np.uint8)
    Path("photos").mkdir()
    for name in ("photos/a.jpg", "street.jpg"):
        Image.fromarray(pixels).save(name)

    def write(request: WriteRequest) -> None:
        request.path.write_text(request.metadata.to_json(), encoding="utf-8")

    def open_written(path: Path, device: torch.device, processor: str | None = None) -> Any:
        metadata = parse_metadata(path.read_text(encoding="utf-8"), str(path))
        return FakeEngine(load_detector(checkpoint, device), metadata)

    for name in ("onnx", "openvino"):
        monkeypatch.setitem(job.WRITERS, name, write)
    monkeypatch.setattr(load, "open_engine", open_written)
    return tmp_path


def test_commands_and_programs_run(codetr, place: Path):
    ran = []
    for line in "".join(blocks_here("bash")).splitlines():
        _, *words = shlex.split(line, comments=True)
        here = codetr(*words, *(["--max-dets", "3", "--device", "cpu"] if words[0] == "predict" else []))
        assert here.code == 0, f"{line}\n{here.err}"
        ran.append(here.out + here.err)
    assert len(ran) >= 6
    for text in blocks_here("python"):
        exec(compile(text, PAGE, "exec"), {})


def test_models_of_triton(codetr, place: Path):
    lines = (REPOSITORY / PAGE).read_text(encoding="utf-8").splitlines()
    start = lines.index("## Triton Inference Server")
    (text,) = [block.text for block in blocks(PAGE) if block.line > start and "--layout triton" in block.text]
    for line in text.splitlines():
        ran = codetr(*shlex.split(line)[1:])
        assert ran.code == 0, f"{line}\n{ran.err}"
    assert sorted(path.name for path in (place / "models").glob("*/1/model.*")) == ["model.onnx", "model.xml"]


def test_default_tiles_are_said(codetr, place: Path):
    assert codetr("export", "runs/co_dino_r50/1", "--tiles", "100x100", "--out", "tiles.onnx").code == 0
    words = ("predict", "photos", "--checkpoint", "tiles.onnx", "--device", "cpu")
    ran = codetr(*words, "--out", "a")
    said = "large images are cut as tiles.onnx says: tiles of 100x100"
    assert said in " ".join((ran.out + ran.err).split())
    for tiles in ("none", "120x120"):
        ran = codetr(*words, "--tiles", tiles, "--out", tiles)
        assert ran.code == 0, ran.err
        assert said not in " ".join((ran.out + ran.err).split())
