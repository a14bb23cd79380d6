from __future__ import annotations

from pathlib import Path

import pytest

from codetr_cli.data.writers.folder import RECEIPT, check_outside, check_replaceable, record_folder
from codetr_cli.errors import ConfigError


def test_outputs_in_the_data_set_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "data"
    source.mkdir()
    (tmp_path / "link").symlink_to(source)
    for out in (source, source / "a" / "b", tmp_path / "link" / "a", source / ".." / "data" / "x.json"):
        with pytest.raises(ConfigError, match="data_converted"):
            check_outside(out, source)
    for out in (tmp_path, tmp_path / "data2", tmp_path / "other" / "data"):
        check_outside(out, source)


def test_only_folders_of_our_own_are_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    check_replaceable(out, force=False)
    out.mkdir()
    check_replaceable(out, force=False)
    (out / "mine.txt").touch()
    for force in (False, True):
        with pytest.raises(ConfigError, match="other files in it"):
            check_replaceable(out, force=force)
    (out / "mine.txt").rename(out / "data.yaml")
    (out / "images").mkdir()
    for name in "ab":
        (out / "images" / f"{name}.jpg").write_text(name)
    (out / "images" / "link.jpg").symlink_to(tmp_path / "a.jpg")
    (out / "data.yaml").write_text("names: [a]")
    record_folder(out, {"layout": "yolo"})
    with pytest.raises(ConfigError, match="--force"):
        check_replaceable(out, force=False)
    check_replaceable(out, force=True)
    (out / "images" / "b.jpg").unlink()  # the user may delete
    check_replaceable(out, force=True)
    (out / "images" / "new.jpg").touch()
    with pytest.raises(ConfigError, match=r"1 files.*images/new\.jpg"):
        check_replaceable(out, force=True)
    (out / "images" / "new.jpg").unlink()
    (out / "images" / "link.jpg").unlink()
    (out / "images" / "link.jpg").symlink_to(tmp_path / "other.jpg")
    (out / "data.yaml").write_text("changed")
    with pytest.raises(ConfigError, match=r"2 files.*data\.yaml, images/link\.jpg"):
        check_replaceable(out, force=True)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"made_by": "codetr convert-data", "links": 3}', "[" * 100_000])
def test_forged_receipts_allow_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / RECEIPT).write_text(text)
    (tmp_path / "mine").write_text("x")
    (tmp_path / "link").symlink_to("mine")
    with pytest.raises(ConfigError, match="3 files that are not as codetr has written them"):
        check_replaceable(tmp_path, force=True)


def test_files_are_no_folders(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(ConfigError, match="is no folder"):
        check_replaceable(tmp_path / "out", force=True)
