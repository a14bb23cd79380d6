"""The structure of the package: no import cycle, no room that holds everything, no file that imports everything."""

from __future__ import annotations

import subprocess

import pytest

house = pytest.importorskip("benchmarks.house", reason="a source distribution has no benchmarks")

LARGEST_ROOM_PERCENT = 20.0
LARGEST_FAN_OUT = 23
"""Lower it whenever it can be lowered."""


@pytest.fixture(scope="module")
def sources():
    return house.working_tree()


@pytest.fixture(scope="module")
def figures(sources):
    return house.measure(sources)


def test_no_module_imports_itself_over_others(sources):
    """Imports under `TYPE_CHECKING` and inside functions count too."""
    assert house.cycles(sources) == []


def test_no_room_holds_too_much(figures):
    assert figures["largest_room"]["percent"] <= LARGEST_ROOM_PERCENT, figures["rooms"]


def test_no_module_imports_too_much(figures):
    assert figures["largest_fan_out"]["modules"] <= LARGEST_FAN_OUT, figures["largest_fan_out"]


def test_cycles_are_found_wherever_the_import_is():
    sources = {
        "codetr_cli/__init__.py": "",
        "codetr_cli/a/__init__.py": "",
        "codetr_cli/a/one.py": "import typing\nif typing.TYPE_CHECKING:\n    from codetr_cli.a import two\n",
        "codetr_cli/a/two.py": "def f():\n    from codetr_cli.b import g\n    return g\n",
        "codetr_cli/b.py": "from .a.one import h\nimport codetr_cli.c\ndef g(): pass\n",
        "codetr_cli/c.py": "from codetr_cli import __version__\n",
    }
    assert house.imports(sources) == {
        "codetr_cli": set(),
        "codetr_cli.a": set(),
        "codetr_cli.a.one": {"codetr_cli.a.two"},
        "codetr_cli.a.two": {"codetr_cli.b"},
        "codetr_cli.b": {"codetr_cli.a.one", "codetr_cli.c"},
        "codetr_cli.c": {"codetr_cli"},
    }
    assert house.cycles(sources) == [["codetr_cli.a.one", "codetr_cli.a.two", "codetr_cli.b"]]
    assert "cycle of codetr_cli.a.one" in house.table({"now": house.measure(sources)})


def test_a_function_is_as_long_as_its_code():
    text = '@cached\ndef f(\n    a,\n):\n    """Docstring\n\n    of two lines.\n    """\n\n    # note\n    return a\n'
    assert list(house.functions(text)) == [("f", 4)]


def test_a_revision_is_read_without_checking_it_out(capsys, tmp_path):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    (tmp_path / "codetr_cli").mkdir()
    (tmp_path / "codetr_cli" / "x.py").write_text("y = 1\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    (tmp_path / "codetr_cli" / "x.py").unlink()
    assert house.revision("HEAD", tmp_path) == {"codetr_cli/x.py": "y = 1\n"}
    with pytest.raises(SystemExit):
        house.main(["no-such-revision"])
    assert "no-such-revision" in capsys.readouterr().err
