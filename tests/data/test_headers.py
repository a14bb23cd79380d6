from __future__ import annotations

import io
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from codetr_cli.data.headers import ImageFileError, read_header
from tests.data.fakes import huge_png

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def encode(fmt: str, mode: str = "RGB", orientation: int | None = None, **options: object) -> bytes:
    image = Image.fromarray(PIXELS).convert(mode)
    if orientation:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    stream = io.BytesIO()
    image.save(stream, fmt, **options)
    return stream.getvalue()


def write(folder: Path, data: bytes, name: str = "image.bin") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def decoded_size(path: Path) -> tuple[int, int]:
    return cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR).shape[:2]


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000"])
def test_size_is_what_opencv_decodes(tmp_path: Path, fmt: str) -> None:
    path = write(tmp_path, encode(fmt))
    header = read_header(path)
    assert header.size == decoded_size(path) == (40, 60)
    assert header.format == fmt.lower()
    assert header.orientation == 1


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_exif_rotation_is_that_of_opencv(tmp_path: Path, fmt: str, orientation: int) -> None:
    path = write(tmp_path, encode(fmt, orientation=orientation))
    header = read_header(path)
    assert header.orientation == orientation
    assert header.stored_size == (40, 60)
    assert header.size == decoded_size(path)


def test_exif_of_a_big_endian_camera_behind_other_segments(tmp_path: Path) -> None:
    plain = encode("JPEG")
    tiff = b"MM\0*" + struct.pack(">IHHHIHH", 8, 1, 0x0112, 3, 1, 6, 0) + b"\0\0\0\0"
    comment = b"\xff\xfe" + struct.pack(">H", 5002) + b"x" * 5000
    exif = b"\xff\xe1" + struct.pack(">H", 8 + len(tiff)) + b"Exif\0\0" + tiff
    path = write(tmp_path, plain[:2] + comment + exif + plain[2:])
    assert read_header(path).size == (60, 40) == decoded_size(path)


@pytest.mark.parametrize(
    ("fmt", "mode", "colour"),
    [
        ("JPEG", "L", "grey"),
        ("JPEG", "CMYK", "cmyk"),
        ("PNG", "P", "palette"),
        ("PNG", "RGBA", "alpha"),
        ("PNG", "L", "grey"),
    ],
)
def test_kinds_of_pixels(tmp_path: Path, fmt: str, mode: str, colour: str) -> None:
    assert read_header(write(tmp_path, encode(fmt, mode))).colour == colour


def test_sixteen_bits(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    cv2.imwrite(str(path), PIXELS.astype(np.uint16) * 256)
    assert read_header(path).bits == 16


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.001, 0.02, 0.5, 0.99])
def test_any_cut_is_noticed(tmp_path: Path, fmt: str, share: float) -> None:
    data = encode(fmt)
    path = write(tmp_path, data[: max(12, int(len(data) * share))])
    with pytest.raises(ImageFileError) as caught:
        read_header(path)
    assert caught.value.problem == "truncated"


def test_progressive_and_thumbnailed_jpegs_are_cut_too(tmp_path: Path) -> None:
    data = encode("JPEG", progressive=True)
    exif = b"\xff\xe1" + struct.pack(">H", 2 + 6 + 4) + b"Exif\0\0" + b"\xff\xd9\xff\xd9"
    whole = data[:2] + exif + data[2:]
    assert read_header(write(tmp_path, whole)).size == (40, 60)
    with pytest.raises(ImageFileError, match="no end marker"):
        read_header(write(tmp_path, whole[:-40]))


@pytest.mark.parametrize("fmt", ["JPEG", "PNG"])
def test_data_behind_the_end_does_no_harm(tmp_path: Path, fmt: str) -> None:
    assert read_header(write(tmp_path, encode(fmt) + b"camera notes" * 400)).size == (40, 60)


@pytest.mark.parametrize(
    ("data", "problem", "words"),
    [
        (b"", "empty", "zero bytes"),
        (b"this is text\nand more", "not_an_image", "text: 'this is text'"),
        (b"<!DOCTYPE html><html>404", "not_an_image", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not_an_image", "git lfs pull"),
        (b"PK\x03\x04abcd", "not_an_image", "zip"),
        (b"\0" * 5000, "not_an_image", "only zero bytes"),
        (b"\x01\x02\x03\x04\x05\xff", "not_an_image", "01 02 03 04"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "unsupported", "HEIC"),
    ],
)
def test_files_that_are_no_images(tmp_path: Path, data: bytes, problem: str, words: str) -> None:
    with pytest.raises(ImageFileError, match=words) as caught:
        read_header(write(tmp_path, data, "photo.jpg"))
    assert caught.value.problem == problem


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageFileError) as caught:
        read_header(tmp_path / "gone.jpg")
    assert caught.value.problem == "missing"
    with pytest.raises(ImageFileError) as caught:
        read_header(tmp_path)
    assert caught.value.problem == "unreadable"


def test_a_huge_image_costs_only_its_header(tmp_path: Path) -> None:
    assert read_header(write(tmp_path, huge_png(20_000))).size == (20_000, 20_000)


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "JPEG2000"])
def test_damaged_bytes_never_end_in_another_exception(tmp_path: Path, fmt: str) -> None:
    generator = np.random.default_rng(1)
    data = encode(fmt, orientation=6) if fmt in ("JPEG", "PNG", "WEBP", "TIFF") else encode(fmt)
    for _ in range(200):
        damaged = bytearray(data)
        for position in generator.integers(0, min(len(data), 200), 4):
            damaged[position] = generator.integers(0, 256)
        path = write(tmp_path, bytes(damaged))
        try:
            height, width = read_header(path).size
        except ImageFileError:
            continue
        assert isinstance(height, int)
        assert isinstance(width, int)
