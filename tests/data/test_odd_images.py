"""Every kind of image file there is, read end to end: the pixels that Pillow gives too, or an error with the reason."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from codetr_cli.images.decoder import BrokenImageError, read_image
from codetr_cli.images.headers import read_header
from tests.conftest import REPOSITORY
from tests.data.fakes import write_png_header

ROWS, COLUMNS = np.mgrid[0:40, 0:60]
RGB = np.stack([COLUMNS * 4, ROWS * 6, (ROWS + COLUMNS) * 2], axis=-1).astype(np.uint8)
DEEP = (COLUMNS * 1000 + ROWS * 100).astype(np.uint16)
ALPHA = (COLUMNS * 4).astype(np.uint8)


def picture(mode: str) -> Image.Image:
    if mode == "alpha":
        return Image.fromarray(np.dstack([RGB, ALPHA]))
    if mode == "grey alpha":
        return Image.fromarray(np.dstack([RGB[..., 0], ALPHA]))
    if mode == "palette":
        return Image.fromarray(RGB).quantize(64)
    return Image.fromarray(RGB).convert({"rgb": "RGB", "grey": "L", "bits": "1", "cmyk": "CMYK"}[mode])


def by_pillow(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))


def check(path: Path, expected: np.ndarray, tolerance: int = 0) -> None:
    image = read_image(path)
    assert image.dtype == np.uint8
    assert image.shape == expected.shape
    assert image.shape[:2] == read_header(path).size
    assert np.abs(image.astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_images_stand_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    path, exif = tmp_path / f"a{suffix}", Image.Exif()
    exif[0x0112] = orientation
    options = {".jpg": {"quality": 95}, ".webp": {"lossless": True}}.get(suffix, {})
    where = {"tiffinfo": {0x0112: orientation}} if suffix == ".tif" else {"exif": exif}
    Image.fromarray(RGB).save(path, **where, **options)
    check(path, by_pillow(path))


@pytest.mark.parametrize(
    ("name", "mode", "options", "tolerance"),
    [
        ("a.jpg", "rgb", {"progressive": True}, 0),
        ("a.jpg", "rgb", {"subsampling": 0}, 0),
        ("a.jpg", "grey", {}, 0),
        ("a.jpg", "cmyk", {"quality": 98}, 1),
        ("a.png", "palette", {}, 0),
        ("a.png", "palette", {"transparency": 3}, 0),
        ("a.png", "grey", {}, 0),
        ("a.png", "bits", {}, 0),
        ("a.gif", "palette", {}, 0),
        ("a.gif", "bits", {}, 0),
        ("a.bmp", "rgb", {}, 0),
        ("a.bmp", "palette", {}, 0),
        ("a.bmp", "bits", {}, 0),
        ("a.webp", "rgb", {"quality": 95}, 0),
        ("a.tif", "rgb", {"compression": "tiff_lzw"}, 0),
        ("a.tif", "rgb", {"compression": "tiff_adobe_deflate"}, 0),
        ("a.tif", "palette", {}, 0),
        ("a.tif", "cmyk", {}, 1),
        ("a.tif", "bits", {"compression": "group4"}, 0),
        ("a.ppm", "rgb", {}, 0),
        ("a.pgm", "grey", {}, 0),
    ],
)
def test_kinds_of_pixels(tmp_path: Path, name: str, mode: str, options: dict[str, object], tolerance: int) -> None:
    picture(mode).save(tmp_path / name, **options)
    check(tmp_path / name, by_pillow(tmp_path / name), tolerance)


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_alpha_is_dropped(tmp_path: Path, suffix: str) -> None:
    picture("alpha").save(tmp_path / f"a{suffix}", **({"lossless": True, "exact": True} if suffix == ".webp" else {}))
    check(tmp_path / f"a{suffix}", RGB)
    if suffix == ".png":
        picture("grey alpha").save(tmp_path / "grey.png")
        check(tmp_path / "grey.png", np.repeat(RGB[..., :1], 3, axis=2))


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "packbits"])
@pytest.mark.parametrize("big", [False, True])
def test_alpha_of_a_tiff_is_dropped_too(tmp_path: Path, compression: str | None, big: bool) -> None:
    picture("alpha").save(tmp_path / "a.tif", compression=compression, big_tiff=big)
    check(tmp_path / "a.tif", RGB)
    picture("alpha").save(tmp_path / "turned.tif", tiffinfo={0x0112: 6})
    check(tmp_path / "turned.tif", np.rot90(RGB, -1))
    assert cv2.imwrite(str(tmp_path / "deep.tif"), np.dstack([DEEP, DEEP.T.reshape(DEEP.shape), DEEP, DEEP]))
    check(tmp_path / "deep.tif", np.dstack([DEEP, DEEP.T.reshape(DEEP.shape), DEEP]) >> 8)


def test_floats_are_from_0_to_1(tmp_path: Path) -> None:
    floats = (RGB / 255).astype(np.float32)
    assert cv2.imwrite(str(tmp_path / "a.tif"), floats[..., ::-1])
    Image.fromarray(floats[..., 0]).save(tmp_path / "grey.tif")
    (tmp_path / "a.pfm").write_bytes(b"PF\n60 40\n-1.0\n" + floats[::-1].tobytes())
    check(tmp_path / "a.tif", RGB)
    check(tmp_path / "grey.tif", np.repeat(RGB[..., :1], 3, axis=2))
    check(tmp_path / "a.pfm", RGB)
    assert cv2.imwrite(str(tmp_path / "wide.tif"), floats * 255)
    with pytest.raises(BrokenImageError, match=r"in \[0, 1\], not 0 to 2"):
        read_image(tmp_path / "wide.tif")


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_of_sixteen_bits_the_upper_eight_stay(tmp_path: Path, suffix: str) -> None:
    assert cv2.imwrite(str(tmp_path / f"grey{suffix}"), DEEP)
    check(tmp_path / f"grey{suffix}", np.repeat((DEEP >> 8)[..., None], 3, axis=2))
    colours = np.stack([DEEP, DEEP[::-1], DEEP[:, ::-1]], axis=-1)
    assert cv2.imwrite(str(tmp_path / f"colour{suffix}"), colours)
    check(tmp_path / f"colour{suffix}", colours[..., ::-1] >> 8)


def test_ycck_is_converted(tmp_path: Path) -> None:
    """Pillow writes CMYK only; with the mark of Adobe's transform the same numbers are YCCK."""
    path = tmp_path / "a.jpg"
    picture("cmyk").save(path, quality=98)
    content = bytearray(path.read_bytes())
    mark = content.index(b"Adobe") + 11
    assert content[mark] == 0
    content[mark] = 2
    path.write_bytes(content)
    expected = by_pillow(path)
    assert np.abs(expected.astype(int) - RGB).max() > 50  # other colours indeed
    check(path, expected, tolerance=2)


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tif"])
def test_of_animations_and_pages_the_first_counts(tmp_path: Path, suffix: str) -> None:
    path, first = tmp_path / f"a{suffix}", picture("palette").convert("RGB")
    options = {"lossless": True} if suffix == ".webp" else {}
    first.save(path, save_all=True, append_images=[ImageOps.mirror(first)], **options)
    check(path, by_pillow(path))


def bomb(path: Path) -> None:
    write_png_header(path, 50_000, 50_000)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: path.write_bytes(b""), "the file has zero bytes"),
        (lambda path: path.write_text("<!DOCTYPE html><title>404</title>"), "a web page, probably the error page"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: path.symlink_to("nowhere.jpg"), "no such file"),
        (lambda path: None, "no such file"),
        (bomb, r"50000 x 50000 pixels.*data.max_pixels=2500000000"),
        (lambda path: path.write_bytes(b"P6\n50000 50000\n255\n" + bytes(100)), "needs 7,500,000,007 bytes: 119 found"),
        (lambda path: path.write_bytes(b"GIF89a\xff\xff\xff\xff\0\0\0" + bytes(9) + b"\0;"), "65535 x 65535 pixels"),
        (lambda path: Image.fromarray(DEEP.astype(np.int32)).save(path, "TIFF"), "a TIFF with 32 bits per sample"),
        (lambda path: Image.fromarray(RGB).save(path, "TGA"), "no known image format starts with"),
    ],
)
def test_unreadable_files_are_reported(tmp_path: Path, write: Callable[[Path], object], words: str) -> None:
    path = tmp_path / "a.jpg"
    write(path)
    with pytest.raises(BrokenImageError, match=words) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 3
    assert caught.value.reason


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".gif", ".bmp", ".webp", ".tif", ".ppm"])
def test_half_a_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BrokenImageError):
        read_image(path)


def test_a_file_that_may_not_be_read_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path)
    path.chmod(0)
    if os.access(path, os.R_OK):  # the superuser may read everything
        monkeypatch.setattr(
            "codetr_cli.images.decoder.open_file",
            lambda path: (_ for _ in ()).throw(PermissionError(13, "Permission denied")),
        )
    with pytest.raises(BrokenImageError, match=r"a\.png: Permission denied"):
        read_image(path)


MEASURE = """
import sys
from pathlib import Path
from codetr_cli.images.decoder import BrokenImageError, read_image
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
peaks = [peak()]
for name, limit in zip(sys.argv[1::2], map(int, sys.argv[2::2])):
    try:
        read_image(name, max_pixels=limit)
    except BrokenImageError:
        pass
    peaks.append(peak())
print(*[later - before for before, later in zip(peaks, peaks[1:])])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_a_decompression_bomb_costs_no_memory(tmp_path: Path) -> None:
    bomb(tmp_path / "claims.png")
    real = tmp_path / "real.png"
    assert cv2.imwrite(str(real), np.zeros((5000, 5000), np.uint8), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    assert real.stat().st_size < 100_000
    arguments = [str(tmp_path / "claims.png"), "100000000", str(real), "24000000", str(real), "26000000"]
    found = subprocess.run(
        [sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    claims, refused, allowed = (int(kib) / 1024 for kib in found.stdout.split())
    assert claims < 8
    assert refused < 8
    assert 60 < allowed < 220  # MiB: 72 for the pixels, as much again while channels change places
