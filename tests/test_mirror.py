"""The tests mirror the package: `codetr_cli/room/module.py` is tested by `tests/room/test_module.py`."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import REPOSITORY

PACKAGE, TESTS = REPOSITORY / "codetr_cli", REPOSITORY / "tests"

# Modules that another test file covers, and test files of several modules. Keys and values are below the two folders.
TESTED_ELSEWHERE: dict[str, str] = {}
OF_SEVERAL_MODULES: dict[str, str] = {}


def namesake(module: Path) -> Path:
    """The test file of a module; an underscore before its name does not count."""
    return module.parent / f"test_{module.name.lstrip('_')}"


def modules() -> list[Path]:
    """Modules below the package, without those that only name a package."""
    paths = (path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
    return sorted(path for path in paths if path.name not in ("__init__.py", "__main__.py"))


def test_every_module_has_its_test_file():
    missing = {str(module) for module in modules() if not (TESTS / namesake(module)).is_file()}
    assert missing == set(TESTED_ELSEWHERE)
    assert [path for path in TESTED_ELSEWHERE.values() if not (TESTS / path).exists()] == []


def test_every_test_file_has_its_module():
    expected = {namesake(module) for module in modules()}
    found = {path.relative_to(TESTS) for path in TESTS.rglob("test_*.py")}
    assert {str(path) for path in found - expected} == set(OF_SEVERAL_MODULES)


def test_nobody_imports_from_a_test_file():
    guilty = [
        f"{path.relative_to(TESTS)}: {line.strip()}"
        for path in TESTS.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.strip().startswith(("from tests.", "import tests.")) and ("test_" in line.split(" import ")[0])
    ]
    assert guilty == []
