from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from codetr_cli.images.decoder import BrokenImageError, decode_image
from codetr_cli.images.decoder_input import decoder_input
from codetr_cli.images.headers import header_of
from tests.data.image_bombs import (
    encoded,
    exif,
    jpeg_segment,
    jpeg_with,
    png_chunk,
    png_with,
    scan_bomb,
    tiff,
    webp_with,
)

TEXT = exif(20_000, 900_000, tag=0x10E, pad=1_000_000)
SHORT_TEXT = jpeg_segment(0xE1, b"Exif\0\0" + exif(5300, 64_900, tag=0x10E, pad=65_000))


@pytest.mark.parametrize(
    ("content", "orientation"),
    [
        (jpeg_with(SHORT_TEXT * 30), 6),
        (jpeg_with(SHORT_TEXT * 30, before=b"\xff\xda"), 1),
        (png_with(png_chunk(b"eXIf", TEXT)), 6),
        (png_with(png_chunk(b"eXIf", TEXT), before=b"IEND"), 6),
        (webp_with(TEXT), 6),
    ],
)
def test_exif_costs_the_decoder_nothing(content: bytes, orientation: int) -> None:
    started = time.process_time()
    size = (60, 40) if orientation == 6 else (40, 60)
    assert decode_image(content, "a").shape == (*size, 3)
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize("write", [lambda: encoded("JPEG"), lambda: encoded("PNG"), lambda: encoded("WEBP")])
def test_files_without_exif_stay_as_they_are(write: Callable[[], bytes]) -> None:
    content = write()
    assert decoder_input(content, header_of(content)) == content


def test_only_chunks_that_pixels_need_reach_the_decoder() -> None:
    others = png_chunk(b"tEXt", b"a\0" + png_chunk(b"IDAT", b"b")) + png_chunk(b"eXIf", b"c")
    transparent = png_chunk(b"tRNS", bytes(6))
    content = png_with(others + transparent + others)
    content = content[:-12] + png_chunk(b"tIME", bytes(7)) + content[-12:] + b"notes"
    assert decoder_input(content, header_of(content)) == png_with(transparent) + b"notes"


def test_the_frames_of_an_animation_do_not_reach_the_decoder() -> None:
    frames = [Image.new("RGB", (60, 40), (0, 0, 99)), Image.new("RGB", (60, 40))]
    content = encoded("PNG", save_all=True, append_images=frames)
    assert content.count(b"fcTL") == 3
    assert (decode_image(content, "a") == (200, 10, 10)).all()
    assert (decode_image(content.replace(b"fdAT", b"fdAA"), "a") == (200, 10, 10)).all()
    assert not any(kind in decoder_input(content, header_of(content)) for kind in (b"acTL", b"fcTL", b"fdAT"))


def test_scans_are_limited() -> None:
    assert decode_image(scan_bomb((60, 40), 80), "a").shape == (40, 60, 3)
    with pytest.raises(BrokenImageError, match="a JPEG of 60 x 40 pixels with more than 100 scans"):
        decode_image(scan_bomb((60, 40), 300), "a")
    started = time.process_time()
    with pytest.raises(BrokenImageError, match="with 99 scans"):
        decode_image(scan_bomb((5000, 5000), 90), Path("a"))
    assert time.process_time() - started < 0.5


def test_scans_inside_a_tiff_are_limited() -> None:
    jpeg = scan_bomb((60, 40), 300)
    content = tiff([(259, 3, 1, 7), (262, 3, 1, 6), (273, 4, 1, 8 + 2400), (279, 4, 1, len(jpeg))], body=jpeg)
    with pytest.raises(BrokenImageError, match="a TIFF of 60 x 40 pixels with more than 100 scans"):
        decode_image(content, "a")


@pytest.mark.parametrize("chunk", [b"IDAT", b"tEXt", b"fdAT"])
@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
def test_png_chunks_that_declare_gigabytes_are_refused(chunk: bytes, before: bytes) -> None:
    content = png_with(b"\xff\xff\xff\x00" + chunk + bytes(20), before=before)
    with pytest.raises(BrokenImageError, match="chunk of the PNG"):
        decode_image(content, "a")


def test_png_chunks_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codetr_cli.images.decoder_input.MAX_CHUNKS", 1000)
    content = png_with(png_chunk(b"abCd") * 1000, before=b"IEND")
    with pytest.raises(BrokenImageError, match="more than 1,000 chunks"):
        decode_image(content, "a")
