"""README keeps its word: marked blocks run from first to last, and every command names verbs and options that exist.

A fenced block opened with `bash tested` or `python tested` is executed, in order of appearance, in one folder.
Only the amount of work is cut: two training steps, few and small images.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from codetr_cli.cli import VERBS
from codetr_cli.commands.bench import COMMANDS, with_command
from tests.conftest import REPOSITORY
from tests.document_blocks import blocks, commands
from tests.forked import run_forked

DOCUMENTS = ("README.md", "CONTRIBUTING.md", "benchmarks/README.md", "docs/predict.md")
# `codetr` as README's reader has it, but quick: these words are added to the verb.
SMALL = "--device cpu --set test.short_side=96 --set test.long_side=96"
QUICK = {
    "train": f"{SMALL} --no-eval --set train.max_steps=2 --set data.workers=0 --set data.max_images=8",
    "eval": f"{SMALL} --max-images 8",
    "predict": SMALL,
}


PROGRAM = """
import sys
from functools import partial
from codetr_cli import cli
from codetr_cli.data import demo
demo.write_demo = partial(demo.write_demo, train=16, val=4, size=128)
sys.exit(cli.main(sys.argv[1:]))
"""
CLIENT = """
import json, socket, sys
with socket.create_connection({address!r}) as client:
    client.sendall(json.dumps(sys.argv[1:]).encode() + b"\\n")
    code, out, err = json.loads(client.makefile().read())
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(code)
"""


class Commands(socketserver.TCPServer):
    """Answers the `codetr` of a folder: runs commands in forked processes, with less work."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Command)
        (folder / "bin").mkdir()
        shim = folder / "bin" / "codetr"
        shim.write_text(f"#!{sys.executable} -IS\n{CLIENT.format(address=self.server_address)}")
        shim.chmod(0o755)


class _Command(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        words = json.loads(self.rfile.readline())
        done = run_forked("-c", PROGRAM, *words, *shlex.split(QUICK.get(words[0], "")))
        self.wfile.write(json.dumps([done.returncode, done.stdout, done.stderr]).encode())


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder, the current one, with a photo, and a `codetr` on PATH that cuts the work short."""
    root = tmp_path_factory.mktemp("readme")
    photo = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    cv2.imwrite(str(root / "photo.jpg"), photo)
    monkeypatch.chdir(root)
    monkeypatch.setenv("PATH", f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}")
    with Commands(root) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield root
        server.shutdown()
        thread.join()


def test_marked_blocks_run(folder: Path):
    marked = [block for block in blocks("README.md") if block.tested]
    assert {block.language for block in marked} == {"bash", "python"}
    for block in marked:
        if block.language == "python":
            done = run_forked("-c", block.text)
        else:
            done = subprocess.run(
                ["bash", "-euo", "pipefail"], input=block.text, capture_output=True, text=True, check=False
            )
        assert done.returncode == 0, f"README.md:{block.line}\n{done.stdout}\n{done.stderr}"
    assert list((folder / "demo" / "pictures").glob("*.*"))
    assert (folder / "photo_found.jpg").is_file()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_verbs_and_options_exist(document: str, codetr, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "250")
    helps = {verb: codetr(verb, "--help").out for verb in VERBS}
    helps |= {f"bench {name}": codetr("bench", name, "--help").out for name in COMMANDS}
    written = commands(document)
    assert written
    for command in written:
        _, verb, *words = shlex.split(command)
        if verb == "COMMAND":
            continue
        assert verb in VERBS, command
        if verb == "bench" and words != ["--help"]:
            name, *words = with_command(words)
            verb = f"bench {name}"
        for option in (word.split("=")[0] for word in words if word.startswith("--")):
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", helps[verb]), f"{command}: no option {option}"


def test_every_verb_is_shown():
    shown = {shlex.split(command)[1] for command in commands("README.md")}
    assert set(VERBS) <= shown


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    for document in DOCUMENTS:
        for block in blocks(document):
            for line in re.findall(r"^make ([a-z -]+)", block.text, flags=re.MULTILINE):
                assert set(line.split()) <= targets, f"{document}: make {line}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_linked_files_exist(document: str):
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
        assert ((REPOSITORY / document).parent / target).exists(), target
