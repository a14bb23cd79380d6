"""The built wheel holds the package, its type marker and the presets, and works when unpacked anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from codetr_cli.config import preset_names
from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds the wheel with this environment's hatchling: no network, no isolated environment."""
    pytest.importorskip("hatchling", reason="hatchling builds the wheel: pip install -e '.[dev]'")
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
    )
    (built,) = folder.glob("codetr_cli-*-py3-none-any.whl")
    return built


def test_contents(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"codetr_cli/presets/{name}.toml" for name in preset_names()} <= set(names)
    sources = {
        path.relative_to(REPOSITORY).as_posix()
        for path in (REPOSITORY / "codetr_cli").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert sources <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith("tests/") for name in names)


def test_metadata(wheel: Path):
    archive = zipfile.ZipFile(wheel)
    read = {Path(name).name: archive.read(name).decode() for name in archive.namelist() if ".dist-info/" in name}
    assert "codetr = codetr_cli.cli:main" in read["entry_points.txt"]
    metadata = read["METADATA"]
    assert "Requires-Python: >=3.11" in metadata
    assert "License-Expression: Apache-2.0" in metadata
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert not any("mmcv" in line or "==" in line for line in required)
    assert any("torch>=2.11" in line for line in required)


def test_works_when_unpacked(wheel: Path, tmp_path: Path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    done = subprocess.run(
        [sys.executable, "-m", "codetr_cli", "presets"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        check=True,
        capture_output=True,
        text=True,
    )
    for name in preset_names():
        assert name in done.stdout
