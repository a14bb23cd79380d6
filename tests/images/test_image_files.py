from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, features

from codetr_cli.errors import DatasetError
from codetr_cli.images import image_files
from codetr_cli.images.decoder import read_image
from codetr_cli.images.headers import read_header
from codetr_cli.images.image_files import FORMAT_SUFFIXES, IMAGE_SUFFIXES, UNREADABLE_SUFFIXES, Skipped, list_images


def test_images_of_subfolders(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("x.JPG", "a/y.png", "a/b/z.webp", "a/notes.txt"):
        (tmp_path / name).write_text("")
    assert sorted(list_images(tmp_path)) == ["a/b/z.webp", "a/y.png", "x.JPG"]


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DatasetError, match=r"cannot read the folder .*gone: No such file or directory"):
        list(list_images(tmp_path / "gone"))
    monkeypatch.chdir(tmp_path)
    name = "d" * 250
    for _ in range(20):  # beyond the longest path that a system takes
        Path(name).mkdir()
        monkeypatch.chdir(name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError, match="File name too long"):
        list(list_images(tmp_path))


def test_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").touch()
    (tmp_path / "a" / "back").symlink_to(tmp_path)
    assert list(list_images(tmp_path)) == ["a/1.jpg"]


def test_a_walk_over_a_whole_disk_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        (tmp_path / str(number)).mkdir()
    monkeypatch.setattr(image_files, "MAX_FOLDERS", 6)
    assert list(list_images(tmp_path)) == []
    (tmp_path / "more").mkdir()
    with pytest.raises(DatasetError, match="more than 6 folders in it"):
        list(list_images(tmp_path))


BLOCK = np.full((24, 32, 3), (200, 100, 40), np.uint8)


def encode(suffix: str) -> bytes:
    """A small picture of one colour as programs write it under this ending."""
    if suffix == ".pfm":
        return b"PF\n32 24\n-1.0\n" + (BLOCK.astype("<f4") / 255).tobytes()
    file, picture = io.BytesIO(), Image.fromarray(BLOCK)
    kind = {"ppm": "PPM", "jpeg2000": "JPEG2000", "sun": "", "bmp": "BMP"}.get(format_of(suffix), format_of(suffix))
    if kind == "":  # Pillow only reads it
        return bytes(cv2.imencode(".ras", BLOCK[:, :, ::-1])[1])
    pages = {"save_all": True, "append_images": [picture]} if suffix in (".mpo", ".apng", ".gif") else {}
    picture.save(file, format="MPO" if suffix == ".mpo" else kind, **pages)
    return file.getvalue()


def format_of(suffix: str) -> str:
    return next(name for name, suffixes in FORMAT_SUFFIXES.items() if suffix in suffixes)


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_every_ending_that_is_found_is_read(tmp_path: Path, suffix: str) -> None:
    if suffix == ".avif" and "avif" not in features.get_supported():
        pytest.skip("Pillow has no AVIF here")
    path = tmp_path / f"a{suffix}"
    path.write_bytes(encode(suffix))
    assert list(list_images(tmp_path)) == [path.name]
    assert read_header(path).format == format_of(suffix)
    pixels = read_image(path)
    assert pixels.shape == BLOCK.shape
    assert np.abs(pixels.astype(int) - BLOCK).max() <= 2


def test_what_is_not_read_is_counted_and_named(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "photos").mkdir()
    for name in ("a.jpg", "b.HEIC", "c.heic", "d.svg", "notes.txt", ".hidden.heic", "Thumbs.db"):
        (tmp_path / "photos" / name).touch()
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "elsewhere")
    skipped = Skipped()
    assert list(list_images(tmp_path / "photos", skipped=skipped)) == ["a.jpg"]
    formats, links = skipped.sentences()
    assert formats.startswith(
        "3 files are of formats that cannot be read (.heic 2, .svg 1), first: b.HEIC, c.heic, d.svg."
    )
    assert links.startswith("1 linked folder not searched: linked/.")
    assert not IMAGE_SUFFIXES & UNREADABLE_SUFFIXES
