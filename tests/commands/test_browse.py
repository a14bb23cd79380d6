"""`codetr browse`: which split and which detections it shows, and what it refuses. The app: `tests/serving`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from codetr_cli.errors import StoppedError
from codetr_cli.serving import browse_app
from tests.conftest import Ran

Command = Callable[..., Ran]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command passes to the server, which stops at once."""
    calls: dict[str, Any] = {}

    def serve(data, *, port, open_browser, ready) -> None:
        calls.update(data=data, port=port, open_browser=open_browser)
        ready("http://127.0.0.1:1")
        raise StoppedError("stopped: the page is closed.", 2)

    monkeypatch.setattr(browse_app, "check_installed", lambda: None)
    monkeypatch.setattr(browse_app, "serve_browser", serve)
    return calls


def test_validation_images_are_shown_unless_others_are_asked_for(codetr: Command, shown, tiny_coco: Path) -> None:
    ran = codetr("browse", tiny_coco, "--no-open")
    assert ran.code == 130
    assert "http://127.0.0.1:1 shows" in ran.out
    assert shown["data"].split == "val"
    assert not shown["open_browser"]
    codetr("browse", tiny_coco, "--split", "train", "--port", 9000)
    assert (shown["data"].split, shown["port"], shown["open_browser"]) == ("train", 9000, True)
    assert codetr("browse", tiny_coco, "--split", "test").code == 3


def test_training_images_are_shown_where_no_others_are(codetr: Command, shown, tiny_coco: Path) -> None:
    file = tiny_coco / "annotations" / "instances_train2017.json"
    codetr("browse", "--ann", file, "--val-fraction", "0")
    assert shown["data"].split == "train"


def test_detections_are_read_as_by_eval(codetr: Command, shown, tiny_coco: Path, tmp_path: Path) -> None:
    content = json.loads((tiny_coco / "annotations" / "instances_val2017.json").read_text())
    first = content["annotations"][0]
    file = tmp_path / "d.json"
    file.write_text(json.dumps([{key: first[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.5}]))
    ran = codetr("browse", tiny_coco, "--detections", file, "--json")
    assert ran.json == {"address": "http://127.0.0.1:1", "split": "val", "images": len(content["images"])}
    assert shown["data"].evaluation is not None
    file.write_text("[1]")
    assert codetr("browse", tiny_coco, "--detections", file).code == 3


def test_a_folder_that_is_none(codetr: Command, shown, tmp_path: Path) -> None:
    ran = codetr("browse", tmp_path / "nowhere")
    assert ran.code == 3
    assert "nowhere" in ran.err


def test_a_missing_package(codetr: Command, monkeypatch: pytest.MonkeyPatch, tiny_coco: Path) -> None:
    monkeypatch.setattr(browse_app, "PACKAGES", {"no_such_module": "no-such-package"})
    ran = codetr("browse", tiny_coco)
    assert ran.code == 5
    assert "pip install 'codetr-cli[browse]'" in " ".join(ran.err.split())
