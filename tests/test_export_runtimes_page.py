"""Commands and programs of two sections of docs/export.md: "OpenVINO" and "Without PyTorch"."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("onnx", reason="the optional package onnx writes the files")
pytest.importorskip("onnxruntime", reason="the optional package ONNX Runtime runs the files")

from codetr_cli.export import job, openvino_model
from codetr_cli.export.request import WriteRequest
from tests.conftest import REPOSITORY
from tests.document_blocks import blocks
from tests.inference.exported import handmade
from tests.inference.fakes import write_run

PAGE = "docs/export.md"


def of_section(title: str, language: str) -> list[str]:
    """The texts of the fenced blocks of a section."""
    lines = (REPOSITORY / PAGE).read_text(encoding="utf-8").splitlines()
    start = lines.index(f"## {title}") + 1
    end = next(n + 1 for n, line in enumerate(lines) if n >= start and line.startswith("## "))
    return [block.text for block in blocks(PAGE) if start < block.line < end and block.language == language]


@pytest.fixture
def place(tmp_path: Path, tiny_settings, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the page names; graphs are made by hand, as tracing takes long."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs/co_dino_r50/1", tiny_settings, "last")
    pixels = np.random.default_rng(0).integers(0, 255, (180, 240, 3), dtype=np.uint8)
    Path("photos").mkdir()
    for name in ("photos/1.jpg", "street.jpg"):
        Image.fromarray(pixels).save(name)

    def build(request: WriteRequest) -> Any:
        return handmade.build_model(request.metadata)

    def write(request: WriteRequest) -> None:
        request.path.write_bytes(build(request).SerializeToString())

    monkeypatch.setitem(job.WRITERS, "onnx", write)
    monkeypatch.setattr(openvino_model, "build_onnx", build)
    return tmp_path


def test_openvino(codetr, place: Path):
    pytest.importorskip("openvino", reason="the optional package OpenVINO runs the files")
    ran = []
    for line in "".join(of_section("OpenVINO", "bash")).splitlines():
        _, *words = shlex.split(line)
        ran.append(codetr(*words, *(["--iterations", "1"] if words[0] == "bench" else [])))
        assert ran[-1].code == 0, f"{line}\n{ran[-1].err}"
    assert len(ran) == 3
    assert Path("r50.bin").is_file()
    assert "OpenVINO 20" in ran[1].err


def test_without_pytorch(codetr, place: Path):
    export, print_runner, run = "".join(of_section("Without PyTorch", "bash")).splitlines()
    assert codetr(*shlex.split(export)[1:]).code == 0
    assert print_runner.endswith("--runner > runner.py")
    Path("runner.py").write_text(codetr("export", "--runner").out, encoding="utf-8")
    words = [sys.executable, *shlex.split(run)[1:]]
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "class_name" in ran.stdout
    (program,) = of_section("Without PyTorch", "python")
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.split()[0] in handmade.CLASS_NAMES
