"""`codetr push`: what is shown, what is sent, and what is refused with which exit code."""

from __future__ import annotations

from pathlib import Path

import pytest

from codetr_cli.inference.hub.folder import FILES
from tests.inference.fakes import write_run
from tests.inference.hub.conftest import local_hub
from tests.inference.hub.hub_server import COMMIT, TOKEN, Hub

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    yield from local_hub(tmp_path, monkeypatch)


@pytest.fixture
def run(tmp_path: Path, tiny_settings) -> Path:
    write_run(tmp_path / "runs/cells/1", tiny_settings, "best")
    return tmp_path / "runs/cells/1"


def test_a_run_is_published(codetr, hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    ran = codetr("push", run, "my-lab/cells", "--license", "MIT", "--private", "--message", "first", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["url"] == f"{hub.url}/my-lab/cells"
    assert (ran.json["commit"], ran.json["sent"], ran.json["licence"]) == (COMMIT, True, "MIT")
    assert [file["name"] for file in ran.json["files"]] == list(FILES)
    repository = hub.repositories["my-lab/cells"]
    assert repository.private
    assert {name: len(content) for name, content in repository.files.items()} == {
        file["name"]: file["bytes"] for file in ran.json["files"]
    }
    assert any(b'"summary": "first"' in body for body in hub.bodies)


def test_a_dry_run_sends_nothing(codetr, hub: Hub, run: Path, tmp_path: Path):
    out = tmp_path / "cells"
    ran = codetr("push", run, "my-lab/cells", "--license", "MIT", "--dry-run", "--out", out)
    assert ran.code == 0, ran.err
    assert all(name in ran.out for name in FILES)
    assert "Licence of the weights: MIT" in ran.out
    assert "Nothing was sent." in ran.out
    assert "no metrics" in ran.err
    assert set(FILES) <= {path.name for path in out.iterdir()}
    assert hub.requests == []


def test_a_folder_that_was_written_is_sent_with_its_card(
    codetr, hub: Hub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "cells"
    assert codetr("push", run, "my-lab/cells", "--license", "MIT", "--dry-run", "--out", out).code == 0
    card = (out / "README.md").read_text() + "\nEdited.\n"
    (out / "README.md").write_text(card)
    (out / "notes.txt").write_text("private")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    ran = codetr("push", out, "my-lab/cells")
    assert ran.code == 0, ran.err
    assert hub.repositories["my-lab/cells"].files["README.md"].decode() == card
    assert set(hub.repositories["my-lab/cells"].files) == set(FILES)
    ran = codetr("push", out, "my-lab/cells", "--license", "MIT")
    assert ran.code == 2
    assert "edit README.md" in " ".join(ran.err.split())


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((), 2, "the licence of the weights"),
        (("--license", "MIT"), 5, "hf auth login"),
        (("--license", " "), 5, "hf auth login"),
        (("--license", " ", "--dry-run"), 2, "SPDX"),
        (("--license", "MIT", "--dry-run", "--evaluation", "none.json"), 2, "cannot read the evaluation"),
    ],
)
def test_what_is_refused(codetr, hub: Hub, run: Path, words: tuple[str, ...], code: int, message: str):
    dry_run = () if "--license" in words else ("--dry-run",)
    ran = codetr("push", run, "my-lab/cells", *words, *dry_run)
    assert ran.code == code, ran.err
    assert message in " ".join(ran.err.split())
    assert hub.requests == []


def test_names_and_checkpoints_that_are_none(codetr, hub: Hub, run: Path, tmp_path: Path):
    assert codetr("push", run, "cells", "--dry-run").code == 2
    assert codetr("push", run).code == 2
    assert codetr("push", tmp_path / "none.safetensors", "my-lab/cells", "--dry-run").code == 4
    ran = codetr("push", "co_dino_tiny", "my-lab/cells", "--dry-run")
    assert ran.code == 2
    assert "random weights" in ran.err


def test_damaged_weights_are_not_sent(codetr, hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch):
    path = run / "checkpoints/best/model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert codetr("push", run, "my-lab/cells", "--license", "MIT").code == 4
    assert hub.requests == []


def test_an_existing_folder_is_kept(codetr, run: Path, tmp_path: Path):
    words = ("push", run, "my-lab/cells", "--license", "MIT", "--dry-run", "--out", tmp_path / "cells")
    assert codetr(*words).code == 0
    ran = codetr(*words)
    assert ran.code == 2
    assert "--force" in ran.err
    assert codetr(*words, "--force").code == 0


def test_without_the_package(codetr, run: Path, monkeypatch: pytest.MonkeyPatch):
    import sys

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    ran = codetr("push", run, "my-lab/cells", "--license", "MIT")
    assert ran.code == 5
    assert "pip install 'codetr-cli[hub]'" in " ".join(ran.err.split())
    assert codetr("push", run, "my-lab/cells", "--license", "MIT", "--dry-run").code == 0


def test_commands_take_what_was_published(codetr, hub: Hub, run: Path, tiny_coco: Path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.chdir(run)
    assert codetr("push", run, "my-lab/cells", "--license", "MIT").code == 0
    ran = codetr("predict", tiny_coco / "val2017", "--checkpoint", f"hf://my-lab/cells@{COMMIT}", "--out", "out")
    assert ran.code == 0, ran.err
    assert any((run / "out").iterdir())
    ran = codetr("predict", tiny_coco / "val2017", "--checkpoint", "hf://my-lab/other")
    assert (ran.code, "my-lab/other does not exist" in ran.err) == (4, True), ran.err
    ran = codetr("train", "--preset", "co_dino_tiny", "--data", tiny_coco, "--weights", "hf://cells")
    assert (ran.code, "it is org/name" in ran.err) == (2, True), ran.err


def test_a_repository_without_its_scheme_is_named(codetr, tiny_coco: Path, monkeypatch, tmp_path: Path):
    """It could be a folder of this machine: nothing is downloaded by mistake."""
    monkeypatch.chdir(tmp_path)
    ran = codetr("predict", tiny_coco / "val2017", "--checkpoint", "my-lab/cells")
    assert ran.code == 4
    assert "give hf://my-lab/cells, or in Python Detector.from_pretrained('my-lab/cells')" in ran.err
