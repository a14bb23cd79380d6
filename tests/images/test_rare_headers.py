from __future__ import annotations

import io
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, features

from codetr_cli.images.decoder import read_image
from codetr_cli.images.headers import ImageFileError, ImageHeader, header_of, read_header
from tests.data.image_bombs import encoded, exif, jpeg2000

needs_avif = pytest.mark.skipif(
    "avif" not in features.get_supported() or not cv2.haveImageWriter("a.avif"), reason="a library here has no AVIF"
)


def check(folder: Path, content: bytes, name: str = "image.bin") -> ImageHeader:
    """The header of a file that is decoded at the size in it."""
    path = folder / name
    path.write_bytes(content)
    header = read_header(path)
    assert read_image(path).shape == (*header.size, 3)
    return header


@pytest.mark.parametrize("options", [{}, {"no_jp2": True}, {"tile_size": (32, 32)}, {"codeblock_size": (8, 8)}])
def test_jpeg_2000(tmp_path: Path, options: dict[str, object]) -> None:
    header = check(tmp_path, encoded("JPEG2000", **options))
    assert (header.format, header.size, header.colour, header.bits) == ("jpeg2000", (40, 60), "rgb", 8)


@pytest.mark.parametrize(
    ("content", "least"),
    [
        (jpeg2000((64, 64), block=64), 1.2),
        (jpeg2000((64, 64), block=4), 8.0),
        (jpeg2000((64, 64), block=64, precinct_bits=2), 50.0),
    ],
)
def test_small_blocks_of_jpeg_2000_count_for_their_memory(content: bytes, least: float) -> None:
    factor = header_of(content).memory_factor
    assert least < factor < 2 * least


def test_quality_layers_are_limited() -> None:
    content = bytearray(jpeg2000((64, 64), block=64))
    place = content.index(b"\xff\x52")
    content[place + 6 : place + 8] = b"\xff\xff"
    with pytest.raises(ImageFileError, match="65,535 layers"):
        header_of(bytes(content))


def test_blocks_that_only_a_tile_declares_count(tmp_path: Path) -> None:
    plain = encoded("JPEG2000", no_jp2=True)
    start = plain.index(b"\xff\x52")
    own = bytearray(plain[start : start + 2 + int.from_bytes(plain[start + 2 : start + 4], "big")])
    own[10:12] = b"\0\0"  # blocks of 4 x 4
    tile = plain.index(b"\xff\x90")
    length = int.from_bytes(plain[tile + 6 : tile + 10], "big") + len(own)
    assert length > len(own)
    content = plain[: tile + 6] + struct.pack(">I", length) + plain[tile + 10 : tile + 12] + own + plain[tile + 12 :]
    assert header_of(plain).memory_factor < 2
    assert header_of(content).memory_factor > 8


@pytest.mark.parametrize(
    ("offset", "value"), [(8, b"\xff\xff\xff\xff"), (24, b"\0\0\0\x01\0\0\0\x01"), (24, b"\0\0\0\0"), (40, b"\xff\xff")]
)
def test_absurd_numbers_of_jpeg_2000(offset: int, value: bytes) -> None:
    content = bytearray(encoded("JPEG2000", (400, 400), no_jp2=True))
    content[offset : offset + len(value)] = value
    try:
        header = header_of(bytes(content))
    except ImageFileError:
        return
    assert header.excess(100_000_000)


@needs_avif
@pytest.mark.parametrize("options", [{}, {"quality": 100}])
def test_avif(tmp_path: Path, options: dict[str, object]) -> None:
    header = check(tmp_path, encoded("AVIF", **options))
    assert (header.format, header.size, header.orientation) == ("avif", (40, 60), 1)


@needs_avif
@pytest.mark.parametrize("orientation", range(2, 9))
def test_avif_stands_upright(tmp_path: Path, orientation: int) -> None:
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:20, :30], pixels[20:, :30] = (255, 0, 0), (0, 255, 0)
    stream, tags = io.BytesIO(), Image.Exif()
    tags[0x112] = orientation
    Image.fromarray(pixels).save(stream, "AVIF", exif=tags, quality=100, subsampling="4:4:4")
    header = check(tmp_path, stream.getvalue())
    assert header.orientation == orientation
    turned = Image.fromarray(pixels).transpose(
        {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}[orientation]  # of Image.Transpose
    )
    assert np.abs(read_image(tmp_path / "image.bin").astype(int) - np.asarray(turned)).max() < 40


@needs_avif
def test_avif_without_a_size() -> None:
    with pytest.raises(ImageFileError, match="no size"):
        header_of(encoded("AVIF").replace(b"ispe", b"none"))
    with pytest.raises(ImageFileError, match="no image"):
        header_of(encoded("AVIF").replace(b"meta", b"none"))


@needs_avif
def test_exif_of_avif_is_never_read(tmp_path: Path) -> None:
    check(tmp_path, encoded("AVIF", exif=b"Exif\0\0" + exif(5, 3)))


@pytest.mark.parametrize(
    ("content", "colour"),
    [
        (b"P1\n3 2\n1 0 1\n0 1 0\n", "grey"),
        (b"P2\n# comment\n3 2\n255\n" + b"7 " * 6, "grey"),
        (b"P3\n3 2\n255\n" + b"7 " * 18, "rgb"),
        (b"P4\n3 2\n\xa0\x40", "grey"),
        (b"P5 3 2 255\n" + bytes(6), "grey"),
        (b"P6\n3 2\n255\n" + bytes(18), "rgb"),
        (b"P6\n3 2\n65535\n" + bytes(36), "rgb"),
        (b"PF\n3 2\n-1.0\n" + bytes(72), "rgb"),
        (b"Pf\n3 2\n-1.0\n" + bytes(24), "grey"),
    ],
)
def test_pnm(tmp_path: Path, content: bytes, colour: str) -> None:
    header = check(tmp_path, content)
    assert (header.format, header.size, header.colour) == ("ppm", (2, 3), colour)
    with pytest.raises(ImageFileError):
        header_of(content[: len(content) // 2])


@pytest.mark.parametrize(
    "content",
    [
        b"P6\n90000 90000\n255\n" + bytes(100),
        b"P6\n" + b"9" * 3000 + b" 5\n255\n" + bytes(100),
        b"P6\n" + b"# comment\n" * 3000 + b"5 5\n255\n" + bytes(100),
        b"P6\n-5 5\n255\n" + bytes(100),
        b"P7\nWIDTH 5\nHEIGHT 5\n",
        struct.pack(">8I", 0x59A66A95, 1 << 31, 1 << 31, 24, 0, 1, 0, 0) + bytes(100),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"push graphic-context\nviewbox 0 0 9 9\n",
        b"8BPS\0\1" + bytes(100),
        b"\0\0\1\0\1\0" + bytes(100),
        b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 9 +X 9\n",
    ],
)
def test_other_formats_and_absurd_sizes_are_refused(content: bytes) -> None:
    with pytest.raises(ImageFileError):
        header_of(content)


def test_sun_raster(tmp_path: Path) -> None:
    assert cv2.imwrite(str(tmp_path / "a.ras"), np.full((40, 60, 3), 9, np.uint8))
    content = (tmp_path / "a.ras").read_bytes()
    assert check(tmp_path, content).size == (40, 60)
    with pytest.raises(ImageFileError, match="Sun raster image needs"):
        header_of(content[:-100])
