from __future__ import annotations

from pathlib import Path

from codetr_cli.data.image_files import list_images


def test_images_of_subfolders(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("x.JPG", "a/y.png", "a/b/z.webp", "a/notes.txt"):
        (tmp_path / name).write_text("")
    assert sorted(list_images(tmp_path)) == ["a/b/z.webp", "a/y.png", "x.JPG"]
