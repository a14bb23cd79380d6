"""The documentation keeps up with the program: generated pages, named files and tests, and the words it uses."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.settings_page import PAGE, settings_page

PAGES = sorted((REPOSITORY / "docs").glob("*.md"))
DOCUMENTS = [*(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")), *PAGES]


def test_the_settings_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == settings_page(), "run: make pages"


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.name)
def test_named_files_exist(page: Path):
    """Every path in inline code that begins like one of this repository."""
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`((?:codetr_cli|tests|benchmarks|presets|docs)/[\w./<>*{},-]+)`", text)
    missing = [name for name in named if "<" not in name and not any(REPOSITORY.glob(name.rstrip("/")))]
    assert missing == []


def test_named_tests_exist():
    text = (REPOSITORY / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]*test_\w+\.py)(?:::(\w+))?`", text)
    assert len(named) > 50
    for path, function in named:
        files = list((REPOSITORY / "tests").rglob(path))
        assert files, path
        if function:
            assert any(f"def {function}(" in file.read_text(encoding="utf-8") for file in files), f"{path}::{function}"


def test_the_layers_of_the_package_are_those_that_are_enforced():
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (drawn,) = re.findall(r"```\n(__main__ > [^`]+)```", text)
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    assert " ".join(drawn.split()).split(" > ") == settings["tool"]["importlinter"]["contracts"][0]["layers"]


def test_every_page_is_in_the_navigation_and_in_the_index():
    navigation = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    index = (REPOSITORY / "docs" / "index.md").read_text(encoding="utf-8")
    for page in PAGES:
        assert f": {page.name}" in navigation, page.name
        assert page.name == "index.md" or f"({page.name})" in index, page.name
