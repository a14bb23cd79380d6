from __future__ import annotations

import io
import os
import struct
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from codetr_cli.errors import DatasetError
from codetr_cli.images.decoder import read_image
from codetr_cli.images.headers import ImageFileError, read_header
from codetr_cli.images.image_header import MAX_EXTRA_BYTES
from tests.data.fakes import huge_png
from tests.data.image_bombs import (
    encoded,
    exif,
    jpeg_segment,
    jpeg_with,
    png_chunk,
    png_with,
    tiff,
    tiff_tag_bomb,
    webp_with,
)

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
    return read_image(path).shape[:2]


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


def test_a_png_is_turned_by_exif_behind_its_pixels(tmp_path: Path) -> None:
    plain, turned = encode("PNG"), encode("PNG", orientation=6)
    start = turned.index(b"eXIf") - 4
    chunk = turned[start : start + 12 + int.from_bytes(turned[start : start + 4], "big")]
    end = plain.index(b"IEND") - 4
    path = write(tmp_path, plain[:end] + chunk + plain[end:])
    assert read_header(path).size == decoded_size(path) == (60, 40)


def test_the_chunks_of_a_png_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codetr_cli.images.headers.MAX_CHUNKS", 1000)
    with pytest.raises(ImageFileError, match="more than 1,000 chunks"):
        read_header(write(tmp_path, png_with(png_chunk(b"abCd") * 1000)))
    assert read_header(write(tmp_path, png_with(png_chunk(b"abCd") * 2000, before=b"IEND"))).orientation == 1


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


LIMITED = {
    "JPEG: one EXIF block": jpeg_with(jpeg_segment(0xE1, b"Exif\0\0" + exif(5300, 64_900, pad=65_000))),
    "JPEG: 300 EXIF blocks": jpeg_with(jpeg_segment(0xE1, b"Exif\0\0" + exif(5300, 64_900, pad=65_000)) * 300),
    "JPEG: fill bytes": jpeg_with(b"\xff" * 1_000_000),
    "PNG: EXIF": png_with(png_chunk(b"eXIf", exif(20_000, 900_000, pad=1_000_000))),
    "PNG: trailing chunks": png_with(png_chunk(b"abCd") * 50_000, before=b"IEND"),
    "PNG: chunks": png_with(png_chunk(b"abCd") * 50_000),
    "PNG: EXIF at the end": png_with(png_chunk(b"eXIf", exif(20_000, 900_000, pad=1_000_000)), before=b"IEND"),
    "WebP: EXIF": webp_with(exif(20_000, 900_000, pad=1_000_000)),
    "JPEG: segments": jpeg_with(b"\xff\xfe\0\2" * 100_000),
    "PNG: EXIF of a claimed length": png_with(struct.pack(">I", 2**31) + b"eXIf" + exif(20_000, 900_000)),
    "TIFF: tags": tiff_tag_bomb(4000, 1_000_000),
    "TIFF: more tags": tiff_tag_bomb(20_000, 1_000_000),
    "TIFF: tiles": tiff([(322, 4, 1, 30_000), (323, 4, 1, 30_000), (324, 4, 1, 8), (325, 4, 1, 100)]),
    "TIFF: strips": tiff([(273, 4, 2**31, 8), (279, 4, 2**31, 8)]),
    "TIFF: channels": tiff([(277, 3, 1, 60_000)]),
    "BigTIFF: tags": tiff([(40_000 + i, 16, 100_000, 8) for i in range(4000)], body=bytes(800_000), big=True),
    "BMP: negative width": b"BM" + struct.pack("<IIIIiiHHI", 0, 0, 54, 40, -(2**31), 2**31 - 1, 1, 32, 0) + bytes(20),
}
USABLE = list(LIMITED)[:8]
"""The picture itself is good, so it is read."""


@pytest.mark.parametrize("name", LIMITED)
def test_no_header_costs_time_or_memory(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, LIMITED[name])
    started = time.process_time()
    with suppress(ImageFileError):
        read_header(path)
    seconds = time.process_time() - started  # without the tracing, which takes most of the time
    tracemalloc.start()
    try:
        header = read_header(path)
    except ImageFileError:
        assert name not in USABLE
    else:
        assert name in USABLE
        assert header.stored_size == (40, 60)
        assert header.orientation == (6 if "EXIF" in name else 1)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert seconds < 1.0
    assert peak < 12e6


@pytest.mark.parametrize("start", [encoded("JPEG"), huge_png(1 << 15)[:60]])
def test_a_file_far_larger_than_its_pixels_is_neither_searched_nor_read(
    tmp_path: Path, start: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codetr_cli.images.image_header.MAX_SEARCHED_BYTES", 8 << 20)
    path = write(tmp_path, start)
    os.truncate(path, 100 << 30)
    started = time.process_time()
    with pytest.raises(ImageFileError):
        read_header(path)
    with pytest.raises(DatasetError):
        read_image(path)
    assert time.process_time() - started < 1.0


def test_a_stack_of_pages_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, encode("TIFF"))
    os.truncate(path, MAX_EXTRA_BYTES + 100_000)
    with pytest.raises(ImageFileError, match="60 x 40 pixels in its first page: save the others as files"):
        read_header(path)


def test_data_behind_the_end_is_limited(tmp_path: Path) -> None:
    path = write(tmp_path, encode("JPEG"))
    os.truncate(path, MAX_EXTRA_BYTES + 10_000)
    assert read_header(path).size == (40, 60)
    os.truncate(path, MAX_EXTRA_BYTES + 8 * 40 * 60 + 1)
    with pytest.raises(ImageFileError, match="bytes for 60 x 40 pixels"):
        read_header(path)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir])
def test_only_regular_files_are_opened(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "a.jpg")
    with pytest.raises(ImageFileError, match=r"not a regular file|Is a directory") as caught:
        read_header(tmp_path / "a.jpg")
    assert caught.value.problem == "unreadable"


def test_a_link_to_a_file_is_followed(tmp_path: Path) -> None:
    write(tmp_path, encode("PNG"), "a.png")
    (tmp_path / "link.png").symlink_to("a.png")
    assert read_header(tmp_path / "link.png").size == (40, 60)


def test_a_big_tiff_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, tiff(big=True))
    assert read_header(path).size == (40, 60) == decoded_size(path)


@pytest.mark.parametrize(("first", "second"), [(6, 1), (1, 6), (9, 6)])
def test_the_first_exif_block_counts(tmp_path: Path, first: int, second: int) -> None:
    blocks = [jpeg_segment(0xE1, b"Exif\0\0" + exif(0, 0, orientation=value)) for value in (first, second)]
    path = write(tmp_path, jpeg_with(b"".join(blocks)))
    opencv = cv2.imread(str(path)).shape[:2]
    assert read_header(path).size == decoded_size(path) == opencv
