from __future__ import annotations

import json
from pathlib import Path

import pytest

from codetr_cli.formats.link import link_folder


def test_linking_twice_is_linking_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").mkdir()
    link = Path("data/coco")
    assert link_folder(Path("set"), link).status == "linked"
    assert link.readlink() == tmp_path / "set"  # absolute, so that it works from anywhere
    assert link_folder(Path("set"), link).status == "present"
    assert link_folder(link, link).status == "present"


def test_an_existing_file_or_folder_is_kept(tmp_path: Path) -> None:
    for name in ("one", "two", "folder"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").write_text(json.dumps({}))
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "one")
    made = link_folder(tmp_path / "two", link)
    assert (made.status, made.works) == ("occupied", False)
    assert made.detail == f"is a link to {tmp_path / 'one'}"
    assert link.readlink() == tmp_path / "one"
    assert link_folder(tmp_path / "two", tmp_path / "folder").detail == "is another folder"
    assert link_folder(tmp_path / "two", tmp_path / "file").detail == "is a file"
    assert link_folder(tmp_path / "two", tmp_path / "two").status == "in_place"


def test_systems_without_links_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path, target_is_directory: bool = False) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    made = link_folder(tmp_path, tmp_path / "data" / "coco")
    assert (made.status, made.detail) == ("impossible", "Operation not permitted")
