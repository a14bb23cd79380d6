"""The command line answers at once: help and wrong usage never load a numerical library; rooms keep to their layers."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import codetr_cli
from codetr_cli.cli import VERBS
from tests.conftest import REPOSITORY

HEAVY = ("torch", "torchvision", "numpy", "cv2", "scipy", "PIL", "matplotlib", "pycocotools", "safetensors")
LISTER = """
import json, os, sys
from codetr_cli.cli import main
for words in json.loads(sys.argv[1]):
    child = os.fork()  # a command in an interpreter that has imported the command line only, as every start does
    if child == 0:
        try:
            main(words)
        finally:
            loaded = sorted(name for name in {heavy!r} if name in sys.modules)
            os.write(int(sys.argv[2]), json.dumps([words, loaded]).encode() + b"\\n")
            os._exit(0)
    os.waitpid(child, 0)
"""
COMMANDS = [
    ["--help"],
    [],
    ["--version"],
    ["presets"],
    ["no-such-verb"],
    *([verb, "--help"] for verb in VERBS),
    ["bench", "data", "--help"],
    ["bench", "--fbs"],
]


@pytest.fixture(scope="module")
def loaded() -> dict[str, list[str]]:
    """Command -> the numerical libraries that are loaded when it ends."""
    reader, writer = os.pipe()
    words = [sys.executable, "-c", LISTER.format(heavy=HEAVY), json.dumps(COMMANDS), str(writer)]
    done = subprocess.run(
        words, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False, pass_fds=[writer]
    )
    os.close(writer)
    assert done.returncode == 0, done.stderr
    with os.fdopen(reader, encoding="utf-8") as lines:
        return {" ".join(words): libraries for words, libraries in map(json.loads, lines)}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_answers_without_numerical_libraries(words: list[str], loaded: dict[str, list[str]]):
    assert loaded[" ".join(words)] == []


def test_a_library_that_a_command_loads_is_seen():
    script = LISTER.format(heavy=("json", "no_such_library"))
    words = [sys.executable, "-c", script, '[["--version"]]', "1"]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [["--version"], ["json"]]


def test_importing_the_package_loads_nothing_heavy():
    script = f"import sys, codetr_cli; sys.exit(', '.join(n for n in {HEAVY!r} if n in sys.modules) or 0)"
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_detector_is_there_for_python_users():
    from codetr_cli import Detector
    from codetr_cli.inference.detector import Detector as Same

    assert Detector is Same
    with pytest.raises(AttributeError, match="no attribute 'Predictor'"):
        _ = codetr_cli.Predictor


def test_rooms_import_downwards_only():
    script = "from importlinter.cli import lint_imports; import sys; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


def test_python_dash_m_is_the_same_program():
    done = subprocess.run(
        [sys.executable, "-m", "codetr_cli", "--version"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("codetr ")
