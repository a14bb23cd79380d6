from __future__ import annotations

import errno
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from codetr_cli.errors import DatasetError, ResourceError
from codetr_cli.images.decoder import read_image
from tests.data.fakes import write_png_header

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def test_colours_come_out_as_rgb(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), PIXELS)


def test_grey_and_transparent_images_become_three_channels(tmp_path: Path) -> None:
    Image.fromarray(PIXELS[..., 0]).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.repeat(PIXELS[..., :1], 3, axis=2))
    Image.fromarray(PIXELS).convert("RGBA").save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png"), PIXELS)


def test_an_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PIXELS).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    assert read_image(tmp_path / "turned.jpg").shape == (60, 40, 3)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp"])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut{suffix}"
    assert cv2.imwrite(str(path), PIXELS)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DatasetError, match=rf"cut{suffix}.*`codetr prepare"):
        read_image(path)


def test_empty_text_and_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("not an image")
    for name in ("empty.jpg", "text.jpg", "missing.jpg"):
        with pytest.raises(DatasetError, match=rf"{name}.*Replace it") as caught:
            read_image(tmp_path / name)
        assert caught.value.exit_code == 3
    with pytest.raises(DatasetError, match=r"no such file .it was written on Windows"):
        read_image(tmp_path / "sub\\missing.jpg")


def test_too_many_pixels_are_refused_before_decoding(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    write_png_header(path, 20_000, 20_000)
    with pytest.raises(DatasetError, match=r"huge.png has 20000 x 20000 pixels.*data.max_pixels=400000000"):
        read_image(path)


def test_damaged_pixels_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "hollow.png"
    write_png_header(path, 20, 20)
    with pytest.raises(DatasetError, match=r"hollow\.png: the file is damaged.*`codetr prepare [^`]* --deep` lists"):
        read_image(path)
    with pytest.raises(DatasetError, match="`codetr prepare a --deep` and `codetr prepare b --deep` lists"):
        read_image(path, check="`codetr prepare a` and `codetr prepare b`")


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_jpeg_decoded_to_rgb_is_the_swapped_bgr(tmp_path: Path, mode: str, orientation: int) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 51, 3), dtype=np.uint8)).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "a.jpg", exif=exif, quality=80)
    decoded = read_image(tmp_path / "a.jpg")
    assert decoded.shape == ((37, 51, 3) if orientation == 1 else (51, 37, 3))
    bgr = cv2.imread(str(tmp_path / "a.jpg"), cv2.IMREAD_COLOR)
    assert np.array_equal(decoded, bgr[:, :, ::-1])


def test_a_machine_without_open_files_does_not_blame_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("codetr_cli.images.decoder.open_file", refuse)
    with pytest.raises(ResourceError, match=r"a\.jpg: Too many open files.*ulimit -n"):
        read_image(tmp_path / "a.jpg")
