"""The command line answers at once: help and wrong usage never load a numerical library; rooms keep to their layers."""

from __future__ import annotations

import subprocess
import sys

import pytest

import codetr_cli
from codetr_cli.cli import VERBS
from tests.conftest import REPOSITORY

HEAVY = ("torch", "torchvision", "numpy", "cv2", "scipy", "PIL", "matplotlib", "pycocotools", "safetensors")
LISTER = """
import sys
from codetr_cli.cli import main
try:
    main({words!r})
finally:
    loaded = sorted(name for name in {heavy!r} if name in sys.modules)
    print("LOADED", *loaded, file=sys.stderr)
"""


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        [],
        ["--version"],
        ["presets"],
        ["no-such-verb"],
        *([verb, "--help"] for verb in VERBS),
        ["bench", "data", "--help"],
        ["bench", "--fbs"],
    ],
    ids=" ".join,
)
def test_answers_without_numerical_libraries(words: list[str]):
    script = LISTER.format(words=words, heavy=HEAVY)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr.splitlines()[-1] == "LOADED", done.stderr


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
