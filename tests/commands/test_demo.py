"""`codetr demo`: what is wrong with its words, and what it passes on. The page itself: `tests/serving`."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from codetr_cli.errors import StoppedError
from codetr_cli.serving import page_server
from tests.conftest import REPOSITORY
from tests.inference.fakes import write_checkpoint, write_run


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--device", "cpu"), "which checkpoint? codetr demo CHECKPOINT"),
        (("a", "--checkpoint", "b"), "give one of them"),
        (("a", "--examples", "nowhere"), "--examples nowhere is not a folder"),
        (("a", "--port", "70000"), "--port"),
    ],
)
def test_wrong_words(codetr, words, text):
    ran = codetr("demo", *words)
    assert ran.code == 2
    assert text in " ".join(ran.err.split())


def test_a_missing_package(codetr, monkeypatch, tmp_path, tiny_settings):
    monkeypatch.setitem(sys.modules, "gradio", None)
    ran = codetr("demo", write_checkpoint(tmp_path / "tiny.safetensors", tiny_settings))
    assert ran.code == 5
    assert 'pip install "codetr-cli[demo]"' in ran.err


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command passes to the server, which stops at once."""
    calls: dict[str, Any] = {}

    def serve(detector, place, *, ready, **more) -> None:
        calls.update(detector=detector(), place=place, **more)
        ready("http://127.0.0.1:1", "https://public" if place.share else None)
        raise StoppedError("stopped: the page is closed.", 2)

    monkeypatch.setattr(page_server, "serve_page", serve)
    return calls


def test_the_page_gets_what_the_command_says(codetr, served, tmp_path, tiny_settings):
    checkpoint = write_checkpoint(tmp_path / "tiny.safetensors", tiny_settings)
    words = ("--examples", tmp_path, "--port", 1, "--max-upload", 5, "--head", "atss", "--set", "test.nms_iou=0.4")
    ran = codetr("demo", checkpoint, *words, "--device", "cpu")
    assert ran.code == 130
    assert "http://127.0.0.1:1 is ready" in ran.out
    assert "everybody" not in ran.out + ran.err
    test = served["detector"].loaded.settings.test
    assert (test.head, test.nms_iou) == ("atss", 0.4)
    assert (served["place"].host, served["place"].port, served["place"].share) == ("127.0.0.1", 1, False)
    assert (served["examples"], served["max_upload_bytes"]) == (Path(tmp_path), 5_000_000)


def test_others_are_let_in_on_request_only(codetr, served, tmp_path, tiny_settings):
    checkpoint = write_checkpoint(tmp_path / "tiny.safetensors", tiny_settings)
    ran = codetr("demo", checkpoint, "--host", "0.0.0.0", "--device", "cpu")
    assert "everybody who can reach this machine" in " ".join(ran.err.split())
    ran = codetr("demo", checkpoint, "--share", "--device", "cpu")
    assert "https://public is the same page for everybody" in " ".join(ran.out.split())


def test_a_bad_checkpoint(codetr, served, tmp_path):
    (tmp_path / "bad.safetensors").write_text("hello")
    assert codetr("demo", tmp_path / "bad.safetensors", "--device", "cpu").code == 4


def section(title: str) -> str:
    text = (REPOSITORY / "docs/serving.md").read_text(encoding="utf-8")
    return text.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_the_section_of_the_page(codetr, served, tmp_path, tiny_settings, monkeypatch):
    text = section("A page to try it")
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs/co_dino_r50/1", tiny_settings, "best")
    (tmp_path / "photos").mkdir()
    install, command = re.search(r"```shell\n(.*?)```", text, flags=re.DOTALL)[1].splitlines()
    assert install == 'pip install "codetr-cli[demo]"'
    assert codetr(*shlex.split(command)[1:], "--device", "cpu").code == 130
    assert served["examples"] == Path("photos")
    monkeypatch.setenv("COLUMNS", "200")
    help_text = codetr("demo", "--help").out
    for option in set(re.findall(r"`(--[a-z-]+)", text)) - {"--format"}:  # that one is of `codetr predict`
        assert option in help_text, option
    assert (REPOSITORY / "docs" / re.search(r"\((images/.+?)\)", text)[1]).is_file()
    assert f"{page_server.MAX_WAITING} may wait" in text
    assert f"127.0.0.1 and {page_server.FIRST_PORT}" in text


def test_the_help_says_that_it_is_a_page(codetr, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = " ".join(codetr("demo", "--help").out.split())
    assert "page in the browser" in text
    assert "codetr prepare --demo" in text
