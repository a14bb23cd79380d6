"""The built wheel holds the package, its type marker, the presets and the kernel, and works when unpacked anywhere."""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from packaging.tags import sys_tags

from codetr_cli.config.presets import preset_names
from codetr_cli.ops.compile_kernel import LIBRARY, CompilerError, find_compiler
from tests.conftest import REPOSITORY

KERNEL = f"codetr_cli/ops/{LIBRARY.name}"
STALE = b"of another source"


def has_compiler() -> bool:
    try:
        return shutil.which(find_compiler()[0]) is not None
    except CompilerError:
        return False


def copy_checkout(folder: Path) -> Path:
    """What a wheel is made of, without the kernel of the environment; a stale one in its place."""
    pytest.importorskip("hatchling", reason="hatchling builds the wheel: pip install -e '.[dev]'")
    folder.mkdir()
    for name in ("codetr_cli", "presets"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so", ".*"))
    for name in ("hatch_build.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder)
    (folder / KERNEL).write_bytes(STALE)
    return folder


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def build(checkout: Path, folder: Path, **environment: str) -> Path:
    """Builds a wheel with this environment's hatchling: no network, no isolated environment."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)],
        cwd=checkout,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environment},
        check=True,
        capture_output=True,
    )
    (built,) = folder.glob("codetr_cli-*.whl")
    return built


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_checkout(tmp_path_factory.mktemp("source") / "checkout")


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the kernel where there is a compiler; compiled only once and not optimized, because that takes seconds."""
    before, compiler = files_of(checkout), {}
    if has_compiler():
        script = tmp_path_factory.mktemp("compiler") / "cc"
        script.write_text(f'#!/bin/sh\nexec {shlex.join(find_compiler())} "$@" -O0\n')
        script.chmod(0o755)
        compiler = {"CC": str(script)}
    built = build(checkout, tmp_path_factory.mktemp("dist"), **compiler)
    assert files_of(checkout) == before, "a source tree may be read-only"
    assert (checkout / KERNEL).read_bytes() == STALE
    return built


@pytest.fixture
def hook() -> ModuleType:
    """hatch_build.py as a module."""
    pytest.importorskip("hatchling", reason="hatchling builds the wheel: pip install -e '.[dev]'")
    spec = importlib.util.spec_from_file_location("hatch_build", REPOSITORY / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not has_compiler(), reason="there is no C compiler")
def test_holds_a_kernel_of_its_own(wheel: Path, tmp_path: Path):
    platforms = {tag.platform for tag in sys_tags()} - {"any"}
    name, _, tag = wheel.stem.partition("-py3-none-")
    assert name.startswith("codetr_cli-")
    assert tag in platforms
    archive = zipfile.ZipFile(wheel)
    assert archive.namelist().count(KERNEL) == 1
    archive.extractall(tmp_path)
    code = (
        "import torch; from codetr_cli.ops import deform_attn_cpu as kernel; "
        "print(kernel.__file__, kernel.why_not(torch.device('cpu')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == [str(tmp_path / "codetr_cli" / "ops" / "deform_attn_cpu.py"), "None"]


def test_is_pure_python_without_a_compiler(checkout: Path, tmp_path: Path):
    built = build(checkout, tmp_path, CC="false")
    assert built.stem.endswith("-py3-none-any")
    assert not any(name.endswith(".so") for name in zipfile.ZipFile(built).namelist())
    assert (checkout / KERNEL).read_bytes() == STALE


def test_no_place_for_temporary_files_leaves_the_kernel_out(hook: ModuleType, checkout: Path, monkeypatch, capfd):
    def nowhere(**_named: object) -> None:
        raise PermissionError("no place to write")

    monkeypatch.setattr(hook.tempfile, "TemporaryDirectory", nowhere)
    build_data = {"force_include": {}}
    hook.KernelBuildHook(str(checkout), {}, None, None, str(checkout), "wheel").initialize("standard", build_data)
    assert build_data == {"force_include": {}}
    assert "skipped" in "".join(capfd.readouterr())


def test_an_editable_install_compiles_beside_the_source(hook: ModuleType, tmp_path: Path, monkeypatch):
    checkout = copy_checkout(tmp_path / "checkout")
    compiler = tmp_path / "compiler.py"
    compiler.write_text("import sys; open(sys.argv[sys.argv.index('-o') + 1], 'w').write('compiled')")
    building, build_data = hook.KernelBuildHook(str(checkout), {}, None, None, str(checkout), "wheel"), {}
    monkeypatch.setenv("CC", "false")
    building.initialize("editable", build_data)
    assert (checkout / KERNEL).read_bytes() == STALE, "a kernel that may work must outlive a compiler that does not"
    monkeypatch.setenv("CC", f"{sys.executable} {compiler}")
    building.initialize("editable", build_data)
    assert (checkout / KERNEL).read_bytes() == b"compiled"
    assert build_data == {}, "the wheel of an editable install only points to the source"


@pytest.mark.parametrize(
    ("python", "machine", "tag"),
    [
        ("linux-x86_64", "x86_64", "linux_x86_64"),
        ("win-amd64", "AMD64", "win_amd64"),
        ("macosx-10.9-universal2", "arm64", "macosx_11_0_arm64"),
        ("macosx-10.9-universal2", "x86_64", "macosx_10_9_x86_64"),
        ("macosx-14.2-arm64", "arm64", "macosx_14_0_arm64"),
        ("macosx-15-arm64", "arm64", "macosx_15_0_arm64"),
    ],
)
def test_platform_is_that_of_the_library(hook: ModuleType, monkeypatch, python, machine, tag):
    monkeypatch.setattr(sysconfig, "get_platform", lambda: python)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert hook.platform_tag() == tag


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize(
    "source",
    ["pyproject.toml", "hatch_build.py", "codetr_cli/ops/deform_attn.c", "codetr_cli/ops/compile_kernel.py"],
)
def test_make_installs_again_after_a_change(tmp_path: Path, source: str):
    installed = tmp_path / ".installed"
    installed.touch()
    question = ["make", "--question", f"VENV={tmp_path}", str(installed)]
    assert subprocess.run(question, cwd=REPOSITORY, capture_output=True, check=False).returncode == 0
    changed = [*question, f"--what-if={source}"]
    assert subprocess.run(changed, cwd=REPOSITORY, capture_output=True, check=False).returncode == 1


def test_contents(wheel: Path, checkout: Path):
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"codetr_cli/presets/{name}.toml" for name in preset_names()} <= set(names)
    sources = {name for name in files_of(checkout) if name.startswith("codetr_cli/")}
    assert sources - {KERNEL} <= set(names)
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
    assert any("torch>=2.7" in line for line in required)


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


def test_the_oldest_tested_releases_are_the_lower_bounds():
    """`tests/floor.txt` is what `make test-floor` installs."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (REPOSITORY / "tests/floor.txt").read_text(encoding="utf-8").splitlines()
    tested = dict(line.split("==") for line in lines if not line.startswith("#"))
    for requirement in project["dependencies"]:
        name, bound = requirement.split(">=")
        assert f"{tested[name]}.".startswith(f"{bound}."), requirement
